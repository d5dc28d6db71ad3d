"""Batches for the kernels of the objective, and memory that shows what nobody wrote."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from i2c_fast.kernels import _pairs

# Names of images' classes as they come in a batch: two of a class apart, three of one, a single, an ignored one and
# labels that name no center. Prefixes of it are batches too.
LABELS = [1, 3, 1, -100, 3, 0, 3, 70, -2]
GROUPS = [0, 1, 0, 1, 1, 1, 2, 0, 0]
CENTERS = 5
UNWRITTEN = -7777

# Values [N, K, D] and views of other strides that hold the same numbers.
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda v: v.transpose(0, 2).contiguous().transpose(0, 2),
    "sliced": lambda v: v.repeat_interleave(2, 1).repeat(1, 1, 2)[:, ::2, : v.shape[2]],
    "backed by one row": lambda v: v[:1].expand_as(v),
}


class Batch(NamedTuple):
    values: Tensor  # [N, K, D]
    labels: Tensor  # int64 [N]
    groups: Tensor  # int64 [N]
    centers: Tensor  # fp32 [5, D]


def random_batch(images: int, seeds: int, channels: int, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(images + seeds + channels)
    values = torch.randn(images, seeds, channels, generator=generator).to(dtype)
    centers = torch.randn(CENTERS, channels, generator=generator)
    return Batch(values, torch.tensor(LABELS[:images]), torch.tensor(GROUPS[:images]), centers)


def use_small_blocks(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    """Take four labels or rows, and eight terms of two chunks each, at a time, as batches of thousands of images do."""
    small = {
        "label_block": lambda images: 4,
        "chunk_block": lambda chunks: 2,
        "total_sizes": lambda chunks: {"BLOCK": 8, "BLOCK_C": 2, "num_warps": 1},
        "BLOCK_R": 4,
    }
    for name, value in small.items():
        monkeypatch.setattr(module, name, value, raising=False)
    assert _pairs.label_block(5000) == 1024
    assert _pairs.total_sizes(5000)["BLOCK_C"] == _pairs.chunk_block(5000) == 64


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill all memory that the launchers allocate with NaN, or UNWRITTEN where it holds integers."""
    for place, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(place, name, _poisoned(getattr(place, name)))


def _poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poisoned(*arguments: Any, **options: Any) -> Tensor:
        memory = allocate(*arguments, **options)
        return memory.fill_(torch.nan if memory.is_floating_point() else UNWRITTEN)

    return poisoned
