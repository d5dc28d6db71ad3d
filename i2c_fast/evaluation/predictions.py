"""Predicted classes of images, from a file, for Top-1 and Top-5."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..data.layouts.annotations import look_up, read_table
from ..data.layouts.wsolevaluation_lists import LABELS, read_labels
from ..errors import UserError


def read_ranks(path: Path, folder: Path, ids: Sequence[str]) -> NDArray[np.int64]:
    """Rank of each image's label among its predictions, 0 = first, int64 [n].

    Args:
        path: lines ``image_id,class,class,…``, best first, at least five classes, or all where there are fewer; the
            classes as ``class_labels.txt`` numbers them. A header that begins with ``image_id,`` is passed over, and so
            are other images. A label that is not listed has the rank after all classes.
        folder: the split's lists. ids: its images.

    Raises:
        UserError: a malformed line, too few classes or one twice, an image without a line or with two.
    """
    labels_of = read_labels(folder)
    labels = [look_up(labels_of, image, folder / LABELS) for image in ids]
    count = max(labels_of.values()) + 1
    predicted = read_table(path, "image_id,class,class,… with the best class first", _parse, header="image_id,")
    missing = [image for image in ids if image not in predicted]
    if missing:
        raise UserError(f"{path} has no line for {len(missing)} of {len(ids)} images, the first {missing[0]}")
    ranks = np.empty(len(ids), np.int64)
    for i, (image, label) in enumerate(zip(ids, labels, strict=True)):
        classes = predicted[image]
        if len(set(classes)) != len(classes) or len(classes) < min(5, count):
            raise UserError(f"{path}: {image} needs at least {min(5, count)} different classes, best first")
        ranks[i] = classes.index(label) if label in classes else max(count, len(classes))
    return ranks


def _parse(line: str) -> tuple[str, tuple[int, ...]]:
    cells = line.split(",")
    # An id may hold commas: the classes are the numbers at the end.
    classes = list(takewhile(lambda cell: cell.strip().isdecimal(), reversed(cells[1:])))
    if not classes:
        raise ValueError
    return ",".join(cells[: -len(classes)]), tuple(map(int, reversed(classes)))
