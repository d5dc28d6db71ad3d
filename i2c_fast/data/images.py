"""Pixels: decode, resize, crop.

Images are resized in one of two flavors of bilinear interpolation, the same for training and for testing, because
models notice when it changes: ``linear`` reads the four nearest pixels however far the image shrinks (OpenCV's),
``antialias`` averages all that shrink into one (Pillow's). They travel as uint8, and the model normalizes them.
"""

import os
from pathlib import Path
from stat import S_ISREG
from typing import Literal

# OpenCV refuses larger images before it decodes them, as Pillow does: no photograph has half a gigabyte of pixels.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "178956970")

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from ..errors import UserError
from ..files import MIB, read_regular

Flavor = Literal["linear", "antialias"]  # of resizing

Image = NDArray[np.uint8]

# What files of the formats that are read begin with. Others, GIF for one, decode with one version of OpenCV and not
# with the next.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"BM", b"RIFF", b"II*\0", b"MM\0*")
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"  # JPEG markers; in between a scan escapes every 0xff

# Of a file: the largest image that is decoded has half of it, uncompressed.
_LARGEST = 1024 * MIB

# A strip one pixel high would need gigabytes at a short side of 256.
MAX_ASPECT = 16

# Loader processes and evaluation threads are the parallelism. OpenCV's own pool would compete with them for the
# cores, and a process forked while that pool exists hangs when the pool changes.
cv2.setNumThreads(0)


class UnreadableImageError(UserError):
    """A file that does not decode to an image; `reason` says why without naming it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def read_image(path: Path) -> Image:
    """Decode a file to RGB uint8 [H, W, 3].

    EXIF rotation is not applied: boxes are annotated in the stored pixels' frame.

    Raises:
        UnreadableImageError: no such file, or not an image.
    """
    return _decode(path, cv2.IMREAD_COLOR_RGB)


def read_gray(path: Path) -> Image:
    """Decode a file to gray, uint8 [H, W]: of a JPEG its luminance as stored; otherwise as `read_image`."""
    return _decode(path, cv2.IMREAD_GRAYSCALE)


def _decode(path: Path, kind: int) -> Image:
    data = read_file(path)
    if not data.startswith(_BEGINNINGS):
        raise UnreadableImageError(path, "is no JPEG, PNG, BMP, WebP or TIFF")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), kind | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise UnreadableImageError(path, " ".join(str(error).split())) from None
    if image is None:
        raise UnreadableImageError(path, "does not decode to an image")
    return image.astype(np.uint8, copy=False)


def read_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        UnreadableImageError: no such file, no regular one, an empty or too large one, or a JPEG that ends too early.
    """
    try:
        data = read_regular(path, _LARGEST)
    except OSError as error:
        raise UnreadableImageError(path, error.strerror or str(error)) from None
    if not data:
        raise UnreadableImageError(path, "is empty")
    # With no end of image after its last scan the end is lost, or overwritten. Decoders fill what is missing with gray
    # and say nothing.
    if data.startswith(_BEGINNINGS[0]) and data.rfind(_END_OF_IMAGE) < max(data.rfind(_START_OF_SCAN), 0):
        raise UnreadableImageError(path, "is truncated: the JPEG ends before its end marker")
    return data


def has_bounded_end(path: Path) -> bool:
    """Whether the file is there, no pipe or device, and not too large: what `read_file` asks of it before it reads."""
    try:
        facts = os.stat(path)
    except OSError:
        return False
    return S_ISREG(facts.st_mode) and facts.st_size <= _LARGEST


def looks_whole(beginning: bytes, end: bytes) -> bool:
    """Whether a file's first 6 and last 2 bytes show already that `read_image` does not refuse its format or end."""
    return beginning.startswith(_BEGINNINGS) and (end == _END_OF_IMAGE or not beginning.startswith(_BEGINNINGS[0]))


def train_crop(
    image: Image, short_side: int, size: int, offset: NDArray[np.float64], flip: bool, flavor: Flavor = "linear"
) -> Image:
    """Resize the shorter side to `short_side`, cut a square of `size` pixels, perhaps mirror it.

    Of an image longer than `MAX_ASPECT` times its shorter side, only that length around the offset is resized. Sizes
    and places are computed in float64 and rounded down (sizes after adding a half), here and in the graph of the DALI
    loader, which cuts the same pixels.

    Args:
        image: uint8 [H, W, 3].
        short_side, size: pixels, ``short_side ≥ size``.
        offset: x and y of the cut as fractions, in [0, 1), of the free range.
        flip: mirror left and right.

    Returns:
        uint8 [size, size, 3].
    """
    height, width = (min(length, MAX_ASPECT * min(image.shape[:2])) for length in image.shape[:2])
    left = int(offset[0] * (image.shape[1] - width + 1))
    top = int(offset[1] * (image.shape[0] - height + 1))
    scale = short_side / min(height, width)
    resized = resize(
        image[top : top + height, left : left + width],
        max(size, int(width * scale + 0.5)),
        max(size, int(height * scale + 0.5)),
        flavor,
    )
    x = int(offset[0] * (resized.shape[1] - size + 1))
    y = int(offset[1] * (resized.shape[0] - size + 1))
    cut = resized[y : y + size, x : x + size]
    return cut[:, ::-1] if flip else cut


def resize(image: Image, width: int, height: int, flavor: Flavor = "linear") -> Image:
    """Bilinear, uint8 [H, W, 3] → [height, width, 3]; the test image is such a square."""
    if image.shape[:2] == (height, width):
        return image
    if flavor == "antialias":
        return np.asarray(Pillow.fromarray(image).resize((width, height), Pillow.Resampling.BILINEAR))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)
