"""Text files that describe images: their lines, tables and boxes, with errors that name file and line.

Unix and Windows line ends, a byte-order mark, blank lines and a last line without its end are all fine.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from ...errors import UserError
from ...files import MIB, read_regular
from ..index import Boxes, ImageIndex, inside

T = TypeVar("T")
Box = tuple[float, float, float, float]  # x0, y0, x1, y1
Size = tuple[int, int]  # width, height

# Of a list; that of a million boxes has a tenth of it.
_LARGEST = 1024 * MIB

# Of a line that is quoted in an error.
_SHOWN = 80


def read_lines(path: Path, errors: str = "strict") -> Iterator[tuple[int, str]]:
    """Numbers, from 1, and texts of the lines that are not blank.

    Args:
        path: a UTF-8 file.
        errors: as in `bytes.decode`, for bytes that are not UTF-8.

    Raises:
        UserError: a file that cannot be read or is not text.
    """
    try:
        text = read_regular(path, _LARGEST).decode("utf-8-sig", errors)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); is it the right file?") from None
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if line.strip():
            yield number, line


def read_rows(path: Path, form: str, parse: Callable[[str], T], header: str = "") -> Iterator[tuple[str, T]]:
    """Location, as ``file:line``, and content of each line.

    Args:
        path: a UTF-8 file.
        form: what a line should look like, for the error.
        parse: a line's content; ValueError for one that is not of the form.
        header: how a first line that names the columns begins, in small letters; it may be missing.

    Raises:
        UserError: a line that is not of the form, or a file without any.
    """
    location = None
    for number, line in read_lines(path):
        if number == 1 and header and line.lower().startswith(header):
            continue
        location = f"{path}:{number}"
        try:
            row = parse(line)
        except ValueError:
            raise UserError(f"{location}: expected {form}, got {line[:_SHOWN]!r}") from None
        yield location, row
    if location is None:
        raise UserError(f"{path} is empty; expected lines of {form}")


def read_table(path: Path, form: str, parse: Callable[[str], tuple[str, T]], header: str = "") -> dict[str, T]:
    """Value of each key; arguments and errors as `read_rows`, and a key listed twice is one."""
    table: dict[str, T] = {}
    for location, (key, value) in read_rows(path, form, parse, header):
        if key in table:
            raise UserError(f"{location}: {key} is listed twice; remove one of the lines")
        table[key] = value
    return table


def read_boxes(
    path: Path, form: str, parse: Callable[[str], tuple[str, Box]], sizes: Mapping[str, Size], header: str = ""
) -> dict[str, Boxes]:
    """All boxes [b, 4] of each key; arguments and errors as `read_rows`, and a box outside its image is one.

    Args:
        sizes: of the images, by key, as far as they are known.
    """
    found: dict[str, list[Box]] = {}
    for location, (key, box) in read_rows(path, form, parse, header):
        check_box(box, sizes.get(key), location)
        found.setdefault(key, []).append(box)
    return {key: np.asarray(boxes, np.float32) for key, boxes in found.items()}


def check_box(box: Box, size: Size | None, location: str) -> None:
    """Refuse a box that is not `inside` its image.

    Args:
        box: x0, y0, x1, y1.
        size: the image's; None: not known, no upper bound.
        location: file and line, for the error.

    Raises:
        UserError: outside, upside down or not finite.
    """
    if not inside(box, size or (math.inf, math.inf)):
        x0, y0, x1, y1 = box
        limits = f"its image of {size[0]} × {size[1]} pixels" if size else "an image"
        raise UserError(f"{location}: box {x0:g} {y0:g} {x1:g} {y1:g} (x0 y0 x1 y1) does not lie in {limits}; mend it")


def look_up(table: Mapping[str, T], key: str, path: Path) -> T:
    """The value of a key that the file `path` must have.

    Raises:
        UserError: it has not.
    """
    if key not in table:
        raise UserError(f"{path} has no line for {key}; every image needs one")
    return table[key]


def require_files(index: ImageIndex, path: Path) -> ImageIndex:
    """The index, when at least one of the images that the file `path` lists is there.

    Some that are missing are unreadable images, which validation lists and training replaces; if all are, the root is
    wrong.

    Raises:
        UserError: none is there.
    """
    if not any(index.file(i).exists() for i in range(len(index))):
        raise UserError(
            f"none of the images in {path} is under {index.root} (the first is {index.paths[0]}); "
            "data.root must be the folder where their paths start"
        )
    return index
