"""Files people asked for are written whole or not at all; files people give are regular ones of a bounded size."""

import errno
import json
import os
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO

from .errors import UserError

MIB = 1 << 20


def open_regular(path: Path, limit: int) -> BinaryIO:
    """Open a file to read its bytes.

    Args:
        limit: the most bytes it may have.

    Raises:
        OSError: there is none, it cannot be read, it is a pipe or device, whose end may never come, or it is larger.
    """
    # Without the flag, opening a pipe waits for whoever writes into it.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    facts = os.fstat(file.fileno())
    if S_ISREG(facts.st_mode) and facts.st_size <= limit:
        return file
    file.close()
    if not S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "is no regular file")
    raise OSError(errno.EFBIG, f"is larger than {limit // MIB:,} MiB, too large for such a file")


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a file; arguments and errors as `open_regular`."""
    with open_regular(path, limit) as file:
        return file.read(limit)


def write_bytes(path: Path, data: bytes | memoryview, flush: bool = True) -> None:
    """Write a file beside its final name, flush it to the disk, then rename it over that name.

    Args:
        flush: leave it out for many small files that can be made again; it is most of their time.

    Raises:
        UserError: the folder or file cannot be written, the disk is full; what was there before stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):  # it may not even have come to be
            temporary.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON; errors as `write_bytes`."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    # File names that are not UTF-8 hold lone surrogates; backslashreplace spells them as JSON escapes.
    write_bytes(path, text.encode(errors="backslashreplace"))
