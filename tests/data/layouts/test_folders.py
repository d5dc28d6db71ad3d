"""Class folders: mistakes in the tree and in boxes.csv are one line that names file, line and way out."""

from pathlib import Path

import pytest

from i2c_fast.data.layouts import read_split
from i2c_fast.errors import UserError

from .small_set import CLASSES, VAL, folders, write_images

LINE = f"val/{VAL[0].wnid}/{VAL[0].name}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folders(tmp_path)
    return tmp_path


def mistake(root: Path, pattern: str) -> None:
    with pytest.raises(UserError, match=pattern) as caught:
        read_split(root, "val", "folders")
    assert "\n" not in str(caught.value)


def test_boxes_are_optional(root: Path) -> None:
    (root / "boxes.csv").unlink()
    assert [boxes.shape for boxes in read_split(root, "val").boxes] == [(0, 4)] * len(VAL)


def test_image_without_a_line_has_no_box(root: Path) -> None:
    (root / "boxes.csv").write_text(f"{LINE},1,2,3,4\n")
    index = read_split(root, "val")
    assert {path: len(boxes) for path, boxes in zip(index.paths, index.boxes, strict=True)}[LINE] == 1
    assert sum(map(len, index.boxes)) == 1


def test_quoted_paths_may_hold_commas(root: Path) -> None:
    write_images(root, [f"val/{CLASSES[0]}/one, two.JPEG"])
    (root / "boxes.csv").write_text(f'"val/{CLASSES[0]}/one, two.JPEG", 1, 2.5, 3, 4\n')
    index = read_split(root, "val")
    assert index.boxes[index.paths.index(f"val/{CLASSES[0]}/one, two.JPEG")].tolist() == [[1, 2.5, 3, 4]]


def test_validation_class_without_training_folder(root: Path) -> None:
    write_images(root, ["val/n09999999/a.JPEG"])
    mistake(root, "class n09999999 has no folder under .*train")


@pytest.mark.parametrize("line", ["x.JPEG", "x.JPEG,1,2,3", "x.JPEG,1,2,3,4,5", "x.JPEG,1,2,three,4", "\0" * 9])
def test_malformed_line_is_named_and_quoted(root: Path, line: str) -> None:
    (root / "boxes.csv").write_text(f"{LINE},1,2,3,4\n\n{line}\n")
    mistake(root, r"boxes\.csv:3: expected path,x0,y0,x1,y1, got '")


def test_header_below_the_first_line_is_malformed(root: Path) -> None:
    (root / "boxes.csv").write_text(f"path,x0,y0,x1,y1\n{LINE},1,2,3,4\npath,x0,y0,x1,y1\n")
    mistake(root, r"boxes\.csv:3: expected")


def test_long_line_is_quoted_in_part(root: Path) -> None:
    (root / "boxes.csv").write_text("x" * 10**6)
    with pytest.raises(UserError) as caught:
        read_split(root, "val")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("box", ["-1,2,3,4", "1,-2,3,4", "5,2,3,4", "1,5,3,4", "nan,2,3,4", "1,2,inf,4", "1,2,3,nan"])
def test_box_that_cannot_be_one(root: Path, box: str) -> None:
    (root / "boxes.csv").write_text(f"{LINE},{box}\n")
    mistake(root, r"boxes\.csv:1: box .* does not lie in an image")


def test_box_of_an_image_that_is_not_there(root: Path) -> None:
    (root / "boxes.csv").write_text("val/typo.JPEG,1,2,3,4\n")
    mistake(root, r"boxes\.csv: image val/typo\.JPEG is not under")


def test_boxes_of_training_images_are_passed_over(root: Path) -> None:
    (root / "boxes.csv").write_text(f"train/{CLASSES[0]}/{CLASSES[0]}_1.JPEG,1,2,3,4\n")
    assert sum(map(len, read_split(root, "val").boxes)) == 0


def test_boxes_that_are_no_utf8(root: Path) -> None:
    (root / "boxes.csv").write_bytes(b"caf\xe9.JPEG,1,2,3,4\n")
    mistake(root, r"boxes\.csv is not UTF-8 text \(byte 3\)")


def test_empty_boxes(root: Path) -> None:
    (root / "boxes.csv").write_bytes(b"\r\n\n")
    mistake(root, r"boxes\.csv is empty; expected lines of path,x0,y0,x1,y1")


def test_boxes_that_are_a_folder(root: Path) -> None:
    (root / "boxes.csv").unlink()
    (root / "boxes.csv").mkdir()
    mistake(root, r"cannot read .*boxes\.csv: Is a directory")
