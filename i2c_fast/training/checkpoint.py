"""Checkpoints: all that a continuation needs, in a file that is whole or absent."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from ..data import RESIZE
from ..errors import UserError

FORMAT = 1


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies in a run folder."""
    return run / "checkpoints" / f"step-{step:08d}.pt"


def checkpoints_of(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted((run / "checkpoints").glob("step-*.pt"))


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write `state` to `path`: into a temporary file, flushed to disk, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, "resize": RESIZE, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU; given a run folder, its newest.

    Only tensors and plain values are loaded: a pickle that would run code is refused.

    Raises:
        UserError: no such file, no checkpoint of ours, or one written with another way of resizing.
    """
    if path.is_dir():
        found = checkpoints_of(path)
        if not found:
            raise UserError(f"{path} holds no checkpoint (looked for {path / 'checkpoints' / 'step-*.pt'})")
        path = found[-1]
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable i2c-fast checkpoint: {reason}") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path} is not an i2c-fast checkpoint of format {FORMAT}")
    if state["resize"] != RESIZE:
        raise UserError(
            f"{path} was trained on images resized by {state['resize']}, this version resizes by {RESIZE}; "
            "scores would not compare"
        )
    return state
