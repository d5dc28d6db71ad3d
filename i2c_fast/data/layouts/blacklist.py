"""Images to leave out: a text file of their paths, relative to the data root, one a line; ``#`` begins a comment line.

One file serves both splits, so paths that are not in the split are passed over.
"""

from dataclasses import replace
from itertools import compress
from pathlib import Path

import numpy as np

from ...errors import UserError
from ..index import ImageIndex
from .annotations import read_lines


def read_blacklist(path: Path) -> frozenset[str]:
    """The paths in a blacklist.

    Raises:
        UserError: not a text file, or a path that no index can have.
    """
    names = set()
    for number, line in read_lines(path, errors="surrogateescape"):
        name = line.strip()
        if name.startswith("#"):
            continue
        if name.startswith("/") or ".." in name.split("/"):
            raise UserError(f"{path}:{number}: {name} must be relative to the data root and inside it")
        names.add(name)
    return frozenset(names)


def without(index: ImageIndex, path: Path) -> ImageIndex:
    """The index less the images in the blacklist `path`.

    Raises:
        UserError: an unreadable blacklist, or nothing left.
    """
    dropped = read_blacklist(path)
    keep = np.array([image not in dropped for image in index.paths])
    if not keep.any():
        raise UserError(f"data.blacklist: {path} names every image of the split under {index.root}")
    paths, boxes = tuple(compress(index.paths, keep)), tuple(compress(index.boxes, keep))
    sizes = None if index.sizes is None else index.sizes[keep]
    masks = None if index.masks is None else tuple(compress(index.masks, keep))
    return replace(index, paths=paths, labels=index.labels[keep], boxes=boxes, sizes=sizes, masks=masks)
