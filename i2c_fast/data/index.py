"""The one index every layout is read into: which images there are, their classes and, where known, their boxes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png", ".bmp", ".webp", ".tif", ".tiff"})


@dataclass(frozen=True)
class ImageIndex:
    """A split of a data set.

    Boxes are ``x0, y0, x1, y1`` in pixels of the stored image (no EXIF rotation), both ends inclusive, as ILSVRC's and
    CUB's annotations give them. This is the box convention everywhere in this package.
    """

    root: Path
    classes: tuple[str, ...]  # position = label; WordNet ids are sorted
    paths: tuple[str, ...]  # relative to root, with forward slashes; the image's id
    labels: NDArray[np.int64]  # [n]
    boxes: tuple[NDArray[np.float32], ...]  # n arrays [b, 4]; b = 0 where none is known

    def __post_init__(self) -> None:
        if not self.paths:
            raise UserError(f"no images found under {self.root}")
        if not len(self.paths) == len(self.labels) == len(self.boxes):
            raise ValueError("paths, labels and boxes must have equal length")
        repeated = _first_repeated(self.paths)
        if repeated:
            raise UserError(f"{self.root}: image {repeated} is listed twice")
        for path in self.paths:
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise UserError(f"{self.root}: image path {path} leaves the data root; make it relative and inside")
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


def _first_repeated(names: tuple[str, ...]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def no_boxes(count: int) -> tuple[NDArray[np.float32], ...]:
    """Empty box arrays for images that have none."""
    return tuple(np.zeros((0, 4), np.float32) for _ in range(count))


def images_in(folder: Path) -> list[str]:
    """Names of the image files directly inside a folder, sorted; hidden files are passed over."""
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    )


def class_folders(folder: Path) -> tuple[str, ...]:
    """Names of the class folders inside a folder, sorted (for WordNet ids: the field's label order)."""
    names = tuple(sorted(e.name for e in folder.iterdir() if e.is_dir() and not e.name.startswith(".")))
    if not names:
        raise UserError(f"{folder} has no class folders; expected one folder of images for each class")
    return names


def images_by_class(root: Path, folder: Path, classes: tuple[str, ...]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Paths relative to `root`, and labels, of ``folder/<class>/<image>``."""
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if (folder / name).is_dir():
            here = (folder / name).relative_to(root)
            found = [(here / image).as_posix() for image in images_in(folder / name)]
            paths += found
            labels += [label] * len(found)
    return tuple(paths), np.asarray(labels, np.int64)
