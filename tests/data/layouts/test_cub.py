"""CUB's own files: lists that do not fit together are one line that names file, line and way out."""

from pathlib import Path

import numpy as np
import pytest

from i2c_fast.data.layouts import read_split
from i2c_fast.errors import UserError

from .small_set import cub, write_images, write_lines


@pytest.fixture
def root(tmp_path: Path) -> Path:
    cub(tmp_path)
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def mistake(root: Path, pattern: str) -> None:
    with pytest.raises(UserError, match=pattern) as caught:
        read_split(root, "val")
    assert "\n" not in str(caught.value)


def test_official_line_becomes_the_fields_box(tmp_path: Path) -> None:
    # The first image of CUB, and what wsolevaluation's localization.txt makes of it.
    name = "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg"
    write_images(tmp_path, [f"images/{name}"])
    for file, line in {
        "images.txt": f"1 {name}",
        "image_class_labels.txt": "1 1",
        "train_test_split.txt": "1 0",
        "bounding_boxes.txt": "1 60.0 27.0 325.0 304.0",
        "classes.txt": "1 001.Black_footed_Albatross",
    }.items():
        write_lines(tmp_path / file, [line])
    index = read_split(tmp_path, "val")
    np.testing.assert_array_equal(index.boxes[0], [[60, 27, 385, 331]])
    assert index.classes == ("001.Black_footed_Albatross",)
    assert index.paths == (f"images/{name}",)


def test_names_may_hold_spaces(root: Path) -> None:
    edit(root / "classes.txt", "n02979186", "Red winged Blackbird ")
    assert read_split(root, "train").classes[2] == "Red winged Blackbird"


@pytest.mark.parametrize("name", ["image_class_labels.txt", "bounding_boxes.txt", "classes.txt"])
def test_missing_file(root: Path, name: str) -> None:
    (root / name).unlink()
    mistake(root, f"cannot read .*{name}: No such file")


@pytest.mark.parametrize("name", ["images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"])
def test_empty_file(root: Path, name: str) -> None:
    (root / name).write_text("")
    mistake(root, f"{name} is empty")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("images.txt", "7"),
        ("image_class_labels.txt", "99 one"),
        ("image_class_labels.txt", "99 4"),
        ("image_class_labels.txt", "99 0"),
        ("train_test_split.txt", "99 2"),
        ("bounding_boxes.txt", "99 1 2 3"),
        ("classes.txt", "99"),
    ],
)
def test_malformed_line_or_label_out_of_range(root: Path, name: str, line: str) -> None:
    lines = (root / name).read_text().splitlines()
    write_lines(root / name, [*lines, line])
    mistake(root, rf"{name}:{len(lines) + 1}: expected .*, got '{line}'")


@pytest.mark.parametrize("name", ["images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"])
def test_id_listed_twice(root: Path, name: str) -> None:
    lines = (root / name).read_text().splitlines()
    write_lines(root / name, [*lines, lines[0]])
    mistake(root, rf"{name}:{len(lines) + 1}: \d+ is listed twice")


def test_image_under_two_ids(root: Path) -> None:
    for name, value in {"images.txt": "n02979186/ILSVRC2012_val_00000001.JPEG", "image_class_labels.txt": "3"}.items():
        edit(root / name, "", f"99 {value}\n")
    edit(root / "train_test_split.txt", "", "99 0\n")
    edit(root / "bounding_boxes.txt", "", "99 1 1 1 1\n")
    mistake(root, r"image images/n02979186/ILSVRC2012_val_00000001\.JPEG is listed twice")


@pytest.mark.parametrize("name", ["image_class_labels.txt", "train_test_split.txt", "bounding_boxes.txt"])
def test_image_without_a_line(root: Path, name: str) -> None:
    lines = (root / name).read_text().splitlines()
    write_lines(root / name, [line for line in lines if not line.startswith("3 ")])  # a validation image
    mistake(root, f"{name} has no line for 3")


def test_class_ids_with_a_gap(root: Path) -> None:
    edit(root / "classes.txt", "2 ", "5 ")
    mistake(root, r"classes\.txt: there are 3 classes but none of id '2'; ids must be 1, 2, …")


def test_split_without_images(root: Path) -> None:
    path = root / "train_test_split.txt"
    write_lines(path, [line[:-1] + "1" for line in path.read_text().splitlines()])
    mistake(root, "marks no image 0, so one of its two splits is empty")


def test_box_left_of_its_image(root: Path) -> None:
    edit(root / "bounding_boxes.txt", "3 1.0", "3 -1.0")
    mistake(root, r"bounding_boxes\.txt:1: box -1 2 8 12")


def test_path_that_climbs_out(root: Path) -> None:
    edit(root / "images.txt", "3 n02979186/", "3 ../../")
    mistake(root, "leaves its root")


def test_images_that_are_all_elsewhere(root: Path) -> None:
    (root / "images").rename(root / "pictures")
    mistake(root, r"none of the images in .*images\.txt is under .* \(the first is images/")


def test_image_that_is_missing_stays_in_the_index(root: Path) -> None:
    # Training replaces it and says so, validation lists it; refusing it here would stop both.
    (root / "images/n02979186/ILSVRC2012_val_00000001.JPEG").unlink()
    assert len(read_split(root, "val")) == 4
