"""The one index every layout is read into: which images there are, their classes and, where known, their boxes."""

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff"})

Boxes = NDArray[np.float32]  # [b, 4]

# A part of a path that is empty, "." or "..": it could climb out of the root, or give one image two names. A zero byte
# ends a path for the operating system.
_NOT_A_NAME = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|\0")


class MaskPaths(NamedTuple):
    """Files of an image's masks, relative to the folder of all masks."""

    objects: tuple[str, ...]
    ignore: str | None


@dataclass(frozen=True)
class ImageIndex:
    """A split of a data set.

    Boxes are ``x0, y0, x1, y1`` in pixels of the stored image (no EXIF rotation), both ends inclusive, as ILSVRC's and
    CUB's annotations give them. This is the box convention everywhere in this package. Paths stay inside the root by
    their names; symbolic links in it are followed, because people spread data sets over disks with them.
    """

    root: Path
    classes: tuple[str, ...]  # position = label; WordNet ids are sorted
    paths: tuple[str, ...]  # relative to root, with forward slashes; the image's id
    labels: NDArray[np.int64]  # [n]
    boxes: tuple[Boxes, ...]  # n arrays [b, 4]; b = 0 where none is known
    sizes: NDArray[np.int64] | None = None  # [n, 2] annotated width and height, 0 0 where not given; None: none given
    masks: tuple[MaskPaths, ...] | None = None  # n; None: objects have no masks
    mask_root: Path | None = None  # where the paths of masks start

    def __post_init__(self) -> None:
        if not self.paths:
            raise UserError(f"no images found under {self.root}")
        if not len(self.paths) == len(self.labels) == len(self.boxes):
            raise ValueError("paths, labels and boxes must have equal length")
        if self.sizes is not None and self.sizes.shape != (len(self.paths), 2):
            raise ValueError(f"sizes must be [{len(self.paths)}, 2], got {list(self.sizes.shape)}")
        check_names(self.paths, self.root)
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classes)))
        if len(wrong):
            raise UserError(
                f"{self.root}: image {self.paths[wrong[0]]} has label {self.labels[wrong[0]]}, "
                f"outside 0…{len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def fingerprint(self) -> str:
        """Digest of paths, labels and class names: equal for equal splits, wherever they lie."""
        parts = "\n".join((*self.classes, *self.paths)).encode(errors="surrogateescape") + self.labels.tobytes()
        return hashlib.sha256(parts).hexdigest()

    def file(self, i: int) -> Path:
        """Where the i-th image is stored."""
        return self.root / self.paths[i]


def check_names(paths: Collection[str], location: Path | str) -> None:
    """Refuse paths that are not relative, inside and plain, or that come twice.

    Args:
        location: where they stand, for the error.

    Raises:
        UserError: such a path.
    """
    repeated = first_repeated(paths)
    if repeated is not None:
        raise UserError(f"{location}: image {repeated} is listed twice")
    for path in paths:
        if _NOT_A_NAME.search(path):
            raise UserError(
                f"{location}: image path {path!r} leaves its root or is not plain; "
                "make it relative and inside, without empty parts, '.' and '..'"
            )


def inside(box: Sequence[float], size: Sequence[float]) -> bool:
    """Whether a box is finite, with ``0 ≤ x0 ≤ x1 ≤ width`` and y likewise: official boxes touch both ends."""
    x0, y0, x1, y1 = box
    return math.isfinite(sum(box)) and 0 <= x0 <= x1 <= size[0] and 0 <= y0 <= y1 <= size[1]


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that is there more than once, or None."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def no_boxes(count: int) -> tuple[Boxes, ...]:
    """Empty box arrays for images that have none; all are one array, as a million would take 100 MB."""
    empty = np.zeros((0, 4), np.float32)
    return (empty,) * count


def images_in(folder: Path) -> list[str]:
    """Names of the image files directly inside a folder, sorted; hidden files are passed over.

    A dangling link is listed: reading it raises an error that names it; leaving it out would lose it silently.
    """
    return _names(folder, _is_image)


def folders_in(folder: Path) -> list[str]:
    """Names of the folders directly inside a folder, sorted; hidden ones are passed over."""
    return _names(folder, os.DirEntry.is_dir)


def _is_image(entry: os.DirEntry[str]) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix in IMAGE_SUFFIXES and (entry.is_file() or (entry.is_symlink() and not os.path.exists(entry)))


def _names(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    # A scan brings each entry's kind with its name: asking for every file's would take minutes on a network disk.
    try:
        with os.scandir(folder) as found:
            return sorted(entry.name for entry in found if not entry.name.startswith(".") and wanted(entry))
    except OSError as error:
        raise UserError(f"cannot list {error.filename or folder}: {error.strerror}") from None


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the class folders inside a folder, sorted (for WordNet ids: the field's label order)."""
    names = tuple(folders_in(folder))
    if not names:
        raise UserError(f"{folder} has no class folders; expected one folder of images for each class")
    return names


def images_by_class(root: Path, folder: Path, classes: tuple[str, ...]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Paths relative to `root`, and labels, of ``folder/<class>/<image>``; a class may have no folder there."""
    here = folder.relative_to(root).as_posix()
    found = [images_in(folder / name) if (folder / name).is_dir() else [] for name in classes]
    paths = tuple(f"{here}/{name}/{image}" for name, images in zip(classes, found, strict=True) for image in images)
    return paths, np.repeat(np.arange(len(classes)), [len(images) for images in found])


def training_index(root: Path, folder: Path) -> ImageIndex:
    """Index of ``folder/<class>/<image>``; labels are the indices of the sorted class names.

    Raises:
        UserError: no class folders, or one without images: a class that was never unpacked, or images a level deeper.
    """
    classes = class_folders(folder)
    paths, labels = images_by_class(root, folder, classes)
    empty = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    if len(empty) and len(labels):
        raise UserError(f"{folder / classes[empty[0]]} holds no images; unpack them there, or remove the folder")
    return ImageIndex(root, classes, paths, labels, no_boxes(len(paths)))
