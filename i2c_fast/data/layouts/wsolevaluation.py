"""Metadata folders of wsolevaluation, the field's evaluator: lists beside the images, which lie under the root.

What the field reports is its ``test`` split (or ``val``, where there is no ``test``), so that is our ``val``. Beside
``test``, its ``val`` is the fully supervised split that thresholds may be chosen on.

Objects are boxes (ILSVRC, CUB) or masks (OpenImages), whose paths start at the root or another folder.

The lists name no classes. Where the training images of each label lie in a folder of their own, its name is the class's
(``n01440764``), so that checkpoints fit the other layouts; otherwise names are the labels' digits.
"""

from pathlib import Path

import numpy as np

from ...errors import UserError
from ..index import ImageIndex, no_boxes
from .annotations import look_up, require_files
from .devkit import WNID, Devkit, read_devkit
from .source import Source
from .wsolevaluation_lists import (
    IDS,
    LABELS,
    OBJECTS,
    SIZES,
    find_metadata,
    lists_masks,
    read_ids,
    read_labels,
    read_masks,
    read_objects,
    read_sizes,
)

SHAPE = "give its lists as data.metadata=FOLDER"


def recognizes(source: Source) -> bool:
    """Whether metadata were given; the root's own look says nothing."""
    return source.metadata is not None


def read_train(source: Source, boxes: bool = False) -> ImageIndex:
    """Index the ``train`` lists."""
    return _read(source, "train", boxes)


def read_val(source: Source) -> ImageIndex:
    """Index the ``test`` lists, or ``val`` where there are none, with boxes or masks, and sizes."""
    return _read(source, "test" if (_lists(source) / "test").is_dir() else "val", True)


def read_fullsup(source: Source) -> ImageIndex:
    """Index the ``val`` lists beside ``test`` ones, with boxes and sizes.

    Raises:
        UserError: there are not both.
    """
    lists = _lists(source)
    if not ((lists / "test").is_dir() and (lists / "val").is_dir()):
        raise UserError(f"data.metadata: {lists} holds no val lists beside test lists, so no split to choose by")
    return _read(source, "val", True)


def _lists(source: Source) -> Path:
    if source.metadata is None:
        raise ValueError("this layout needs metadata")
    return find_metadata(source.metadata, ["train"], "data.metadata")


def _read(source: Source, split: str, with_boxes: bool) -> ImageIndex:
    lists = _lists(source)
    folder = lists / split
    training = read_labels(lists / "train")
    names = class_names(training)
    labels_of = training if split == "train" else read_labels(folder, len(names))
    paths = read_ids(folder)
    labels = np.array([look_up(labels_of, path, folder / LABELS) for path in paths], np.int64)
    if source.devkit is not None:
        devkit = read_devkit(source.devkit)
        _check_numbering(names, devkit, lists / "train" / LABELS)
        names, labels = devkit.classes, devkit.to_label[labels]
    elif _are_wnids(names) and list(names) != sorted(names):
        raise UserError(
            f"{lists / 'train' / LABELS} does not number classes by sorted WordNet id (its label 0 is {names[0]}); "
            "if it numbers them by devkit id − 1, give data.devkit=MAP_CLSLOC.TXT"
        )
    if not with_boxes:
        return require_files(ImageIndex(source.root, names, paths, labels, no_boxes(len(paths))), folder / IDS)
    sizes = read_sizes(folder)
    known = np.array([look_up(sizes, path, folder / SIZES) for path in paths], np.int64) if sizes else None
    if not lists_masks(folder):
        boxes = read_objects(folder, paths, sizes, "or masks in every line")
        return require_files(ImageIndex(source.root, names, paths, labels, boxes, known), folder / IDS)
    masks, root = read_masks(folder, paths, "or boxes in every line"), source.masks or source.root
    if not any((root / path).exists() for own in masks for path in own.objects):
        raise UserError(
            f"none of the masks in {folder / OBJECTS} is under {root} (the first is {masks[0].objects[0]}); "
            "data.masks must be the folder where their paths start"
        )
    index = ImageIndex(source.root, names, paths, labels, no_boxes(len(paths)), known, masks, root)
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
