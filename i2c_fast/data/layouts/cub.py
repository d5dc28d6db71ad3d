"""CUB-200-2011's own files, as its archive unpacks; the root is ``CUB_200_2011`` or the folder it lies in.

``bounding_boxes.txt`` gives ``x y width height``. The field takes x1 = x + width and y1 = y + height
(wsolevaluation's lists agree on every image), so we do. Class names keep their number (``001.Black_footed_Albatross``):
they are the names of the image folders, unique, and sorted in label order. Label = class id − 1.
"""

from pathlib import Path

import numpy as np

from ...errors import UserError
from ..index import ImageIndex, no_boxes
from .annotations import Box, look_up, read_boxes, read_table, require_files
from .source import Source

SHAPE = "images.txt, train_test_split.txt and images/, there or in CUB_200_2011"
IMAGES = "images.txt"
LABELS = "image_class_labels.txt"
SPLIT = "train_test_split.txt"
BOXES = "bounding_boxes.txt"
CLASSES = "classes.txt"


def recognizes(source: Source) -> bool:
    """Whether the root looks like this layout."""
    return all((_folder(source.root) / name).is_file() for name in (IMAGES, SPLIT))


def read_train(source: Source, boxes: bool = False) -> ImageIndex:
    """Index the images that ``train_test_split.txt`` marks 1."""
    return _read(_folder(source.root), "1", boxes)


def read_val(source: Source) -> ImageIndex:
    """Index the images that ``train_test_split.txt`` marks 0, with their boxes."""
    return _read(_folder(source.root), "0", True)


def _folder(root: Path) -> Path:
    inside = root / "CUB_200_2011"
    return inside if (inside / IMAGES).is_file() else root


def _read(folder: Path, mark: str, with_boxes: bool) -> ImageIndex:
    classes = _classes(folder / CLASSES)
    names = read_table(folder / IMAGES, "id path", _pair)
    marks = read_table(folder / SPLIT, "id 0 (test) or id 1 (train)", _mark)
    ids = [image for image in names if look_up(marks, image, folder / SPLIT) == mark]
    if not ids:
        raise UserError(f"{folder / SPLIT} marks no image {mark}, so one of its two splits is empty")
    label_of = _labels(folder / LABELS, len(classes))
    labels = np.array([look_up(label_of, image, folder / LABELS) for image in ids], np.int64)
    boxes = no_boxes(len(ids))
    if with_boxes:
        boxes_of = read_boxes(folder / BOXES, "id x y width height", _box, {})
        boxes = tuple(look_up(boxes_of, image, folder / BOXES) for image in ids)
    paths = tuple(f"images/{names[image]}" for image in ids)
    return require_files(ImageIndex(folder, classes, paths, labels, boxes), folder / IMAGES)


def _classes(path: Path) -> tuple[str, ...]:
    names = read_table(path, "class_id class_name", _pair)
    try:
        return tuple(names[str(number)] for number in range(1, len(names) + 1))
    except KeyError as error:
        raise UserError(f"{path}: there are {len(names)} classes but none of id {error}; ids must be 1, 2, …") from None


def _labels(path: Path, count: int) -> dict[str, int]:
    def parse(line: str) -> tuple[str, int]:
        image, number = _pair(line)
        if not 1 <= int(number) <= count:
            raise ValueError
        return image, int(number) - 1

    return read_table(path, f"id class_id, the class one of 1…{count}", parse)


def _pair(line: str) -> tuple[str, str]:
    key, value = line.split(maxsplit=1)
    return key, value.strip()


def _mark(line: str) -> tuple[str, str]:
    image, mark = line.split()
    if mark not in ("0", "1"):
        raise ValueError
    return image, mark


def _box(line: str) -> tuple[str, Box]:
    image, *numbers = line.split()
    x, y, width, height = map(float, numbers)
    return image, (x, y, x + width, y + height)
