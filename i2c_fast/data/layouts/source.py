"""Where a data set is, and what a layout provides."""

from pathlib import Path
from typing import NamedTuple, Protocol

from ..index import ImageIndex


class Source(NamedTuple):
    """Folders and files that describe a data set."""

    root: Path
    metadata: Path | None = None  # for layouts whose lists are apart from their images
    devkit: Path | None = None  # for lists that number ILSVRC's classes by devkit id − 1
    masks: Path | None = None  # where the paths of masks in such lists start; None: the root


class Layout(Protocol):
    """One way in which data sets are stored; each layout is a module with these names.

    `SHAPE` says in a few words what the layout looks for. The readers raise UserError for whatever does not fit: one
    line that names the file and the way out.
    """

    SHAPE: str

    def recognizes(self, source: Source) -> bool:
        """Whether the source looks like this layout."""

    def read_train(self, source: Source, boxes: bool = False) -> ImageIndex:
        """Index of the training images; they have no boxes, whatever the files know, unless asked for."""

    def read_val(self, source: Source) -> ImageIndex:
        """Index of the validation images, with boxes where they are known."""
