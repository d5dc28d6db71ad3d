"""Save raw maps while they are evaluated, for `score_maps` and other people's tools."""

import io
from pathlib import Path

import numpy as np
from torch import Tensor

from ..data import ImageIndex
from ..errors import UserError
from ..files import write_bytes


def write_maps(folder: Path, index: ImageIndex, indices: Tensor, maps: Tensor) -> None:
    """Write a batch's maps as ``folder/<image path>.npy``, float32 [h, w] each.

    Args:
        index: the split. indices: of the images in it, [N]. maps: [N, h, w], on any device.

    Raises:
        UserError: a file cannot be written.
    """
    for i, raw in zip(indices.tolist(), maps.float().cpu().numpy(), strict=True):
        buffer = io.BytesIO()
        np.save(buffer, raw, allow_pickle=False)
        write_bytes(folder / f"{index.paths[i]}.npy", buffer.getbuffer(), flush=False)


def require_empty(folder: Path, option: str) -> None:
    """Raise UserError unless the folder is empty or missing: maps of another model would be scored as this one's."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{option}: {folder} is a file; give a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{option}: {folder} is not empty; give another folder")
