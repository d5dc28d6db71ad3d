"""The mean seed vector of each class of a batch.

    a^y = 1/(K·|B^y|) Σ_{i: y_i = y} Σ_k v_i^k                                                     (Eq. 2)

In PyTorch: ``values[labels == y].mean((0, 1))`` for each y. Shapes do not depend on how many classes there are.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._common import (
    IGNORED_LABEL,
    accumulation_dtype,
    check_device,
    check_same,
    check_tensor,
    earlier,
    first_true,
    same_class,
)
from ._ops import define_op
from ._pairs import IGNORED, channel_chunks, find_class, label_block, load_seeds, next_of_class, seed_block
from ._triton import runs_triton, tl, triton


class ClassMeans(NamedTuple):
    """Class means, each in the row of its class's first image; the other rows are to be ignored."""

    means: Tensor  # [N, D] fp32 (fp64 for fp64 input), zero in ignored rows
    labels: Tensor  # [N] the class at its first image, −100 elsewhere
    counts: Tensor  # int64 [N] images of the class at its first image, 0 elsewhere


def class_means_reference(values: Tensor, labels: Tensor) -> ClassMeans:
    """Plain PyTorch specification of `class_means`."""
    same = same_class(labels)
    first = (earlier(same) == 0) & (labels != IGNORED_LABEL)
    counts = torch.where(first, same.sum(1), 0)
    # Each image is added to its class's first row: a NaN stays in its class, as it would not in a matrix product.
    row = torch.where(labels != IGNORED_LABEL, first_true(same), torch.arange(len(labels), device=labels.device))
    per_image = values.to(accumulation_dtype(values.dtype)).mean(1)
    sums = torch.zeros_like(per_image).index_add(0, row, per_image)
    means = torch.where(first[:, None], sums / counts.clamp(min=1)[:, None], 0.0)
    return ClassMeans(means, torch.where(first, labels, IGNORED_LABEL), counts)


