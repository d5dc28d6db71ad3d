"""Class folders: ``train/<class>/*`` and ``val/<class>/*``, with an optional ``boxes.csv``.

The CSV has a line ``path,x0,y0,x1,y1`` for each box (several lines for several boxes of one image); the path is
relative to the data root, a header line is allowed.
"""

import csv
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..index import ImageIndex, class_folders, images_by_class, no_boxes

BOXES = "boxes.csv"


def recognizes(root: Path) -> bool:
    """Whether `root` looks like this layout."""
    train = root / "train"
    return train.is_dir() and any(entry.is_dir() for entry in train.iterdir())


def read_train(root: Path) -> ImageIndex:
    """Index ``train/<class>/*``; labels are the places of the sorted class names."""
    classes = class_folders(root / "train")
    paths, labels = images_by_class(root, root / "train", classes)
    return ImageIndex(root, classes, paths, labels, no_boxes(len(paths)))


def read_val(root: Path) -> ImageIndex:
    """Index ``val/<class>/*`` with the boxes of ``boxes.csv`` where there is one."""
    classes = class_folders(root / "train")
    folder = root / "val"
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; the folders layout keeps its validation images there")
    unknown = sorted(set(class_folders(folder)) - set(classes))
    if unknown:
        raise UserError(f"{folder / unknown[0]}: class {unknown[0]} has no folder under {root / 'train'}")
    paths, labels = images_by_class(root, folder, classes)
    boxes = read_boxes_csv(root / BOXES) if (root / BOXES).is_file() else {}
    empty = np.zeros((0, 4), np.float32)
    found = tuple(np.asarray(boxes[path], np.float32) if path in boxes else empty for path in paths)
    return ImageIndex(root, classes, paths, labels, found)


def read_boxes_csv(path: Path) -> dict[str, list[list[float]]]:
    """Boxes of each image path in a ``path,x0,y0,x1,y1`` file."""
    boxes: dict[str, list[list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), 1):
            if not row or (number == 1 and row[0].strip().lower() == "path"):
                continue
            try:
                image, *numbers = (cell.strip() for cell in row)
                x0, y0, x1, y1 = map(float, numbers)
            except ValueError:
                raise UserError(f"{path}:{number}: expected path,x0,y0,x1,y1, got {','.join(row)!r}") from None
            boxes.setdefault(image, []).append([x0, y0, x1, y1])
    return boxes
