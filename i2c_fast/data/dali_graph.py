"""The DALI graph: from the path of a file to a square of uint8 pixels.

Cutting, mirroring and resizing are one operation, because resizing takes a region of the image, and runs from right to
left where the ends of the region are exchanged. The graph draws nothing: crops and flips are given.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from nvidia.dali import fn, math, types

from .images import MAX_ASPECT, Flavor
from .loader import Loading

# nvJPEG's buffers as the largest image of ILSVRC needs them, in bytes: growing them later would make the GPU wait.
DEVICE_PADDING, HOST_PADDING = 211_025_920, 140_544_512


class Geometry(NamedTuple):
    """What comes out, in pixels."""

    sides: tuple[int, ...]  # a square of each
    short_side: int  # of the resized image before the cut; 0: the whole image becomes the square
    flavor: Flavor


def squares_of(source: Callable[[], Any], geometry: Geometry, loading: Loading) -> tuple[Any, ...]:
    """Squares of each side, sizes of the images (height, width, channels), and first 6 and last 2 bytes of the files.

    Args:
        source: gives the paths of a batch, and for cuts float64 [N, 3]: x and y as fractions, 1 to mirror.
    """
    path, *crop = fn.external_source(source, num_outputs=2 if geometry.short_side else 1)
    file = fn.io.file.read(path)
    sizes = fn.peek_image_shape(file, adjust_orientation=False)
    # Boxes are annotated in the frame of the stored pixels: EXIF rotation is not applied.
    decoding: dict[str, Any] = {"adjust_orientation": False, "output_type": types.RGB, "device": "cpu"}
    if loading.device.type == "cuda":
        decoding |= {
            "device": "mixed",
            "hw_decoder_load": loading.hw_decoder_load,
            "device_memory_padding": DEVICE_PADDING,
            "host_memory_padding": HOST_PADDING,
        }
    images = fn.decoders.image(file, **decoding)
    options: dict[str, Any] = {"interp_type": types.INTERP_LINEAR, "antialias": geometry.flavor == "antialias"}
    if geometry.short_side:
        options["roi_start"], options["roi_end"] = _region(sizes, crop[0], geometry.short_side, geometry.sides[0])
    squares = [fn.resize(images, size=[side, side], **options) for side in geometry.sides]
    padded: dict[str, Any] = {"axes": [0], "out_of_bounds_policy": "pad"}
    first, last = fn.slice(file, 0, 6, **padded), fn.slice(file, file.shape(dtype=types.INT32) - 2, 2, **padded)
    return *squares, sizes, fn.cat(first, last)


def _region(sizes: Any, crop: Any, short_side: int, side: int) -> tuple[Any, Any]:
    """Corners (y, x) of the part of the image that becomes the square: the arithmetic of `images.train_crop`."""
    whole = [fn.cast(sizes[axis], dtype=types.FLOAT64) for axis in (0, 1)]
    longest = MAX_ASPECT * math.min(*whole)
    strip = [math.min(length, longest) for length in whole]
    scale = short_side / math.min(*strip)
    starts, ends = [], []
    for axis, fraction in ((0, crop[1]), (1, crop[0])):
        first = math.floor(fraction * (whole[axis] - strip[axis] + 1))
        resized = math.max(math.floor(strip[axis] * scale + 0.5), side)
        cut = math.floor(fraction * (resized - side + 1))
        starts.append(first + cut * strip[axis] / resized)
        ends.append(first + (cut + side) * strip[axis] / resized)
    turn = crop[2] * (ends[1] - starts[1])  # mirrored, the region runs from right to left
    starts[1], ends[1] = starts[1] + turn, ends[1] - turn
    start, end = (fn.cast(fn.stack(*corner), dtype=types.FLOAT) for corner in (starts, ends))
    return start, end