@triton.jit
def mean_of_class(  # type: ignore[no-untyped-def]
    p_values, p_indices, p_labels, label, i_first, count, o_channel,
    images, seeds, channels, pixels, width, s_image, s_channel, s_row, s_column,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """[BLOCK_D] mean of the seed vectors of class `label` from image `i_first` on, in batch order; 0 from `images` on.

    Only the class's own images are read: a NaN stays in its class, as it would not in a masked product.
    """
    b_sum = tl.zeros([BLOCK_D], tl.float32)
    i_member = i_first
    while i_member < images:
        for start in range(0, seeds, BLOCK_K):
            o_seed = start + tl.arange(0, BLOCK_K)
            m_tile = (o_seed < seeds)[:, None] & (o_channel < channels)[None, :]
            b_tile = load_seeds(
                p_values, p_indices, i_member, o_seed, o_channel, m_tile,
                seeds, pixels, width, s_image, s_channel, s_row, s_column,
            )  # fmt: skip
            b_sum += tl.sum(b_tile, 0)
        i_member = next_of_class(p_labels, label, i_member, images, BLOCK_N)
    return tl.div_rn(b_sum, tl.zeros([BLOCK_D], tl.float32) + count * seeds)


@triton.jit
def write_class(  # type: ignore[no-untyped-def]
    p_class_labels, p_counts, p_firsts, i_image, label, first, count, mask
):  # fmt: skip
    """Label and count of a class in the row of its first image, and where that is."""
    leads = first == i_image
    b_label = tl.where(leads, label, IGNORED).to(p_class_labels.dtype.element_ty)
    tl.store(p_class_labels + i_image, b_label, mask=mask)
    tl.store(p_counts + i_image, tl.where(leads, count, 0).to(tl.int64), mask=mask)
    tl.store(p_firsts + i_image, first, mask=mask)


@triton.jit
def _class_means(  # type: ignore[no-untyped-def]
    p_values, p_labels, p_means, p_class_labels, p_counts, p_firsts,
    images, seeds, channels, s_image, s_seed, s_channel,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program an image and chunk of channels; that of a class's first image sums the class."""
    i_image, i_chunk = tl.program_id(0), tl.program_id(1)
    o_channel = i_chunk * BLOCK_D + tl.arange(0, BLOCK_D)
    label, first, count = find_class(p_labels, i_image, images, BLOCK_N)
    b_mean = mean_of_class(
        p_values, None, p_labels, label, tl.where(first == i_image, i_image, images), count, o_channel,
        images, seeds, channels, seeds, 1, s_image, s_channel, s_seed, 0, BLOCK_N, BLOCK_K, BLOCK_D,
    )  # fmt: skip
    tl.store(p_means + i_image.to(tl.int64) * channels + o_channel, b_mean, mask=o_channel < channels)
    write_class(p_class_labels, p_counts, p_firsts, i_image, label, first, count, i_chunk == 0)


@triton.jit
def _class_means_backward(  # type: ignore[no-untyped-def]
    p_grad, p_counts, p_firsts, p_out, seeds, channels, s_grad, s_grad_channel, BLOCK_D: tl.constexpr
):  # fmt: skip
    """[N, D] gradient of each seed vector of an image: its K are the same."""
    i_image = tl.program_id(0)
    o_channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_channel = o_channel < channels
    first = tl.load(p_firsts + i_image).to(tl.int64)
    count = tl.load(p_counts + first, mask=first >= 0, other=1)
    p_row = p_grad + first * s_grad + o_channel.to(tl.int64) * s_grad_channel
    b_grad = tl.load(p_row, mask=m_channel & (first >= 0), other=0.0).to(tl.float32) / (count * seeds).to(tl.float32)
    tl.store(p_out + i_image.to(tl.int64) * channels + o_channel, b_grad.to(p_out.dtype.element_ty), mask=m_channel)


def class_means_forward(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the forward: `ClassMeans`, and int32 [N] the place of the first image of each one's class, or −1."""
    images, seeds, channels = values.shape
    if not (runs_triton(values) and values.numel()):
        means, class_labels, counts = class_means_reference(values, labels)
        firsts = torch.where(labels != IGNORED_LABEL, first_true(same_class(labels)), -1).int()
        return means, class_labels, counts, firsts
    out = _outputs(values, labels)
    chunks, sizes = channel_chunks(channels)
    _class_means[images, chunks](
        values, labels.contiguous(), *out, images, seeds, channels, *values.stride(),
        BLOCK_N=label_block(images), BLOCK_K=seed_block(seeds), **sizes,
    )  # fmt: skip
    return out


def _outputs(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    means = values.new_empty(values.shape[0], values.shape[2], dtype=accumulation_dtype(values.dtype))
    places = labels.new_empty(labels.shape, dtype=torch.int32)
    return means, labels.new_empty(labels.shape), labels.new_empty(labels.shape, dtype=torch.int64), places


def class_means_backward(gradient: Tensor, counts: Tensor, firsts: Tensor, seeds: int, dtype: torch.dtype) -> Tensor:
    """Launch the backward: [N, D] gradient, in the dtype of the values, of every seed vector of an image."""
    images, channels = gradient.shape
    if runs_triton(gradient) and gradient.numel():
        out = torch.empty(images, channels, dtype=dtype, device=gradient.device)
        chunks, sizes = channel_chunks(channels)
        _class_means_backward[images, chunks](
            gradient, counts, firsts, out, seeds, channels, *gradient.stride(),
            **sizes,
        )  # fmt: skip
        return out
    rows = firsts.clamp(min=0)
    share = gradient[rows] / (counts[rows].clamp(min=1) * seeds)[:, None]
    return torch.where((firsts >= 0)[:, None], share, 0.0).to(dtype)


_op = define_op(
    "class_means(Tensor values, Tensor labels) -> (Tensor, Tensor, Tensor, Tensor)", class_means_forward, _outputs
)
_op_backward = define_op(
    "class_means_backward(Tensor gradient, Tensor counts, Tensor firsts, SymInt seeds, ScalarType dtype) -> Tensor",
    class_means_backward,
    lambda gradient, counts, firsts, seeds, dtype: gradient.new_empty(gradient.shape, dtype=dtype),
)


class _ClassMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        means, class_labels, counts, firsts = _op(values, labels)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(class_labels, counts)
        ctx.save_for_backward(counts, firsts)
        ctx.seeds, ctx.dtype = values.shape[1], values.dtype
        return means, class_labels, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        if gradients[0] is None:
            return None, None
        counts, firsts = ctx.saved_tensors
        share = _op_backward(gradients[0], counts, firsts, ctx.seeds, ctx.dtype)
        return share[:, None].expand(-1, ctx.seeds, -1), None


def class_means(values: Tensor, labels: Tensor) -> ClassMeans:
    """Average the seed vectors of each class of the batch.

    Args:
        values: [N, K, D] seed vectors, floating point.
        labels: [N] integer classes in any order; −100 belongs to no class.

    Returns:
        `ClassMeans`; its means are differentiable in `values`.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    check_tensor("values", values, 3)
    check_tensor("labels", labels, 1, integer=True)
    check_same("len(labels)", len(labels), "len(values)", len(values))
    check_device(values=values, labels=labels)
    return ClassMeans(*_ClassMeans.apply(values, labels))
