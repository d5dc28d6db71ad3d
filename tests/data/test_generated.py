"""The generated set: reproducible files in ILSVRC's layout, exact boxes, and marks that are small but visible."""

import xml.etree.ElementTree as ET
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from i2c_fast.data.generated import MAX_CLASSES, Drawing, class_id, draw_object, write_generated
from i2c_fast.errors import UserError

TRAIN, VAL, BOXES = Path("Data/CLS-LOC/train"), Path("Data/CLS-LOC/val"), Path("Annotations/CLS-LOC/val")


def written(root: Path, seed: int = 3, classes: int = 3) -> Path:
    write_generated(root, seed=seed, classes=classes, train_images=4, val_images=2, size=48)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("generated") / "set")


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    """Ten of each possible class, at the smallest size and at the usual one."""
    return [
        draw_object(np.random.default_rng([class_index, number, size]), class_index, size)
        for class_index in range(MAX_CLASSES)
        for number in range(5)
        for size in (32, 64)
    ]


def test_same_seed_writes_identical_bytes(tree: Path, tmp_path: Path) -> None:
    assert contents(written(tmp_path / "again")) == contents(tree)


def test_another_seed_changes_every_image_and_keeps_the_names(tree: Path, tmp_path: Path) -> None:
    one, other = contents(tree), contents(written(tmp_path / "other", seed=4))
    assert one.keys() == other.keys()
    assert not {data for name, data in one.items() if name.endswith("JPEG")} & set(other.values())


def test_no_image_is_repeated_within_a_set(tree: Path) -> None:
    images = [data for name, data in contents(tree).items() if name.endswith("JPEG")]
    assert len(set(images)) == len(images) == 3 * (4 + 2)


def test_class_folders_hold_the_asked_number_of_images(tree: Path) -> None:
    counts = {folder.name: len(list(folder.glob(f"{folder.name}_*.JPEG"))) for folder in (tree / TRAIN).iterdir()}
    assert counts == {"n90000001": 4, "n90000002": 4, "n90000003": 4}


def test_class_ids_sort_in_class_order() -> None:
    names = [class_id(index) for index in range(MAX_CLASSES)]
    assert sorted(set(names)) == names


def test_every_validation_image_has_an_annotation_and_training_has_none(tree: Path) -> None:
    images, annotations = list((tree / VAL).iterdir()), list((tree / BOXES).iterdir())
    assert {path.stem for path in images} == {path.stem for path in annotations}
    assert {path.stem for path in images} == {f"ILSVRC2012_val_{number:08d}" for number in range(1, 7)}
    assert [path.name for path in (tree / "Annotations/CLS-LOC").iterdir()] == ["val"]


def test_images_have_the_asked_size(tree: Path) -> None:
    for path in tree.rglob("*.JPEG"):
        assert Image.open(path).size == (48, 48)


def test_annotations_name_every_class_equally_often(tree: Path) -> None:
    names = [ET.parse(path).findtext("object/name") for path in sorted((tree / BOXES).iterdir())]
    assert names == ["n90000001", "n90000002", "n90000003"] * 2


def test_annotation_gives_the_size_and_one_box_inside_it(tree: Path) -> None:
    for path in (tree / BOXES).iterdir():
        root = ET.parse(path).getroot()
        assert root.findtext("filename") == path.stem
        assert [root.findtext(f"size/{name}") for name in ("width", "height", "depth")] == ["48", "48", "3"]
        (box,) = root.findall("object/bndbox")
        xmin, ymin, xmax, ymax = (int(box.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax"))
        assert 0 <= xmin < xmax <= 47
        assert 0 <= ymin < ymax <= 47


def test_box_and_colors_are_those_of_the_image_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def red_patch(rng: np.random.Generator, class_index: int, size: int) -> Drawing:
        mask = np.zeros((size, size), bool)
        x, y = rng.integers(2, size // 2, 2)
        mask[y : y + 10, x : x + 15] = True
        return Drawing(np.where(mask[..., None], [255, 0, 0], 255).astype(np.uint8), mask, mask)

    monkeypatch.setattr("i2c_fast.data.generated.draw_object", red_patch)
    root = written(tmp_path / "set")
    for path in (root / BOXES).iterdir():
        box = [int(ET.parse(path).findtext(f"object/bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")]
        red, green, _ = np.moveaxis(np.asarray(Image.open(root / VAL / f"{path.stem}.JPEG")), 2, 0)
        ys, xs = np.nonzero((red > 128) & (green < 128))
        assert box == [xs.min(), ys.min(), xs.max(), ys.max()]


def test_box_is_the_tight_box_of_the_mask(drawings: list[Drawing]) -> None:
    for drawing in drawings:
        xmin, ymin, xmax, ymax = drawing.box
        inside = drawing.mask[ymin : ymax + 1, xmin : xmax + 1]
        assert inside.sum() == drawing.mask.sum()
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_object_never_touches_the_image_border(drawings: list[Drawing]) -> None:
    # An object that reached the border might have been cut there, and its box would not be exact.
    for drawing in drawings:
        assert not drawing.mask[[0, -1]].any() and not drawing.mask[:, [0, -1]].any()


def test_object_spans_about_half_to_most_of_the_image(drawings: list[Drawing]) -> None:
    for drawing in drawings:
        xmin, ymin, xmax, ymax = drawing.box
        assert 0.4 < max(xmax - xmin + 1, ymax - ymin + 1) / len(drawing.mask) < 0.95


def test_mark_is_a_small_visible_part_of_the_object(drawings: list[Drawing]) -> None:
    fractions = np.array([drawing.mark.sum() / drawing.mask.sum() for drawing in drawings])
    assert all((drawing.mask | ~drawing.mark).all() for drawing in drawings)
    assert 0.02 < fractions.min() < fractions.max() < 0.2
    assert 0.04 < np.median(fractions) < 0.1


def test_marks_of_all_classes_differ_in_hue_or_shape() -> None:
    # The same stream draws the same scene, so what differs between two classes of one family is the mark alone.
    images = [draw_object(np.random.default_rng(0), class_index, 64).image for class_index in range(MAX_CLASSES)]
    assert len({image.tobytes() for image in images}) == MAX_CLASSES


def test_the_body_alone_does_not_tell_the_class() -> None:
    one, other = (draw_object(np.random.default_rng(1), class_index, 64) for class_index in (2, 3))
    elsewhere = ~(cv2.dilate((one.mark | other.mark).astype(np.uint8), np.ones((3, 3))) > 0)
    same = (one.image == other.image).all(axis=2)
    assert same[elsewhere].all()
    assert not same[one.mark & other.mark].any()


@pytest.mark.parametrize("class_index, size", [(-1, 64), (MAX_CLASSES, 64), (0, 31)])
def test_drawing_refuses_what_it_cannot_draw(class_index: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"class_index {class_index}, size {size}"):
        draw_object(np.random.default_rng(0), class_index, size)


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    assert (written(tmp_path) / TRAIN).is_dir()


def test_a_folder_with_anything_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        written(tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("root", ["file", "file/below"])
def test_a_root_that_cannot_be_a_folder_is_one_line_for_the_user(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the generated set") as caught:
        written(tmp_path / root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [{"seed": -1}, {"classes": 0}, {"classes": MAX_CLASSES + 1}, {"train_images": 0}, {"val_images": 0}, {"size": 31}],
)
def test_an_argument_out_of_range_is_named_and_nothing_written(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is"):
        write_generated(tmp_path / "set", **{"seed": 0, **wrong})
    assert not (tmp_path / "set").exists()
