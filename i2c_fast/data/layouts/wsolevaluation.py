"""Metadata folders of wsolevaluation, the field's evaluator: lists beside the images, which lie under the root.

``train`` and ``test`` (or ``val``) each hold ``image_ids.txt`` (path), ``class_labels.txt`` (path,label),
``image_sizes.txt`` (path,width,height) and ``localization.txt`` (path,x0,y0,x1,y1, several lines for several boxes).
What the field reports is its ``test`` split, so that is our ``val``.

The lists name no classes. Where the training images of each label lie in a folder of their own, its name is the class's
(``n01440764``), so that checkpoints fit the other layouts; otherwise names are the labels' digits.
"""

from pathlib import Path

import numpy as np

from ...errors import UserError
from ..index import ImageIndex, folders_in, no_boxes
from .annotations import Box, Size, look_up, read_boxes, read_rows, read_table, require_files
from .devkit import WNID, Devkit, read_devkit
from .source import Source

SHAPE = "give its lists as data.metadata=FOLDER"
IDS = "image_ids.txt"
LABELS = "class_labels.txt"
SIZES = "image_sizes.txt"
BOXES = "localization.txt"

# A label beyond is a damaged line; believed, it would ask for as many classes.
_MAX_CLASSES = 1_000_000


def recognizes(source: Source) -> bool:
    """Whether metadata were given; the root's own look says nothing."""
    return source.metadata is not None


def read_train(source: Source) -> ImageIndex:
    """Index the ``train`` lists."""
    return _read(source, "train")


def read_val(source: Source) -> ImageIndex:
    """Index the ``test`` lists, or ``val`` where there are none, with boxes and sizes."""
    return _read(source, "val")


def _read(source: Source, split: str) -> ImageIndex:
    if source.metadata is None:
        raise ValueError("this layout needs metadata")
    metadata = _metadata_folder(source.metadata)
    training = _read_labels(metadata / "train" / LABELS, _MAX_CLASSES)
    folder = metadata / ("test" if split == "val" and (metadata / "test").is_dir() else split)
    names = class_names(training)
    labels_of = training if split == "train" else _read_labels(folder / LABELS, len(names))
    paths = tuple(path for _, path in read_rows(folder / IDS, "path", str))
    labels = np.array([look_up(labels_of, path, folder / LABELS) for path in paths], np.int64)
    if source.devkit is not None:
        devkit = read_devkit(source.devkit)
        _check_numbering(names, devkit, metadata / "train" / LABELS)
        names, labels = devkit.classes, devkit.to_label[labels]
    elif _are_wnids(names) and list(names) != sorted(names):
        raise UserError(
            f"{metadata / 'train' / LABELS} does not number classes by sorted WordNet id (its label 0 is {names[0]}); "
            "if it numbers them by devkit id − 1, give data.devkit=MAP_CLSLOC.TXT"
        )
    if split == "train":
        return require_files(ImageIndex(source.root, names, paths, labels, no_boxes(len(paths))), folder / IDS)
    sizes = _read_sizes(folder / SIZES)
    boxes = read_boxes(folder / BOXES, "path,x0,y0,x1,y1 (masks are not read)", _parse_box, sizes)
    index = ImageIndex(
        source.root,
        names,
        paths,
        labels,
        tuple(look_up(boxes, path, folder / BOXES) for path in paths),
        np.array([look_up(sizes, path, folder / SIZES) for path in paths], np.int64) if sizes else None,
    )
    return require_files(index, folder / IDS)


def class_names(labels: dict[str, int]) -> tuple[str, ...]:
    """Names of the classes 0 … highest label: their image folders' where each has one of its own, else digits."""
    count = max(labels.values()) + 1
    pairs = {(label, path.rpartition("/")[0].rpartition("/")[2]) for path, label in labels.items()}
    folders = {folder for _, folder in pairs} - {""}
    if len(pairs) == len(folders) == count:
        return tuple(folder for _, folder in sorted(pairs))
    return tuple(f"{label:0{len(str(count - 1))}d}" for label in range(count))


def _are_wnids(names: tuple[str, ...]) -> bool:
    return all(WNID.fullmatch(name) for name in names)


def _check_numbering(names: tuple[str, ...], devkit: Devkit, path: Path) -> None:
    """Raise where the lists' numbers cannot be devkit ids − 1."""
    if len(names) > len(devkit.numbered):
        known = len(devkit.numbered)
        raise UserError(f"{path}: label {len(names) - 1} is not among the {known} classes of {devkit.path}")
    if _are_wnids(names) and names != devkit.numbered[: len(names)]:
        wrong = next(label for label, name in enumerate(names) if name != devkit.numbered[label])
        raise UserError(
            f"{path}: label {wrong} is {names[wrong]}, in {devkit.path} it is {devkit.numbered[wrong]}; "
            "the lists do not number classes by devkit id − 1: leave data.devkit out"
        )


def _metadata_folder(metadata: Path) -> Path:
    """The folder that holds ``train``: the one given, or the only one in it."""
    if (metadata / "train").is_dir():
        return metadata
    inside = [name for name in folders_in(metadata) if (metadata / name / "train").is_dir()]
    if not inside:
        raise UserError(f"data.metadata: {metadata} has no folder train with {IDS} and {LABELS}")
    if len(inside) > 1:
        raise UserError(
            f"data.metadata: {metadata} holds {', '.join(inside)}; give one, as in data.metadata={metadata / inside[0]}"
        )
    return metadata / inside[0]


def _read_labels(path: Path, count: int) -> dict[str, int]:
    def parse(line: str) -> tuple[str, int]:
        image, text = line.rsplit(",", 1)
        label = int(text)
        if not 0 <= label < count:
            raise ValueError
        return image, label

    return read_table(path, f"path,label with a label of 0…{count - 1}", parse)


def _read_sizes(path: Path) -> dict[str, Size]:
    """Sizes, as far as they are known: some of the published files are missing or empty."""
    if not path.is_file() or not path.stat().st_size:
        return {}
    return read_table(path, "path,width,height", _parse_size)


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
