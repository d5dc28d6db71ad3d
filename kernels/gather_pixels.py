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
from torch.autograd.function import once_differentiable

from ._add_columns import add_columns_, pixels_of
from ._common import check_device, check_indices, check_same, check_tensor, describe, within
from ._launch import launch
from ._ops import define_op
from ._triton import cdiv, next_power_of_2, runs_triton, tl, triton

# The slots carry indices as fp32 "gradients", which hold integers exactly up to here.
MAX_TAPPED_PIXELS = 1 << 24
# 16 bytes a thread of fp16 in 4 warps: a row of 2048 features is two programs, so that few seeds fill more SMs.
MAX_BLOCK = 1024


@dataclass(eq=False)
class Slots:
    """Where the gradient of K gathered columns an image returns to a tapped feature map. Serves one gather."""

    columns: Tensor  # [N, K, D]: an empty stand-in whose gradient is the columns' gradient
    indices: Tensor  # fp32 [N, K]: an empty stand-in whose "gradient" is the pixels' indices
    used: bool = False

    def claim(self, features: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Both stand-ins, for the one gather they serve.

        Raises:
            ValueError: opened for features or indices of another shape.
            RuntimeError: claimed before.
        """
        opened, expected = [*self.columns.shape], [*indices.shape, features.shape[1]]
        if opened != expected:
            raise ValueError(f"slots were opened for {opened} [N, K, D], this gather needs {expected}")
        if self.used:
            raise RuntimeError("these slots already served a gather; call tap once for each gather_pixels")
        self.used = True
        return self.columns, self.indices


def gather_pixels_reference(features: Tensor, indices: Tensor) -> Tensor:
    """Plain PyTorch specification of `gather_pixels`."""
    images, rows, columns = pixels_of(features, indices)
    inside = within(indices, features.shape[2] * features.shape[3])
    return torch.where(inside[..., None], features[images, :, rows, columns], torch.nan)


@triton.jit
def _gather_pixels(
    p_features, p_indices, p_out,
    k, d, width, pixels, stride_image, stride_d, stride_row, stride_column, stride_indices_image, stride_indices_k,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program reads [BLOCK] features of one seed; with channels last these are contiguous."""
    i_seed = tl.program_id(0).to(tl.int64)
    i_image = i_seed // k
    pixel = tl.load(p_indices + i_image * stride_indices_image + i_seed % k * stride_indices_k).to(tl.int64)
    m_pixel = (pixel >= 0) & (pixel < pixels)
    o_d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_d = o_d < d
    o_d = o_d.to(tl.int64)
    p_pixel = p_features + i_image * stride_image + pixel // width * stride_row + pixel % width * stride_column
    b_values = tl.load(p_pixel + o_d * stride_d, mask=m_d & m_pixel, other=float("nan"))
    tl.store(p_out + i_seed * d + o_d, b_values, mask=m_d)


def _config(d: int) -> dict[str, int]:
    """Block size and warps: 8 features a thread."""
    block = min(next_power_of_2(d), MAX_BLOCK)
    return {"BLOCK": block, "num_warps": max(1, block // 256)}


def _launch(features: Tensor, indices: Tensor) -> Tensor:
    if not runs_triton(features):
        return gather_pixels_reference(features, indices)
    (n, k), d = indices.shape, features.shape[1]
    out = torch.empty(n, k, d, dtype=features.dtype, device=features.device)
    if out.numel():
        config = _config(d)
        launch(
            _gather_pixels, (n * k, cdiv(d, config["BLOCK"])),
            features, indices, out, k, d, features.shape[3], features.shape[2] * features.shape[3],
            *features.stride(), *indices.stride(), **config,
        )  # fmt: skip
    return out


_op = define_op(
    "gather_pixels(Tensor features, Tensor indices) -> Tensor",
    _launch,
    lambda features, indices: features.new_empty(*indices.shape, features.shape[1]),
)


def open_columns(features: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The two stand-ins of `Slots`, which hold memory but no values."""
    n, d = features.shape[:2]
    return features.new_empty(n, k, d), features.new_empty(n, k, dtype=torch.float32)


class _GatherPixels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.shape = features.shape
        # Channels last where a pixel's features are adjacent.
        ctx.layout = torch.channels_last if features.stride(1) == 1 else torch.contiguous_format
        return _op(features, indices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        total = torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device, memory_format=ctx.layout).zero_()
        add_columns_(total, gradient, indices)
        return total, None


class _GatherThroughSlots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, columns: Tensor, carrier: Tensor, features: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        return _op(features, indices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (indices,) = ctx.saved_tensors
        return gradient, indices.float(), None, None


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.shape = features.shape
        return features.view_as(features), *open_columns(features, k)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dense: Tensor | None, columns: Tensor | None, indices: Tensor | None) -> tuple[Any, None]:
        if columns is None or indices is None:
            return dense, None
        # Autograd may share `dense` with another branch (the head may use F twice), so it is copied, not written.
        # Inductor, which sees who else reads it, drops the copy where it can.
        total = columns.new_zeros(ctx.shape) if dense is None else dense.clone()
        add_columns_(total, columns, indices)
        return total, None


def check_tappable(features: Tensor, k: int) -> None:
    """Raise ValueError unless slots can serve `features`."""
    check_tensor("features", features, 4)
    if k < 1 or features.shape[2] * features.shape[3] > MAX_TAPPED_PIXELS:
        raise ValueError(f"slots need k ≥ 1 and H·W ≤ {MAX_TAPPED_PIXELS}, got k={k}, features of {describe(features)}")


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
    check_tappable(features, k)
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
        values: Tensor = _GatherPixels.apply(features, indices)
        return values
    gathered: Tensor = _GatherThroughSlots.apply(*slots.claim(features, indices), features.detach(), indices)
    return gathered
