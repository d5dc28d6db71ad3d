"""Read saved maps of any method by image id, without trusting the files.

A file is opened only if it is inside its folder, its header is checked before its values are read, and nothing in it is
executed: Python objects are refused unread.
"""

import io
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ..errors import UserError

SUFFIXES = (".npy", ".npz")

# Of a map, and of the images whose size maps are brought to: half a gigabyte of float64.
MAX_PIXELS = 1 << 26

# The header and the first values; NumPy writes headers of 128 bytes and accepts none above 10,000.
_HEAD = 1 << 14
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}

# NumPy parses a header as Python, and CPython counts how deep that parser is nested in all threads together: where they
# switch within it, it fails with SystemError (seen with 3.11.7).
_PARSING = threading.Lock()

# What a damaged archive raises: RuntimeError is an encrypted one, NotImplementedError one of another kind.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError, RuntimeError)

Map = NDArray[np.floating]  # float32 or float64 [h, w]


def open_maps(path: Path) -> "SavedMaps":
    """Maps in a folder, as ``<image id>.npy`` or ``<image id>.npz`` with one array inside, or all in one ``.npz``.

    An id keeps its extension and may hold slashes: ``val/1.JPEG`` has ``val/1.JPEG.npy``, or the array of the name
    ``val/1.JPEG`` in the one file.

    Raises:
        UserError: neither a folder nor an ``.npz`` file.
    """
    if path.is_dir():
        return MapFolder(path)
    if path.suffix == ".npz" and path.is_file():
        return MapArchive(path)
    raise UserError(f"{path} is neither a folder of maps (<image id>.npy or .npz) nor one .npz of them all")


def require_maps(maps: "SavedMaps", ids: Sequence[str], path: Path) -> None:
    """Raise UserError, with the count and the first few ids, unless every image has a map at `path`."""
    for image in ids:
        if "\\" in image:  # separates folders on Windows
            raise UserError(f"image id {image!r} has a backslash; write / between folders")
    missing = [image for image in ids if not maps.has(image)]
    if missing:
        first = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise UserError(
            f"{path} has no map for {len(missing)} of {len(ids)} images: {first} (as <image id>.npy or .npz)"
        )


class MapFolder:
    """Saved maps of images in files of their own. Links are followed inside the folder and not out of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.real = root, os.path.realpath(root)

    def has(self, image: str) -> bool:
        """Whether there is a map of the image with this id."""
        return bool(self._files(image))

    def read(self, image: str, size: tuple[int, int] | None = None) -> Map:
        """The image's map, see `read_map`."""
        files = self._files(image)
        if len(files) != 1:
            found = "both .npy and .npz" if files else "no map"
            raise UserError(f"{self.root / image} has {found}; expected one of <image id>.npy and <image id>.npz")
        path = files[0]
        real = os.path.realpath(path)
        if os.path.commonpath([real, self.real]) != self.real:
            raise UserError(f"{path} leads out of {self.root}; copy the map into the folder")
        with _reading(str(path)):
            if not S_ISREG(os.stat(real).st_mode):  # opening a pipe would block
                raise UserError(f"{path} is not a file")
            with open(real, "rb") as file:
                if path.suffix == ".npy":
                    return read_map(file, str(path), size)
                with zipfile.ZipFile(file) as archive:
                    members = archive.infolist()
                    if len(members) != 1:
                        raise UserError(f"{path} holds {len(members)} arrays; expected the one map of its image")
                    return _read_member(archive, members[0], str(path), size)

    def images(self) -> Iterator[str]:
        """Ids of all images with a map, in no order."""
        for folder, _, names in os.walk(self.real):
            here = os.path.relpath(folder, self.real)
            for name in names:
                stem, suffix = os.path.splitext(name)
                if suffix in SUFFIXES:
                    yield Path(here, stem).as_posix()

    def _files(self, image: str) -> list[Path]:
        # A dangling link counts: opening it raises an error that names it.
        return [path for suffix in SUFFIXES if os.path.lexists(path := self.root / f"{image}{suffix}")]


