"""ImageNet weights for the bodies: torchvision's checkpoints, downloaded once, or any file with the same names."""

import hashlib
import http.client
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from filelock import FileLock
from torch import Tensor, nn

from ..errors import UserError
from .backbones import Backbone, find_backbone

HASHED_NAME = re.compile(r"-([0-9a-f]{8})\.pth$")  # torchvision's file names end in the start of their SHA-256
LISTED = 3  # names an error message gives before it only counts


class LoadReport(NamedTuple):
    """Names of the body's tensors found and not found in the checkpoint, and of the checkpoint's left unused."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_imagenet_weights(body: nn.Module, backbone: str, source: str | Path = "imagenet") -> LoadReport:
    """Fill `body` from the backbone's ImageNet checkpoint, or from the checkpoint at the path `source`.

    `source="imagenet"` takes torchvision's V1 file from torch hub's cache, downloading it if it is not there. A file
    whose name ends in `-<8 hex digits>.pth` is checked against these digits of its SHA-256. Nothing but tensors is
    unpickled.

    Raises:
        UserError: the backbone is unknown; the file cannot be had, read or trusted; or it lacks a tensor of the body or
            has one in another shape (the body is then unchanged).
    """
    found = find_backbone(backbone)
    if source == "imagenet" and not found.weights_file:
        raise UserError(f"model.weights=imagenet: none are known for {backbone}; give model.weights=none, or a file")
    path = _cached_checkpoint(found) if source == "imagenet" else Path(source).expanduser()
    state = _read_state(path)
    report = _compare(body, state)
    if report.missing:
        raise UserError(f"{path}: not a {backbone} checkpoint, it lacks {_listed(report.missing)}")
    own = body.state_dict()
    reshaped = [
        f"{name} is {_size(state[name])}, needs {_size(own[name])}"
        for name in report.loaded
        if state[name].shape != own[name].shape
    ]
    if reshaped:
        raise UserError(f"{path}: not a {backbone} checkpoint, {_listed(reshaped)}")
    body.load_state_dict({name: state[name] for name in report.loaded}, strict=False)
    return report


def _cached_checkpoint(backbone: Backbone) -> Path:
    """Path of the checkpoint in torch hub's cache, downloaded by one process while the node's others wait."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / backbone.weights_file
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():
                torch.hub.download_url_to_file(
                    backbone.weights_url, str(path), _hash_prefix(path), progress=sys.stderr.isatty()
                )
    # RuntimeError is the hub's word for a wrong hash.
    except (OSError, http.client.HTTPException, RuntimeError) as error:
        raise UserError(
            f"cannot download {backbone.weights_file} ({_one_line(error)}): "
            f"fetch {backbone.weights_url} where there is a network and put it at {path}"
        ) from error
    return path


def _read_state(path: Path) -> dict[str, Tensor]:
    """The state dict at `path`, bare or under "state_dict", without the `module.` DataParallel puts before names."""
    if not (path.is_file() and os.access(path, os.R_OK)):
        raise UserError(
            f"{path}: no weights file that can be read; give a checkpoint's path, or 'imagenet' to download"
        )
    _check_hash(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"{path}: refused: it is no checkpoint, or it holds more than tensors and loading it could run code; "
            "save the model's state_dict() alone"
        ) from error
    # A damaged file makes torch.load fail in whatever way its bytes suggest: RuntimeError, EOFError, KeyError …
    except Exception as error:
        raise UserError(f"{path}: not a readable checkpoint ({_one_line(error)}); download or save it again") from error
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a state dict of tensors; save the model's state_dict() alone")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _hash_prefix(path: Path) -> str | None:
    match = HASHED_NAME.search(path.name)
    return match and match[1]


def _check_hash(path: Path) -> None:
    expected = _hash_prefix(path)
    if expected is None:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(expected):
        raise UserError(
            f"{path}: its SHA-256 begins with {digest[:8]}, not with the {expected} of its name; "
            "download it again, or rename it if these digits are no hash"
        )


def _compare(body: nn.Module, state: Mapping[str, Tensor]) -> LoadReport:
    own = body.state_dict()
    # BatchNorm's counter came after some of torchvision's checkpoints, and nothing here reads it.
    missing = [name for name in own if name not in state and not name.endswith(".num_batches_tracked")]
    return LoadReport(
        loaded=tuple(name for name in own if name in state),
        missing=tuple(missing),
        unexpected=tuple(name for name in state if name not in own),
    )


def _listed(items: tuple[str, ...] | list[str]) -> str:
    rest = len(items) - LISTED
    return ", ".join(items[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def _one_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
