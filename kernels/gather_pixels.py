"""Feature vectors at chosen pixels, and a tap that gives them their gradient without a second dense tensor.

    V[n, k] = F[n, :, p(n, k)]                                                     (object seed vectors, section 3.1)

In PyTorch: ``features.flatten(2).gather(2, indices[:, None].expand(-1, D, -1)).transpose(1, 2)``. Its backward makes a
zero-filled gradient as large as F and adds it to the head's. With ``features, slots = tap(features, k)`` and
``gather_pixels(features, indices, slots)`` the K columns are added to the head's own gradient instead.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._common import check_device, check_indices, check_same, check_tensor, describe, within

# The slots carry indices as fp32 "gradients", which hold integers exactly up to here.
MAX_TAPPED_PIXELS = 1 << 24


@dataclass(eq=False)
class Slots:
    """Where the gradient of K gathered columns an image returns to a tapped feature map. Serves one gather."""

    columns: Tensor  # [N, K, D]: an empty stand-in whose gradient is the columns' gradient
    indices: Tensor  # fp32 [N, K]: an empty stand-in whose "gradient" is the pixels' indices
    used: bool = False


def _pixels_of(features: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Index tensors (image [N, 1], row [N, K], column [N, K]) that address F without flattening, hence copying, it."""
    images = torch.arange(len(features), device=features.device)[:, None]
    flat = indices.long().clamp(0, features.shape[2] * features.shape[3] - 1)
    return images, flat // features.shape[3], flat % features.shape[3]


def gather_pixels_reference(features: Tensor, indices: Tensor) -> Tensor:
    """Plain PyTorch specification of `gather_pixels`."""
    images, rows, columns = _pixels_of(features, indices)
    inside = within(indices, features.shape[2] * features.shape[3])
    return torch.where(inside[..., None], features[images, :, rows, columns], torch.nan)


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.shape, ctx.k = features.shape, k
        columns = features.new_empty(len(features), k, features.shape[1])
        return features.view_as(features), columns, features.new_empty(len(features), k, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        dense, columns, indices = gradients
        if columns is None or indices is None:
            return dense, None
        # Autograd may share `dense` with another branch (the head may use F twice), so it is copied, not written.
        total = columns.new_zeros(ctx.shape) if dense is None else dense.clone()
        images, rows, across = _pixels_of(total, indices)
        total.permute(0, 2, 3, 1).index_put_((images, rows, across), columns, accumulate=True)
        return total, None


class _GatherThroughSlots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, columns: Tensor, carrier: Tensor, features: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.pixels = features.shape[2] * features.shape[3]
        return gather_pixels_reference(features, indices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (indices,) = ctx.saved_tensors
        inside = within(indices, ctx.pixels)
        return torch.where(inside[..., None], gradients[0], 0.0), indices.float(), None, None


def tap(features: Tensor, k: int) -> tuple[Tensor, Slots]:
    """Pass features on and open `k` columns an image for a later `gather_pixels`.

    Args:
        features: [N, D, H, W], floating point, any strides, H·W ≤ 2²⁴.
        k: seeds an image.

    Returns:
        The same features, to be given to the head, and the `Slots` for one `gather_pixels`.

    Raises:
        ValueError: not [N, D, H, W] floating point, k < 1, or more than 2²⁴ pixels.
    """
    check_tensor("features", features, 4)
    if k < 1 or features.shape[2] * features.shape[3] > MAX_TAPPED_PIXELS:
        raise ValueError(f"tap needs k ≥ 1 and H·W ≤ {MAX_TAPPED_PIXELS}, got k={k}, {describe(features)}")
    tapped, columns, carrier = _Tap.apply(features, k)
    return tapped, Slots(columns, carrier)


def gather_pixels(features: Tensor, indices: Tensor, slots: Slots | None = None) -> Tensor:
    """Read the feature vectors of K pixels an image.

    Args:
        features: [N, D, H, W], floating point, any strides; tokens [N, T, D] are the view
            ``tokens.transpose(1, 2).unsqueeze(-1)``.
        indices: [N, K] integer, pixels of the flattened map. One outside 0…H·W−1 gives a NaN vector.
        slots: what `tap` returned with these features. Without it the gradient of `features` is a dense tensor.

    Returns:
        [N, K, D] in the dtype of `features`. Gradients of a repeated pixel add up.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or slots of another shape.
        RuntimeError: slots that served a gather before.
    """
    check_tensor("features", features, 4)
    check_tensor("indices", indices, 2, integer=True)
    check_same("len(indices)", len(indices), "len(features)", len(features))
    check_device(features=features, indices=indices)
    check_indices(indices, features.shape[2] * features.shape[3])
    if slots is None:
        return gather_pixels_reference(features, indices)
    expected = (len(features), indices.shape[1], features.shape[1])
    if slots.columns.shape != expected:
        opened = list(slots.columns.shape)
        raise ValueError(f"slots were opened for {opened} [N, K, D], this gather needs {list(expected)}")
    if slots.used:
        raise RuntimeError("these slots already served a gather; call tap once for each gather_pixels")
    slots.used = True
    gathered: Tensor = _GatherThroughSlots.apply(slots.columns, slots.indices, features.detach(), indices)
    return gathered
