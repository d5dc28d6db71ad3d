"""Files people asked for: written whole or not at all, with one line when that fails."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import UserError


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
