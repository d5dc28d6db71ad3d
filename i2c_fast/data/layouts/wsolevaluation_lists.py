"""The lists of wsolevaluation's metadata folders, whose images may be anywhere or missing.

Each split (``test``, ``val``, ``train``) is a folder of ``image_ids.txt`` (path), ``class_labels.txt`` (path,label),
``image_sizes.txt`` (path,width,height) and ``localization.txt``, which has several lines for several objects:
path,x0,y0,x1,y1 for boxes, or path,mask,ignore for masks, whose ignore mask stands on an image's first line.
"""

from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError
from ..index import Boxes, MaskPaths, check_names, folders_in
from .annotations import Box, Size, look_up, read_boxes, read_rows, read_table

IDS = "image_ids.txt"
LABELS = "class_labels.txt"
SIZES = "image_sizes.txt"
OBJECTS = "localization.txt"

# A larger label is a damaged line; it would create as many classes.
MAX_CLASSES = 1_000_000


def find_metadata(metadata: Path, splits: Sequence[str], option: str) -> Path:
    """The folder that holds one of the splits: `metadata`, or the only such folder in it.

    Args:
        option: where `metadata` was given, for the error.

    Raises:
        UserError: there is none, or there are several.
    """

    def holds_one(folder: Path) -> bool:
        return any((folder / split).is_dir() for split in splits)

    if holds_one(metadata):
        return metadata
    inside = [name for name in folders_in(metadata) if holds_one(metadata / name)]
    if not inside and (metadata / IDS).is_file():
        raise UserError(f"{option}: {metadata} is the folder of one split; give its parent, {option}={metadata.parent}")
    if not inside:
        raise UserError(f"{option}: {metadata} has no folder {' or '.join(splits)} with {IDS} and {LABELS}")
    if len(inside) > 1:
        raise UserError(
            f"{option}: {metadata} holds {', '.join(inside)}; give one, as in {option}={metadata / inside[0]}"
        )
    return metadata / inside[0]


def read_ids(folder: Path) -> tuple[str, ...]:
    """Paths of a split's images, in order.

    Raises:
        UserError: no such list, one path twice, or one that is not plain and relative.
    """
    ids = tuple(path for _, path in read_rows(folder / IDS, "path", str))
    check_names(ids, folder / IDS)
    return ids


def read_labels(folder: Path, count: int = MAX_CLASSES) -> dict[str, int]:
    """Label, below `count`, of each path."""

    def parse(line: str) -> tuple[str, int]:
        image, text = line.rsplit(",", 1)
        label = int(text)
        if not 0 <= label < count:
            raise ValueError
        return image, label

    return read_table(folder / LABELS, f"path,label with a label of 0…{count - 1}", parse)


def read_sizes(folder: Path) -> dict[str, Size]:
    """Size of each path, as far as they are known: some of the published files are missing or empty."""
    path = folder / SIZES
    if not path.is_file() or not path.stat().st_size:
        return {}
    return read_table(path, "path,width,height", _parse_size)


def read_objects(folder: Path, ids: Sequence[str], sizes: dict[str, Size], hint: str) -> tuple[Boxes, ...]:
    """Boxes of each image, at least one.

    Args:
        hint: what to do if the lines name masks, for the error.

    Raises:
        UserError: a malformed line, a box outside its image, or an image without a line.
    """
    boxes = read_boxes(folder / OBJECTS, f"path,x0,y0,x1,y1 ({hint})", _parse_box, sizes)
    return tuple(look_up(boxes, path, folder / OBJECTS) for path in ids)


def lists_masks(folder: Path) -> bool:
    """Whether a split's objects are masks, as the first line has it."""
    rows = read_rows(folder / OBJECTS, "path,x0,y0,x1,y1 or path,mask,ignore", lambda line: line.count(",") == 2)
    return next(rows)[1]


def read_masks(folder: Path, ids: Sequence[str], hint: str) -> tuple[MaskPaths, ...]:
    """Mask files of each image, at least one.

    Args:
        hint: what to do if the lines name boxes, for the error.

    Raises:
        UserError: a malformed line, a second ignore mask, a path that is not plain and relative, or an image without a
            line.
    """
    found: dict[str, MaskPaths] = {}
    for line, (path, mask, ignore) in read_rows(folder / OBJECTS, f"path,mask,ignore ({hint})", _parse):
        if path in found and ignore:
            raise UserError(f"{line}: {path} has an ignore mask on its first line already; leave this one out")
        check_names({mask, ignore} - {""}, line)
        before = found.get(path, MaskPaths((), ignore or None))
        found[path] = before._replace(objects=(*before.objects, mask))
    return tuple(look_up(found, path, folder / OBJECTS) for path in ids)


def _parse_size(line: str) -> tuple[str, Size]:
    path, width, height = line.rsplit(",", 2)
    size = int(width), int(height)
    if min(size) < 1:
        raise ValueError
    return path, size


def _parse_box(line: str) -> tuple[str, Box]:
    path, *numbers = line.rsplit(",", 4)
    x0, y0, x1, y1 = map(float, numbers)
    return path, (x0, y0, x1, y1)


def _parse(line: str) -> tuple[str, str, str]:
    path, mask, ignore = line.split(",")
    if not mask:
        raise ValueError
    return path, mask, ignore
