"""Inspect one image file and report what training would silently accept."""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from .images import UnreadableImageError, read_file, read_image

# File suffixes of the formats that are read. Others may decode with one version of a library and not with the next.
FORMATS = {"JPEG": (".jpeg", ".jpg"), "PNG": (".png",), "BMP": (".bmp",), "WEBP": (".webp",), "TIFF": (".tif", ".tiff")}

_ORIENTATION = 0x112  # EXIF tag
_PNG_DEPTH = 24  # byte that holds the bit depth, by PNG's specification


class Look(NamedTuple):
    """What a file turned out to be."""

    broken: str = ""  # why training cannot or should not read it
    odd: tuple[str, ...] = ()  # readable, but not the plain image one expects
    size: tuple[int, int] | None = None  # width and height in pixels; None where broken


def inspect_image(path: Path) -> Look:
    """Decode a file twice, strictly by Pillow and as training does, and list what is unusual about it.

    Decoders differ, by library and version, in what damage they refuse and what they silently fill with gray; a file
    must pass both. Pillow also refuses, before it decodes, images of more than 178 956 970 pixels (half a gigabyte).
    """
    try:
        odd = _oddities(path)
        height, width, _ = read_image(path).shape
    except UnreadableImageError as error:
        return Look(broken=error.reason)
    except Image.UnidentifiedImageError:
        return Look(broken="is no image that Pillow recognizes")
    except Image.DecompressionBombError:
        return Look(broken="has more than 178 956 970 pixels")
    except Exception as error:  # decoders raise many kinds of error on damaged data
        return Look(broken=f"is damaged: {error}")
    return Look(odd=odd, size=(width, height))


def _oddities(path: Path) -> tuple[str, ...]:
    data = read_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as image:
            kind = "JPEG" if image.format == "MPO" else image.format or "unknown format"
            if kind not in FORMATS:
                raise UnreadableImageError(path, f"is a {kind}, which is not read; convert it to JPEG or PNG")
            deep = image.mode in ("F", "I") or "16" in image.mode or (kind == "PNG" and data[_PNG_DEPTH] == 16)
            orientation = image.getexif().get(_ORIENTATION, 1)
            image.load()
            found = {
                f"is a {kind}": path.suffix.lower() not in FORMATS[kind],
                "is CMYK": image.mode == "CMYK",
                "has more than 8 bits a channel": deep,
                "has transparency, which is dropped": image.has_transparency_data,
                f"is rotated by EXIF orientation {orientation}, which is not applied": orientation != 1,
            }
    return tuple(text for text, is_so in found.items() if is_so)
