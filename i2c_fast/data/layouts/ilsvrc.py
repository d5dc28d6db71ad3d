"""ILSVRC 2012 as people keep it; labels are the indices of the sorted WordNet ids.

| part | where, relative to the root or to ``ILSVRC`` in it |
|---|---|
| training images | ``Data/CLS-LOC/train/<wnid>/*``, or ``train/<wnid>/*`` where there are annotations |
| validation images | ``val/*`` or ``val/<wnid>/*`` beside ``train`` |
| their class and boxes | ``Annotations/CLS-LOC/val/*.xml``, else Kaggle's ``LOC_val_solution.csv`` (or beside ILSVRC) |
"""

from pathlib import Path, PurePosixPath

import numpy as np

from ...errors import UserError
from ..index import ImageIndex, class_folders, first_repeated, folders_in, images_in, training_index
from .ilsvrc_annotations import SOLUTION, XML_FOLDER, find_annotations, read_annotations
from .source import Source

SHAPE = "Data/CLS-LOC/train, there or in ILSVRC, or train beside annotations"
IMAGES = Path("Data/CLS-LOC")


def recognizes(source: Source) -> bool:
    """Whether the root looks like this layout."""
    return _find(source.root) is not None


def read_train(source: Source, boxes: bool = False) -> ImageIndex:
    """Index ``train/<wnid>/*``; its annotations, which only some of the images have, are not read."""
    base, images, _ = _found(source.root)
    return training_index(base, base / images / "train")


def read_val(source: Source) -> ImageIndex:
    """Index ``val`` in the order of its file names, with class and boxes from the annotations."""
    base, images, annotations = _found(source.root)
    train, val = base / images / "train", base / images / "val"
    classes = class_folders(train)
    if not val.is_dir():
        raise UserError(f"{val} does not exist; the ilsvrc layout keeps its validation images there")
    if annotations is None:
        raise UserError(
            f"{base} has neither {XML_FOLDER} nor {SOLUTION}, which give the validation images' boxes; "
            f"add one, or read class folders without them: data.layout=folders data.root={base / images}"
        )
    paths = _paths(base, val)
    repeated = first_repeated(path.stem for path in paths)
    if repeated is not None:
        raise UserError(f"{val} holds two images of the name {repeated}; only one can be the annotated one")
    annotated = read_annotations(annotations, [path.stem for path in paths])
    label_of = {wnid: label for label, wnid in enumerate(classes)}
    for path, found in zip(paths, annotated, strict=True):
        if found.wnid not in label_of:
            raise UserError(f"{found.location}: class {found.wnid} has no folder under {train}")
        if (base / path.parent) != val and path.parent.name != found.wnid:
            raise UserError(f"{found.location}: class {found.wnid}, but the image lies in {base / path.parent}")
    labels = np.array([label_of[found.wnid] for found in annotated], np.int64)
    boxes = tuple(found.boxes for found in annotated)
    sizes = np.array([found.size or (0, 0) for found in annotated], np.int64).reshape(-1, 2)
    return ImageIndex(base, classes, tuple(map(str, paths)), labels, boxes, sizes)


def _find(root: Path) -> tuple[Path, Path, Path | None] | None:
    """Folder where image paths start, where in it train and val are, and the annotations; None for another layout."""
    for base in (root, root / "ILSVRC"):
        if (base / IMAGES / "train").is_dir():
            # Kaggle puts its CSV beside ILSVRC. Absolute, since the parent of "." would be "." again.
            return base, IMAGES, find_annotations(base, base.absolute().parent)
        # Without annotations in it, such a tree is any class folders.
        annotations = find_annotations(base)
        if annotations is not None and (base / "train").is_dir():
            return base, Path(), annotations
    return None


def _found(root: Path) -> tuple[Path, Path, Path | None]:
    tree = _find(root)
    if tree is None:
        raise ValueError(f"{root} is not in this layout")
    return tree


def _paths(base: Path, val: Path) -> list[PurePosixPath]:
    """Paths of the images in `val` and in its class folders, ordered by name as if they all lay in `val`."""
    here = PurePosixPath(val.relative_to(base).as_posix())
    paths = [here / name for name in images_in(val)]
    for wnid in folders_in(val):
        paths += [here / wnid / name for name in images_in(val / wnid)]
    return sorted(paths, key=lambda path: path.name)
