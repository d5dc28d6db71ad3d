"""Read data sets in several layouts on disk into an `ImageIndex`."""

import os
from pathlib import Path
from typing import Literal

from ...errors import UserError
from ..index import ImageIndex
from . import cub, folders, ilsvrc, wsolevaluation
from .blacklist import without
from .source import Layout, Source

Split = Literal["train", "val", "boxed_train", "fullsup"]

# In the order in which they are tried: almost every data set has class folders.
LAYOUTS: dict[str, Layout] = {"wsolevaluation": wsolevaluation, "cub": cub, "ilsvrc": ilsvrc, "folders": folders}


def recognize(root: str | Path, metadata: str | Path = "") -> str:
    """Name of the layout of a data set.

    Args:
        root: its folder.
        metadata: folder of wsolevaluation's lists, for that layout.

    Raises:
        UserError: the folder does not exist, or no layout fits it.
    """
    source = _source(root, metadata)
    for name, layout in LAYOUTS.items():
        if layout.recognizes(source):
            return name
    shapes = "; ".join(f"{name}: {layout.SHAPE}" for name, layout in LAYOUTS.items())
    raise UserError(f"data.root: {source.root} fits no known layout ({shapes})")


def read_split(
    root: str | Path,
    split: Split,
    layout: str = "auto",
    *,
    metadata: str | Path = "",
    devkit: str | Path = "",
    masks: str | Path = "",
    blacklist: str | Path = "",
) -> ImageIndex:
    """Index one split of the data set under `root`.

    Args:
        root: the data set's folder.
        split: ``train`` (labels only) or ``val`` (labels, and boxes where they are known), or one to choose thresholds
            by, never to train on: ``boxed_train``, which has boxes where layout and files know them, and ``fullsup``,
            wsolevaluation's own ``val`` lists beside the ``test`` lists that are our ``val``.
        layout: a name in `LAYOUTS`, or ``auto`` to recognize it.
        metadata: folder of wsolevaluation's lists, for that layout.
        devkit: ILSVRC's devkit or its ``map_clsloc.txt``, for such lists that number classes by devkit id − 1.
        masks: folder where the paths of masks in such lists start; default `root`.
        blacklist: file of image paths to leave out.

    Raises:
        UserError: nothing there, files that do not fit the layout, or a split it does not have.
    """
    source = _source(root, metadata, devkit, masks)
    name = recognize(root, metadata) if layout == "auto" else layout
    if name not in LAYOUTS:
        raise UserError(f"data.layout={name} is not one of auto, {', '.join(LAYOUTS)}")
    if not LAYOUTS[name].recognizes(source):
        raise UserError(f"data.root: {source.root} is not in the {name} layout ({LAYOUTS[name].SHAPE})")
    for option, given in (("metadata", metadata), ("devkit", devkit), ("masks", masks)):
        if given and name != "wsolevaluation":
            raise UserError(f"data.{option} is for data.layout=wsolevaluation, this is {name}; leave one of them out")
    if split == "fullsup" and name != "wsolevaluation":
        raise UserError(
            f"--threshold-from: val is the split that is scored in the {name} layout; "
            "only data.layout=wsolevaluation may have test beside it"
        )
    if split == "fullsup":
        index = wsolevaluation.read_fullsup(source)
    elif split == "val":
        index = LAYOUTS[name].read_val(source)
    else:
        index = LAYOUTS[name].read_train(source, boxes=split == "boxed_train")
    return without(index, _path(blacklist)) if blacklist else index


def _source(root: str | Path, metadata: str | Path, devkit: str | Path = "", masks: str | Path = "") -> Source:
    if not str(root):
        raise UserError("data.root is not set; give the data set's folder as data.root=FOLDER")
    if not _path(root).is_dir():
        raise UserError(f"data.root: {_path(root)} is not a folder")
    if metadata and not _path(metadata).is_dir():
        raise UserError(f"data.metadata: {_path(metadata)} is not a folder")
    return Source(_path(root), *(_path(given) if given else None for given in (metadata, devkit, masks)))


def _path(text: str | Path) -> Path:
    return Path(os.path.expanduser(text))
