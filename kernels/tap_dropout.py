"""A tap fused with the dropout that follows it, so that the gathered columns cost no copy of the feature map.

    X = F ⊙ B / (1 − p),  B ~ Bernoulli(1 − p);     ∂L/∂F = ∂L/∂X ⊙ B / (1 − p) + the K columns of `gather_pixels`

In PyTorch: ``torch.nn.functional.dropout(features, p)`` beside ``gather_pixels(features, indices)``. `tap` must copy
the head's gradient before adding to it, because autograd may share that tensor; dropout's backward makes a new one.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._add_columns import add_columns_
from .gather_pixels import Slots, check_tappable, open_columns, tap


class _TapDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, k: int, p: float) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        dropped, kept = torch.native_dropout(features, p, True)
        ctx.save_for_backward(kept)
        ctx.scale = 0.0 if p == 1 else 1 / (1 - p)
        return dropped, *open_columns(features, k)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dense: Tensor | None, columns: Tensor | None, indices: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        (kept,) = ctx.saved_tensors
        if dense is not None:
            total = torch.ops.aten.native_dropout_backward(dense, kept, ctx.scale)
        elif columns is not None:
            total = torch.zeros_like(kept, dtype=columns.dtype)
        else:
            return None, None, None
        if columns is not None and indices is not None:
            add_columns_(total, columns, indices)
        return total, None, None


def tap_dropout(features: Tensor, k: int, p: float = 0.5, training: bool = True) -> tuple[Tensor, Slots]:
    """Drop elements of `features` for the head, and open `k` columns an image for a later `gather_pixels`.

    ``dropped, slots = tap_dropout(features, k)`` gives ``dropped`` to the head, and ``gather_pixels(features, indices,
    slots)`` reads vectors that nothing was dropped from.

    Args:
        features: [N, D, H, W], floating point, any strides, H·W ≤ 2²⁴.
        k: seeds an image.
        p: probability that an element is dropped; the others are scaled by 1/(1 − p). Drawn from torch's generator.
        training: False drops nothing, and is `tap`.

    Returns:
        The features after dropout, and the `Slots` for one `gather_pixels`.

    Raises:
        ValueError: not [N, D, H, W] floating point, k < 1, more than 2²⁴ pixels, or p outside 0…1.
    """
    check_tappable(features, k)
    if not 0 <= p <= 1:
        raise ValueError(f"p must be in [0, 1], got {p}")
    if p == 0 or not training:
        return tap(features, k)
    dropped, columns, carrier = _TapDropout.apply(features, k, p)
    return dropped, Slots(columns, carrier)
