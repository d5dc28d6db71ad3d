"""The index: what it refuses, and how files on disk become its paths, labels and classes."""

from pathlib import Path

import numpy as np
import pytest

from i2c_fast.data.index import ImageIndex, class_folders, images_by_class, images_in, no_boxes
from i2c_fast.errors import UserError

ROOT = Path("somewhere")


def index(*paths: str, labels: list[int] | None = None, root: Path = ROOT) -> ImageIndex:
    numbers = np.asarray([0] * len(paths) if labels is None else labels, np.int64)
    return ImageIndex(root, ("cat", "dog"), paths, numbers, no_boxes(len(paths)))


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_length_is_the_number_of_images_and_files_lie_under_the_root() -> None:
    found = index("cat/1.png", "dog/2.png")
    assert len(found) == 2
    assert found.file(1) == ROOT / "dog" / "2.png"


def test_no_image_is_an_error_that_names_the_root() -> None:
    with pytest.raises(UserError, match="no images found under somewhere"):
        index()


def test_repeated_image_is_an_error_that_names_it() -> None:
    with pytest.raises(UserError, match=r"image a\.png is listed twice"):
        index("b.png", "a.png", "c.png", "a.png")


@pytest.mark.parametrize("path", ["../a.png", "cat/../../a.png", "cat/..", "/etc/a.png", "cat/a\0.png"])
def test_paths_that_leave_the_root_are_refused(path: str) -> None:
    with pytest.raises(UserError, match="leaves its root"):
        index("fine.png", path)


def test_two_dots_within_a_name_are_no_climbing() -> None:
    assert len(index("a..png", "..b/c.png", "...png")) == 3


@pytest.mark.parametrize("label", [-1, 2])
def test_label_outside_the_classes_is_an_error_that_names_image_and_range(label: int) -> None:
    with pytest.raises(UserError, match=rf"image b\.png has label {label}, outside 0…1"):
        index("a.png", "b.png", labels=[1, label])


def test_columns_of_unequal_length_are_a_programming_error() -> None:
    with pytest.raises(ValueError, match="equal length"):
        index("a.png", "b.png", labels=[0])
    with pytest.raises(ValueError, match="equal length"):
        ImageIndex(ROOT, ("cat",), ("a.png",), np.zeros(1, np.int64), no_boxes(2))


def test_no_boxes_are_arrays_that_take_part_in_box_arithmetic() -> None:
    assert [(boxes.shape, boxes.dtype) for boxes in no_boxes(2)] == [((0, 4), np.float32)] * 2


def test_fingerprint_is_that_of_the_split_wherever_it_lies() -> None:
    first = index("a.png", "b.png", labels=[0, 1])
    assert first.fingerprint() == index("a.png", "b.png", labels=[0, 1], root=Path("/elsewhere")).fingerprint()
    others = [
        index("a.png", "c.png", labels=[0, 1]),
        index("a.png", "b.png", labels=[1, 0]),
        index("b.png", "a.png", labels=[0, 1]),
        ImageIndex(ROOT, ("cat", "cow"), first.paths, first.labels, first.boxes),
    ]
    assert first.fingerprint() not in {other.fingerprint() for other in others}


def test_fingerprint_takes_names_that_are_not_utf8() -> None:
    name = b"caf\xe9.png".decode(errors="surrogateescape")  # as Python lists such a file
    assert index(name).fingerprint() != index("cafe.png").fingerprint()


def test_images_of_a_folder_are_its_visible_picture_files_in_order(tmp_path: Path) -> None:
    touched(tmp_path, "b.JPEG", "a.jpg", "C.Png", "d.tiff", "e.webp", ".hidden.png", "notes.txt", "png", "deeper/f.png")
    (tmp_path / "folder.png").mkdir()
    assert images_in(tmp_path) == ["C.Png", "a.jpg", "b.JPEG", "d.tiff", "e.webp"]


def test_class_folders_are_the_visible_folders_in_order(tmp_path: Path) -> None:
    touched(tmp_path, "n02/x", "n01/x", "n10/x", ".cache/x", "n00")
    assert class_folders(tmp_path) == ("n01", "n02", "n10")


def test_folder_without_class_folders_is_an_error_that_says_what_is_expected(tmp_path: Path) -> None:
    touched(tmp_path, "a.png")
    with pytest.raises(UserError, match="has no class folders; expected one folder of images for each class"):
        class_folders(tmp_path)


def test_images_by_class_are_relative_to_the_root_and_labelled_by_class_position(tmp_path: Path) -> None:
    touched(tmp_path, "val/cat/2.png", "val/cat/1.png", "val/dog/1.png", "val/emu/1.png")
    paths, labels = images_by_class(tmp_path, tmp_path / "val", ("cat", "cow", "dog"))
    assert paths == ("val/cat/1.png", "val/cat/2.png", "val/dog/1.png")
    assert (labels.tolist(), labels.dtype) == ([0, 0, 2], np.int64)
