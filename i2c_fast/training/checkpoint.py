"""Checkpoints: all that a continuation needs, in a file that is whole or absent."""

import io
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..config import build_config
from ..errors import UserError
from ..files import write_bytes
from ..models import Localizer, build_localizer
from .schema import checked
from .stage import build_method

FORMAT = 3


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies in a run folder."""
    return run / "checkpoints" / f"step-{step:08d}.pt"


def checkpoints_of(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted((run / "checkpoints").glob("step-*.pt"))


def save_checkpoint(path: Path, state: dict[str, Any], keep: int = 0) -> None:
    """Write `state`, whole or not at all, and drop all but the folder's last `keep` checkpoints (0: keep all).

    Raises:
        UserError: it cannot be written; earlier checkpoints are untouched.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_bytes(path, buffer.getbuffer())
    if keep:
        for old in sorted(path.parent.glob("step-*.pt"))[:-keep]:
            old.unlink()


def save_weights(path: Path, weights: dict[str, Tensor], facts: dict[str, str]) -> None:
    """Write model weights as safetensors, with `facts` as its metadata."""
    write_bytes(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, facts))


def load_checkpoint(path: Path, warn: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU.

    Only tensors and plain values are loaded: a pickle that would run code is refused. So is a file that is not whole,
    see `schema.checked`.

    Args:
        path: the file; or a run folder, whose newest readable one is taken.
        warn: told, in a line, of each newer one that was passed over.

    Raises:
        UserError: no such file, or no checkpoint of ours; names the file, and the entry at fault.
    """
    return find_checkpoint(path, warn)[1]


def find_checkpoint(path: Path, warn: Callable[[str], None] | None = None) -> tuple[Path, dict[str, Any]]:
    """The file that `load_checkpoint` takes, and what it holds; arguments and errors as there."""
    if not os.path.isdir(path):  # Path.is_dir raises for names too long
        return path, _load_file(path)
    found = checkpoints_of(path)
    if not found:
        raise UserError(f"{path} holds no checkpoint (looked for {path / 'checkpoints' / 'step-*.pt'})")
    for candidate in reversed(found):
        try:
            return candidate, _load_file(candidate)
        except UserError as error:
            if candidate == found[0]:
                raise
            if warn is not None:
                warn(f"{error}; going back to the one before")
    raise AssertionError("the loop returns or raises")


def restore_predictor(state: dict[str, Any], ema: bool | None = None) -> Localizer:
    """What a checkpoint's method evaluates and exports, on the CPU; see `Method.predictor`.

    Args:
        ema: with the EMA of its weights, or those of the last step; None: what the run scored (``eval.ema``).

    Raises:
        UserError: the run kept no EMA.
    """
    config = build_config(state["config"], "the checkpoint")
    ema = config.eval.ema if ema is None else ema
    if ema and state["ema"] is None:
        raise UserError("the run kept no EMA of its weights (optim.ema_decay is 0); take the weights themselves")
    model = build_localizer(config.model.backbone, len(state["classes"]), config.model.head_width)
    model.load_state_dict(state["ema"]["weights"] if ema else state["model"])
    return build_method(config, state["stage"], model).load_own_state(state["method"]).predictor


def stored_threshold(state: dict[str, Any]) -> int | None:
    """Gray level at which the run's last evaluation localized best, if it was by the paper's protocol and on boxes.

    Another protocol's gray levels are not those of the maps that predictions draw.
    """
    scores = state["scores"] or {}
    return scores["gt_known"]["threshold"] if scores.get("protocol") == "paper" and "gt_known" in scores else None


def _load_file(path: Path) -> dict[str, Any]:
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that no checkpoint is
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch's own words advise to load it all the same, which would run what is in it.
        raise UserError(
            f"{path} is refused: it is no checkpoint, or holds more than tensors and plain values, which could run code"
        ) from None
    # Other files, and damaged ones, make torch.load fail in whatever way their bytes suggest: EOFError, IndexError …
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable i2c-fast checkpoint: {reason}") from None
    form = state.get("format") if isinstance(state, dict) else None
    if type(form) is not int or form != FORMAT:  # a tensor would be compared element by element
        raise UserError(f"{path} is not an i2c-fast checkpoint of format {FORMAT}")
    try:
        return checked(state)
    except UserError as error:
        raise UserError(f"{path} is no whole checkpoint: {error}; take another") from None
