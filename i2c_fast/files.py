"""Files people asked for: written whole or not at all, with one line when that fails."""

import json
from pathlib import Path
from typing import Any

from .errors import UserError


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file beside its final name, then rename it there.

    Raises:
        UserError: the folder or file cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON; errors as `write_bytes`."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())
