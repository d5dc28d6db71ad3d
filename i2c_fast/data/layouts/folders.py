"""Class folders: ``train/<class>/*`` and ``val/<class>/*``, with an optional ``boxes.csv``.

The CSV has a line ``path,x0,y0,x1,y1`` for each box (several lines for several boxes of one image); the path is
relative to the data root, a header line is allowed.
"""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..index import Boxes, ImageIndex, class_folders, folders_in, images_by_class, training_index
from .annotations import Box, read_boxes
from .source import Source

SHAPE = "train/<class>/* and val/<class>/*"
BOXES = "boxes.csv"


def recognizes(source: Source) -> bool:
    """Whether the root looks like this layout."""
    train = source.root / "train"
    return train.is_dir() and bool(folders_in(train))


def read_train(source: Source, boxes: bool = False) -> ImageIndex:
    """Index ``train/<class>/*``; labels are the indices of the sorted class names."""
    index = training_index(source.root, source.root / "train")
    return replace(index, boxes=_boxes(source.root, index.paths)) if boxes else index


def read_val(source: Source) -> ImageIndex:
    """Index ``val/<class>/*`` with the boxes of ``boxes.csv`` where there is one."""
    root = source.root
    classes = class_folders(root / "train")
    folder = root / "val"
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; the folders layout keeps its validation images there")
    unknown = sorted(set(class_folders(folder)) - set(classes))
    if unknown:
        raise UserError(f"{folder / unknown[0]}: class {unknown[0]} has no folder under {root / 'train'}")
    paths, labels = images_by_class(root, folder, classes)
    return ImageIndex(root, classes, paths, labels, _boxes(root, paths))


def _boxes(root: Path, paths: Sequence[str]) -> tuple[Boxes, ...]:
    """Boxes of each image by ``boxes.csv``, if there is one.

    Raises:
        UserError: lines of another form, or for an image that is not there: its boxes would be lost.
    """
    path = root / BOXES
    boxes = read_boxes(path, "path,x0,y0,x1,y1", _parse, {}, header="path,") if path.exists() else {}
    for image in boxes:
        if not (root / image).is_file():
            raise UserError(f"{path}: image {image} is not under {root}; its path must start there")
    empty = np.zeros((0, 4), np.float32)
    return tuple(boxes.get(image, empty) for image in paths)


def _parse(line: str) -> tuple[str, Box]:
    try:
        image, *numbers = (cell.strip() for cell in next(csv.reader([line])))
    except csv.Error as error:
        raise ValueError(error) from None
    x0, y0, x1, y1 = map(float, numbers)
    return image, (x0, y0, x1, y1)
