"""The tap of `kernels.tap`, `tap_dropout` and `gather_pixels`, written in PyTorch alone.

What it gains over a dense gradient is the tap's; what the kernels gain over it is theirs. No line of it runs Triton.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def columns_of(features: Tensor) -> tuple[Tensor, int]:
    """A view of F [N, D, H, W] with its pixels in one dimension, and which that is: no layout is copied."""
    if features.is_contiguous(memory_format=torch.channels_last):
        return features.permute(0, 2, 3, 1).flatten(1, 2), 1
    return features.flatten(2), 2


def gather(features: Tensor, indices: Tensor) -> Tensor:
    """[N, K, D] of int64 indices [N, K]. The dense gradient of the features gets their own memory format."""
    columns, dim = columns_of(features)
    if dim == 1:
        return columns.gather(1, indices[:, :, None].expand(-1, -1, features.shape[1]))
    return columns.gather(2, indices[:, None].expand(-1, features.shape[1], -1)).transpose(1, 2)


def scatter_add_(total: Tensor, gradient: Tensor, indices: Tensor) -> None:
    """Add [N, K, D] to K columns an image of `total` [N, D, H, W], contiguous or channels last, in place."""
    columns, dim = columns_of(total)
    if dim == 1:
        columns.scatter_add_(1, indices[:, :, None].expand(-1, -1, total.shape[1]), gradient)
    else:
        columns.scatter_add_(2, indices[:, None].expand(-1, total.shape[1], -1), gradient.transpose(1, 2))


class PlainSlots(NamedTuple):
    """Stand-ins whose gradients are the columns' gradient [N, K, D] and, in fp32, the pixels' indices [N, K]."""

    columns: Tensor
    indices: Tensor


def _slots(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    n, d = features.shape[:2]
    return features.new_empty(n, k, d), features.new_empty(n, k, dtype=torch.float32)


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        return features.view_as(features), *_slots(features, k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dense: Tensor, columns: Tensor, indices: Tensor) -> tuple[Tensor, None]:
        total = dense.clone()  # autograd may share it with another branch
        scatter_add_(total, columns, indices.long())
        return total, None


class _TapDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        dropped, kept = torch.native_dropout(features, 0.5, True)
        ctx.save_for_backward(kept)
        return dropped, *_slots(features, k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dense: Tensor, columns: Tensor, indices: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        total = torch.ops.aten.native_dropout_backward(dense, kept, 2.0)
        scatter_add_(total, columns, indices.long())
        return total, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, columns: Tensor, carrier: Tensor, features: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        return gather(features, indices.long())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (indices,) = ctx.saved_tensors
        return gradient, indices.float(), None, None


def tap(features: Tensor, k: int) -> tuple[Tensor, PlainSlots]:
    """As `kernels.tap`."""
    tapped, *slots = _Tap.apply(features, k)
    return tapped, PlainSlots(*slots)


def tap_dropout(features: Tensor, k: int) -> tuple[Tensor, PlainSlots]:
    """As `kernels.tap_dropout` with p = ½."""
    dropped, *slots = _TapDropout.apply(features, k)
    return dropped, PlainSlots(*slots)


def gather_pixels(features: Tensor, indices: Tensor, slots: PlainSlots) -> Tensor:
    """As `kernels.gather_pixels` with slots."""
    gathered: Tensor = _Gather.apply(*slots, features.detach(), indices)
    return gathered
