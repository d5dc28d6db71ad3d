"""Pictures: colors where they belong, enlarged, laid out and written."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from i2c_fast.data import read_image
from i2c_fast.errors import UserError
from i2c_fast.report import contact_sheet, draw_overlay, save_picture
from i2c_fast.report.overlay import GREEN, PAPER, RED

GRAY = np.full((20, 30, 3), 100, np.uint8)


def where(picture: np.ndarray, color: tuple[int, int, int]) -> set[tuple[int, int]]:
    """(x, y) of the pixels of a color."""
    return {(int(x), int(y)) for y, x in np.argwhere((picture == color).all(axis=2))}


def frame(x0: int, y0: int, x1: int, y1: int) -> set[tuple[int, int]]:
    """(x, y) of the outermost pixels of a box."""
    whole = {(x, y) for x in range(x0, x1 + 1) for y in range(y0, y1 + 1)}
    return {(x, y) for x, y in whole if x in (x0, x1) or y in (y0, y1)}


def gt(*boxes: list[float]) -> np.ndarray:
    return np.array(boxes, np.float32).reshape(-1, 4)


# Overlays


def test_predicted_box_is_green_on_its_outermost_pixels() -> None:
    picture = draw_overlay(GRAY, box=(3, 4, 12, 9))
    assert where(picture, GREEN) == frame(3, 4, 12, 9)
    assert len(where(picture, (100, 100, 100))) == 600 - len(frame(3, 4, 12, 9))


def test_gt_boxes_are_red_and_under_the_green_one() -> None:
    picture = draw_overlay(GRAY, box=(3, 4, 12, 9), gt_boxes=gt([0, 0, 29, 19], [3, 4, 6, 9]))
    assert where(picture, GREEN) == frame(3, 4, 12, 9)
    assert where(picture, RED) == (frame(0, 0, 29, 19) | frame(3, 4, 6, 9)) - frame(3, 4, 12, 9)


@pytest.mark.parametrize("box", [None, (0, 0, -1, -1)])
def test_empty_or_unknown_box_is_left_out(box: tuple[int, ...] | None) -> None:
    np.testing.assert_array_equal(draw_overlay(GRAY, box=box, gt_boxes=gt()), GRAY)


def test_box_of_one_pixel_is_drawn() -> None:
    assert where(draw_overlay(GRAY, box=(5, 6, 5, 6)), GREEN) == {(5, 6)}


@pytest.mark.parametrize(("side", "scale"), [(0, 1), (20, 1), (21, 2), (40, 2), (60, 3)])
def test_shorter_side_is_enlarged_by_a_whole_factor(side: int, scale: int) -> None:
    assert draw_overlay(GRAY, side=side).shape == (20 * scale, 30 * scale, 3)


def test_boxes_grow_with_the_picture_to_their_pixels_far_edges() -> None:
    picture = draw_overlay(GRAY, box=(3, 4, 12, 9), gt_boxes=gt([0, 0, 29, 19]), side=60)
    assert where(picture, GREEN) == frame(9, 12, 38, 29)
    assert where(picture, RED) == frame(0, 0, 89, 59)


def test_lines_of_large_pictures_are_wider() -> None:
    row = draw_overlay(np.zeros((270, 270, 3), np.uint8), box=(50, 50, 200, 200))[125, :, 1] > 0
    assert row.sum() > 4
    assert row[50] and row[200] and not row[60:190].any()


def test_heat_map_runs_from_blue_to_red_over_the_image() -> None:
    gray = np.repeat(np.array([[0, 128, 255]], np.uint8), 10, axis=1).repeat(20, axis=0)
    cold, middle, hot = draw_overlay(GRAY, gray)[10, [0, 15, 29]].astype(int)
    # 55 % of the image, 100, and 45 % of the color map's ends: (0, 0, 128) and (128, 0, 0).
    assert abs(cold - (55, 55, 112.6)).max() <= 1
    assert abs(hot - (112.6, 55, 55)).max() <= 2
    assert middle[1] > 150


def test_inputs_are_left_alone() -> None:
    image, gray = GRAY.copy(), np.full((20, 30), 7, np.uint8)
    draw_overlay(image, gray, (1, 1, 5, 5), gt([2, 2, 9, 9]))
    draw_overlay(image, box=(1, 1, 5, 5))
    assert (image == 100).all() and (gray == 7).all()


# Contact sheets


def test_sheet_shows_every_picture_in_its_row_and_column() -> None:
    colors = [[(200, 10, 10), (10, 200, 10), (10, 10, 200)], [(200, 200, 10), (10, 200, 200), (200, 10, 200)]]
    rows = [[np.full((50, 60, 3), color, np.uint8) for color in row] for row in colors]
    sheet = contact_sheet(rows, ["one", "two"], "title")
    corners = {}
    for r, row in enumerate(colors):
        for c, color in enumerate(row):
            xs, ys = zip(*where(sheet, color), strict=True)
            assert len(xs) == 50 * 60
            corners[r, c] = min(xs), min(ys), max(xs) + 1, max(ys) + 1
    for r in range(2):
        assert len({corners[r, c][1] for c in range(3)}) == 1
        assert corners[r, 0][2] < corners[r, 1][0] and corners[r, 1][2] < corners[r, 2][0]
    for c in range(3):
        assert corners[0, c][0] == corners[1, c][0]
        assert corners[0, c][3] < corners[1, c][1]
    assert corners[0, 0][1] > 22 and max(x for _, _, x, _ in corners.values()) < sheet.shape[1]


def test_sheet_has_its_title_on_top_and_a_name_over_each_row() -> None:
    def inked(names: list[str], title: str) -> set[int]:
        """Numbers of the sheet's rows of pixels that hold text."""
        sheet = contact_sheet([[np.full((50, 300, 3), 200, np.uint8)]] * 2, names, title)
        return set(np.flatnonzero((sheet < 128).any(axis=(1, 2))).tolist())

    title = inked(["", ""], "a title")
    assert title and title < set(range(22))
    assert inked(["one", ""], "a title") - title < set(range(22, 50))  # above the first picture
    assert inked(["", "two"], "a title") - title < set(range(100, 134))  # between the pictures
    assert inked(["one", "two"], "a title") == inked(["one", ""], "a title") | inked(["", "two"], "a title") > title