class MapArchive:
    """Saved maps of images in one ``.npz``, as ``numpy.savez(file, **{image: map})`` writes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _reading(str(path)):
            self.archive = zipfile.ZipFile(path)  # threads may read from it at once
        members = self.archive.infolist()
        self.members = {member.filename.removesuffix(".npy"): member for member in members}
        if len(self.members) != len(members):
            raise UserError(f"{path} holds {len(members)} maps of {len(self.members)} images; expected one of each")

    def has(self, image: str) -> bool:
        """Whether there is a map of the image with this id."""
        return image in self.members

    def read(self, image: str, size: tuple[int, int] | None = None) -> Map:
        """The image's map, see `read_map`."""
        name = f"{self.path}: {image}"
        with _reading(name):
            return _read_member(self.archive, self.members[image], name, size)

    def images(self) -> Iterator[str]:
        """Ids of all images with a map, in no order."""
        yield from self.members


SavedMaps = MapFolder | MapArchive


def read_map(file: IO[bytes], name: str, size: tuple[int, int] | None = None) -> Map:
    """Read a map from an open ``.npy`` file: a finite array [h, w], floating or integer, of any byte and axis order.

    Args:
        file: at its start.
        name: how errors call it.
        size: width and height that the map must have; None takes any up to `MAX_PIXELS`.

    Returns:
        float32 [h, w], row by row; float64 where float32 would not hold what was saved.

    Raises:
        UserError: another kind, shape or size, Python objects, NaN or infinity, or a file cut short.
    """
    head = io.BytesIO(file.read(_HEAD))
    try:
        version = npy.read_magic(head)
        with _PARSING:
            shape, by_columns, dtype = _HEADERS[version](head)
    except Exception as error:  # a damaged header is an invalid Python expression, which fails in many ways
        raise UserError(f"{name} is not a .npy array ({' '.join(str(error).split())})") from None
    if dtype.kind not in "fiu":
        kind = "Python objects (a pickle), which are never opened" if dtype.hasobject else f"{dtype} values"
        raise UserError(f"{name} holds {kind}; a map is a floating or integer array")
    if len(shape) != 2 or min(shape) < 1:
        raise UserError(f"{name} has the shape {[*shape]}; a map is [height, width]")
    if size is not None and shape != size[::-1]:
        raise UserError(
            f"{name} is {shape[1]} × {shape[0]}, expected {size[0]} × {size[1]}; --resize scores maps of any size"
        )
    if shape[0] * shape[1] > MAX_PIXELS:
        raise UserError(f"{name} says it has {shape[1]} × {shape[0]} values; the most is {MAX_PIXELS}")
    length = shape[0] * shape[1] * dtype.itemsize
    data = head.read(length)
    data += file.read(length - len(data))
    if len(data) < length:
        raise UserError(f"{name} is cut short: {len(data)} of {length} bytes of values are there")
    if head.read(1) or file.read(1):
        raise UserError(f"{name} goes on after its map; expected one array")
    exact = np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64
    with np.errstate(all="ignore"):  # what does not fit becomes infinity, and is found below
        values: Map = np.array(
            np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C"), exact, order="C"
        )
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        raise UserError(
            f"{name} holds {len(wrong)} values that are NaN or infinite, first at row, column {wrong[0].tolist()}"
        )
    return values


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, size: tuple[int, int] | None) -> Map:
    # NumPy writes these two; other methods may expand a few bytes to gigabytes at once, whatever length is read.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{name} is packed in a way that NumPy does not write; save it with numpy.savez_compressed")
    with archive.open(member) as file:
        return read_map(file, name, size)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Whatever fails while a file is opened and unpacked, in one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror or error}") from None
    except _DAMAGE as error:
        raise UserError(f"cannot read {name}: {' '.join(str(error).split())}") from None
