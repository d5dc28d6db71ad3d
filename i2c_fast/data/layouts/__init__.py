"""How data sets lie on disk; every layout becomes the one `ImageIndex`."""

from pathlib import Path
from types import ModuleType
from typing import Literal

from ...errors import UserError
from ..index import ImageIndex
from . import folders, ilsvrc

LAYOUTS: dict[str, ModuleType] = {"ilsvrc": ilsvrc, "folders": folders}


def recognize(root: Path) -> str:
    """Name of the layout under `root`.

    Raises:
        UserError: the folder does not exist, or no layout fits it.
    """
    if not root.is_dir():
        raise UserError(f"data.root: {root} is not a folder")
    for name, layout in LAYOUTS.items():
        if layout.recognizes(root):
            return name
    raise UserError(f"data.root: {root} fits no known layout ({', '.join(LAYOUTS)}); see the README for their trees")


def read_split(root: str | Path, split: Literal["train", "val"], layout: str = "auto") -> ImageIndex:
    """Index one split of the data set under `root`.

    Args:
        root: the data set's folder.
        split: ``train`` (labels only) or ``val`` (labels, and boxes where they are known).
        layout: a name in `LAYOUTS`, or ``auto`` to recognize it.

    Raises:
        UserError: nothing there, or files that do not fit the layout.
    """
    if not str(root):
        raise UserError("data.root is not set; give the data set's folder as data.root=FOLDER")
    folder = Path(root).expanduser()
    name = recognize(folder) if layout == "auto" else layout
    if name not in LAYOUTS:
        raise UserError(f"data.layout={name} is not one of auto, {', '.join(LAYOUTS)}")
    if not LAYOUTS[name].recognizes(folder):
        raise UserError(f"data.root: {folder} is not in the {name} layout (data.layout=auto recognizes it)")
    index: ImageIndex = getattr(LAYOUTS[name], f"read_{split}")(folder)
    return index