def test_title_of_several_lines_makes_the_sheet_higher() -> None:
    rows = [[GRAY]]
    one, three = (contact_sheet(rows, ["row"], title).shape[0] for title in ("a", "a\nb\nc"))
    assert three - one == 2 * 22


def test_long_text_widens_the_sheet_and_is_not_cut() -> None:
    sheet = contact_sheet([[GRAY]], ["row"], "a title that is much longer than one small picture is wide")
    assert sheet.shape[1] > 200
    assert (sheet[:, -6:] == PAPER).all()


def test_each_row_needs_a_name() -> None:
    with pytest.raises(ValueError):
        contact_sheet([[GRAY], [GRAY]], ["one"], "title")


# Files


def test_saved_picture_reads_back_as_rgb(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    save_picture(tmp_path / "new" / "folder" / "picture.png", picture)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "folder" / "picture.png"), picture)


@pytest.mark.parametrize("name", ["picture.xyz", "picture", ".png", "picture.json"])
def test_suffix_that_names_no_format_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name}: .* names no picture format"):
        save_picture(tmp_path / name, GRAY)
    assert not list(tmp_path.iterdir())


def test_picture_too_large_for_its_format_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="65501 x 1 pixels is too large"):
        save_picture(tmp_path / "long.jpg", np.zeros((1, 65501, 3), np.uint8))


def test_unwritable_path_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*file/picture\.png"):
        save_picture(tmp_path / "file" / "picture.png", GRAY)


def test_formats_are_chosen_by_the_suffix(tmp_path: Path) -> None:
    for name, start in {"a.png": b"\x89PNG", "a.jpg": b"\xff\xd8", "a.BMP": b"BM"}.items():
        save_picture(tmp_path / name, GRAY)
        assert (tmp_path / name).read_bytes().startswith(start)
        assert cv2.imread(str(tmp_path / name)).shape == GRAY.shape
