"""Add K vectors an image to the columns of a feature map in place: the backward of gathering them.

    T[n, :, p(n, k)] += g[n, k]                                                     (repeated pixels add up)

In PyTorch: ``total.permute(0, 2, 3, 1).index_put_((images, rows, columns), gradient, accumulate=True)``; here each
column is summed in fp32, in order, and written once: no atomics, the same bits in every run.
"""

import torch
from torch import Tensor

from ._common import accumulation_dtype, within
from ._launch import launch
from ._ops import define_op
from ._triton import cdiv, next_power_of_2, runs_triton, tl, triton

# 16 bytes a thread of fp16 in 4 warps: a row of 2048 features is two programs, so that few seeds fill more SMs.
MAX_BLOCK_D = 1024
# An image's indices are compared this many at a time.
MAX_BLOCK_K = 128


def pixels_of(features: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Index tensors (image [N, 1], row [N, K], column [N, K]) that address F without flattening, hence copying, it.

    Pixels outside the map are moved to its nearest end.
    """
    images = torch.arange(len(features), device=features.device)[:, None]
    flat = indices.long().clamp(0, features.shape[2] * features.shape[3] - 1)
    return images, flat // features.shape[3], flat % features.shape[3]


def add_columns_reference(total: Tensor, gradient: Tensor, indices: Tensor) -> None:
    """Plain PyTorch specification of `add_columns`."""
    inside = within(indices, total.shape[2] * total.shape[3])
    images, rows, columns = pixels_of(total, indices)
    flat = rows * total.shape[3] + columns
    first = (flat[:, :, None] == flat[:, None, :]).int().argmax(2)
    summed = gradient.new_zeros(gradient.shape, dtype=accumulation_dtype(gradient.dtype))
    summed.index_put_((images, first), torch.where(inside[..., None], gradient, 0.0).to(summed), accumulate=True)
    pixels = total.permute(0, 2, 3, 1)
    # Repeated pixels are written again with equal values.
    pixels[images, rows, columns] = (pixels[images, rows, columns] + summed[images, first]).to(total.dtype)


@triton.jit
def _add_columns(
    p_total, p_gradient, p_indices,
    k, d, width, pixels, stride_image, stride_d, stride_row, stride_column,
    stride_gradient_image, stride_gradient_k, stride_gradient_d, stride_indices_image, stride_indices_k,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program adds [BLOCK_D] features to one column: the first seed of a pixel, for all that name the pixel."""
    i_image = tl.program_id(0).to(tl.int64) // k
    i_seed = tl.program_id(0).to(tl.int64) % k
    p_indices += i_image * stride_indices_image
    pixel = tl.load(p_indices + i_seed * stride_indices_k).to(tl.int64)
    earlier, seeds = 0, 0
    for start in range(0, k, BLOCK_K):
        o_seed = start + tl.arange(0, BLOCK_K).to(tl.int64)
        b_pixel = tl.load(p_indices + o_seed * stride_indices_k, mask=o_seed < k, other=-1).to(tl.int64)
        m_same = b_pixel == pixel
        earlier += tl.sum((m_same & (o_seed < i_seed)).to(tl.int32), 0)
        seeds += tl.sum(m_same.to(tl.int32), 0)
    if (earlier == 0) & (pixel >= 0) & (pixel < pixels):
        o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        m_d = o_d < d
        p_seeds = p_gradient + i_image * stride_gradient_image + o_d.to(tl.int64) * stride_gradient_d
        b_sum = tl.load(p_seeds + i_seed * stride_gradient_k, mask=m_d, other=0.0).to(tl.float32)
        if seeds > 1:
            for i_other in range(i_seed + 1, k):
                m_same = m_d & (tl.load(p_indices + i_other * stride_indices_k).to(tl.int64) == pixel)
                b_sum += tl.load(p_seeds + i_other * stride_gradient_k, mask=m_same, other=0.0).to(tl.float32)
        p_column = p_total + i_image * stride_image + pixel // width * stride_row + pixel % width * stride_column
        p_column += o_d.to(tl.int64) * stride_d
        b_total = tl.load(p_column, mask=m_d, other=0.0).to(tl.float32) + b_sum
        tl.store(p_column, b_total.to(p_total.dtype.element_ty), mask=m_d)


def _config(k: int, d: int) -> dict[str, int]:
    """Block sizes and 8 features a thread."""
    block_d = min(next_power_of_2(d), MAX_BLOCK_D)
    block_k = min(next_power_of_2(k), MAX_BLOCK_K)
    return {"BLOCK_K": block_k, "BLOCK_D": block_d, "num_warps": max(1, block_d // 256)}


def _launch(total: Tensor, gradient: Tensor, indices: Tensor) -> None:
    if not runs_triton(total):
        return add_columns_reference(total, gradient, indices)
    n, k, d = gradient.shape
    if gradient.numel():
        config = _config(k, d)
        launch(
            _add_columns, (n * k, cdiv(d, config["BLOCK_D"])),
            total, gradient, indices, k, d, total.shape[3], total.shape[2] * total.shape[3],
            *total.stride(), *gradient.stride(), *indices.stride(), **config,
        )  # fmt: skip
    torch.autograd.graph.increment_version(total)
    return None


_op = define_op("add_columns_(Tensor(a!) total, Tensor gradient, Tensor indices) -> ()", _launch, lambda *_: None)


def add_columns_(total: Tensor, gradient: Tensor, indices: Tensor) -> None:
    """Add `gradient` to the columns of `total` that `indices` name, in place; not differentiable, nothing is checked.

    Args:
        total: [N, D, H, W], floating point, any strides without overlap.
        gradient: [N, K, D], any strides.
        indices: [N, K] pixels of the flattened map, integer or (up to 2²⁴) fp32; one outside of it adds nothing.
    """
    _op(total, gradient, indices)
