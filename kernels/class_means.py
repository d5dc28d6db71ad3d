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
    Distance,
    accumulation_dtype,
    check_device,
    check_same,
    check_tensor,
    earlier,
    first_true,
    mask_ignored,
    same_class,
)
from ._launch import launch
from ._ops import define_op
from ._pairs import IGNORED, Rows, channel_chunks, find_class, label_block
from ._triton import runs_triton, tl, triton
from .center_loss import center_gap, center_gap_reference

# Rows added at a time: 16 × 256 values are 16 registers a thread, and 80 images of one class are five rounds.
BLOCK_R = 16


class ClassMeans(NamedTuple):
    """Class means, each in the row of its class's first image; the other rows are to be ignored."""

    means: Tensor  # [N, D] fp32 (fp64 for fp64 input), zero in ignored rows
    labels: Tensor  # [N] the class at its first image, −100 elsewhere
    counts: Tensor  # int64 [N] images of the class at its first image, 0 elsewhere


def class_means_reference(
    values: Tensor, labels: Tensor, *, ignore_index: int = IGNORED_LABEL, images: Tensor | None = None, k: int = 0
) -> ClassMeans:
    """Plain PyTorch specification of `class_means`.

    Args:
        images: [N, 1] how many images each row stands for, by default one; k: seed vectors added up in each of them.
    """
    labels = mask_ignored(labels, ignore_index)
    same = same_class(labels)
    first = (earlier(same) == 0) & (labels != IGNORED_LABEL)
    members = same if images is None else same * images.T.long()
    counts = torch.where(first, members.sum(1), 0)
    # Each image is added to its class's first row: a NaN stays in its class, as it would not in a matrix product.
    row = torch.where(labels != IGNORED_LABEL, first_true(same), torch.arange(len(labels), device=labels.device))
    per_image = values.to(accumulation_dtype(values.dtype)).sum(1)
    sums = torch.zeros_like(per_image).index_add(0, row, per_image)
    means = torch.where(first[:, None], sums / (counts * (k or values.shape[1])).clamp(min=1)[:, None], 0.0)
    return ClassMeans(means, torch.where(first, labels, IGNORED_LABEL), counts)


@triton.jit
def _class_means(
    p_values, p_labels, p_images, p_centers, p_means, p_class_labels, p_counts, p_gaps, p_squares,
    rows, k, channels, classes, row_k, s_row, s_seed, s_channel, s_label, s_images, s_center, s_center_channel,
    SQUARED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program a row and chunk of channels; that of a class's first row adds all of them, BLOCK_R at a time.

    Only the class's own rows are read: a NaN stays in its class, as it would not in a masked product. A row holds
    `row_k` vectors of which each image in it has `k` (rows that were added up hold 1). With `p_centers` the gap between
    mean and center is written too, see `center_gap`.
    """
    i_row, i_chunk = tl.program_id(0), tl.program_id(1)
    o_channel = i_chunk * BLOCK_D + tl.arange(0, BLOCK_D)
    m_channel = o_channel < channels
    label = tl.load(p_labels + i_row.to(tl.int64) * s_label).to(tl.int64)
    first, count = find_class(p_labels, p_images, label, rows, s_label, s_images, BLOCK_N)
    leads = (first == i_row) & (label != IGNORED)

    b_sum = tl.zeros([BLOCK_D], tl.float32)
    for start in range(i_row * row_k, tl.where(leads, rows * row_k, 0), BLOCK_R):
        o_vector = start + tl.arange(0, BLOCK_R)
        o_row = (o_vector // row_k).to(tl.int64)
        m_vector = o_row < rows
        m_vector &= tl.load(p_labels + o_row * s_label, mask=m_vector, other=IGNORED).to(tl.int64) == label
        if tl.max(m_vector.to(tl.int32), 0) > 0:
            p_vector = p_values + o_row * s_row + (o_vector % row_k).to(tl.int64) * s_seed
            p_tile = p_vector[:, None] + o_channel.to(tl.int64)[None, :] * s_channel
            b_tile = tl.load(p_tile, mask=m_vector[:, None] & m_channel[None, :], other=0.0)
            b_sum += tl.sum(b_tile.to(tl.float32), 0)
    b_mean = tl.div_rn(b_sum, tl.zeros([BLOCK_D], tl.float32) + tl.where(leads, count * k, 1))

    o_mean = i_row.to(tl.int64) * channels + o_channel
    tl.store(p_means + o_mean, b_mean, mask=m_channel)
    class_label = tl.where(leads, label, IGNORED).to(p_class_labels.dtype.element_ty)
    tl.store(p_class_labels + i_row, class_label, mask=i_chunk == 0)
    tl.store(p_counts + i_row, tl.where(leads, count, 0).to(tl.int64), mask=i_chunk == 0)
    if p_centers is not None:
        b_gap, squares = center_gap(
            b_mean, p_centers, label, leads, o_channel, channels, classes, s_center, s_center_channel, SQUARED
        )
        tl.store(p_gaps + o_mean, b_gap, mask=m_channel)
        tl.store(p_squares + i_row.to(tl.int64) * tl.num_programs(1) + i_chunk, squares)


def means_of_rows(rows: Rows, k: int, centers: Tensor, distance: Distance) -> tuple[Tensor, ...]:
    """Launch over rows: `ClassMeans`, gaps [M, D] to the centers and their squares [M, chunks], see `center_gap`."""
    if not (runs_triton(rows.sums) and rows.sums.numel()):
        of_class = class_means_reference(rows.sums[:, None], rows.labels, images=rows.images, k=k)
        return *of_class, *center_gap_reference(of_class.means, of_class.labels, centers, distance)
    images, channels = rows.sums.shape
    chunks, sizes = channel_chunks(channels)
    means, gaps = (rows.sums.new_empty(images, channels) for _ in range(2))
    labels, counts = (rows.labels.new_empty(images) for _ in range(2))
    out = means, labels, counts, gaps, rows.sums.new_empty(images, chunks)
    launch(
        _class_means, (images, chunks),
        rows.sums, rows.labels, rows.images, centers, *out, images, k, channels, len(centers),
        1, rows.sums.stride(0), 0, 1, rows.labels.stride(0), rows.images.stride(0), *centers.stride(),
        SQUARED=distance == "squared_l2", BLOCK_N=label_block(images), BLOCK_R=BLOCK_R, **sizes,
    )  # fmt: skip
    return out


def _forward(values: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    if not (runs_triton(values) and values.numel()):
        return class_means_reference(values, labels)
    images, k, channels = values.shape
    out = _outputs(values, labels)
    chunks, sizes = channel_chunks(channels)
    launch(
        _class_means, (images, chunks),
        values, labels, None, None, *out, None, None, images, k, channels, 0, k, *values.stride(), labels.stride(0),
        0, 0, 0, SQUARED=True, BLOCK_N=label_block(images), BLOCK_R=BLOCK_R, **sizes,
    )  # fmt: skip
    return out


def _outputs(values: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    images, _, channels = values.shape
    means = values.new_empty(images, channels, dtype=accumulation_dtype(values.dtype))
    return means, labels.new_empty(images), labels.new_empty(images, dtype=torch.int64)


@triton.jit
def _class_means_backward(
    p_grad, p_labels, p_class_labels, p_counts, p_out, rows, k, channels, s_grad, s_grad_channel, s_label,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """[N, D] gradient of each seed vector of an image: its K are the same."""
    i_image = tl.program_id(0)
    o_channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    m_channel = o_channel < channels
    label = tl.load(p_labels + i_image.to(tl.int64) * s_label).to(tl.int64)
    row, _ = find_class(p_class_labels, None, label, rows, 1, 0, BLOCK_N)
    member = label != IGNORED
    count = tl.load(p_counts + row, mask=member, other=1)
    p_row = p_grad + row.to(tl.int64) * s_grad + o_channel.to(tl.int64) * s_grad_channel
    b_grad = tl.load(p_row, mask=m_channel & member, other=0.0).to(tl.float32) / (count * k).to(tl.float32)
    tl.store(p_out + i_image.to(tl.int64) * channels + o_channel, b_grad.to(p_out.dtype.element_ty), mask=m_channel)


def row_of_class(labels: Tensor, class_labels: Tensor) -> Tensor:
    """[N] the row of `class_labels` that has each image's label; 0 for an image that has none."""
    return (labels[:, None] == class_labels).int().argmax(1) if len(labels) else labels.long()


def _backward(
    gradient: Tensor, labels: Tensor, class_labels: Tensor, counts: Tensor, k: int, dtype: torch.dtype
) -> Tensor:
    """[N, D] gradient, in the dtype of the values, of every seed vector of an image."""
    images, channels = gradient.shape
    if runs_triton(gradient) and gradient.numel():
        out = torch.empty(images, channels, dtype=dtype, device=gradient.device)
        chunks, sizes = channel_chunks(channels)
        launch(
            _class_means_backward, (images, chunks),
            gradient, labels, class_labels, counts, out, images, k, channels, *gradient.stride(), labels.stride(0),
            BLOCK_N=label_block(images), **sizes,
        )  # fmt: skip
        return out
    rows = row_of_class(labels, class_labels)
    per_seed = gradient[rows] / (counts[rows].clamp(min=1) * k)[:, None]
    return torch.where((labels != IGNORED_LABEL)[:, None], per_seed, 0.0).to(dtype)


_op = define_op("class_means(Tensor values, Tensor labels) -> (Tensor, Tensor, Tensor)", _forward, _outputs)
_op_backward = define_op(
    "class_means_backward(Tensor gradient, Tensor labels, Tensor class_labels, Tensor counts, SymInt k,"
    " ScalarType dtype) -> Tensor",
    _backward,
    lambda gradient, labels, class_labels, counts, k, dtype: gradient.new_empty(gradient.shape, dtype=dtype),
)


class _ClassMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        means, class_labels, counts = _op(values, labels)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(class_labels, counts)
        ctx.save_for_backward(labels, class_labels, counts)
        ctx.k, ctx.dtype = values.shape[1], values.dtype
        return means, class_labels, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        if gradients[0] is None:
            return None, None
        per_seed = _op_backward(gradients[0], *ctx.saved_tensors, ctx.k, ctx.dtype)
        return per_seed[:, None].expand(-1, ctx.k, -1), None


def class_means(values: Tensor, labels: Tensor, *, ignore_index: int = IGNORED_LABEL) -> ClassMeans:
    """Average the seed vectors of each class of the batch.

    Args:
        values: [N, K, D] seed vectors, floating point.
        labels: [N] integer classes in any order.
        ignore_index: label of images that belong to no class.

    Returns:
        `ClassMeans`; its means are differentiable in `values`.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    check_tensor("values", values, 3)
    check_tensor("labels", labels, 1, integer=True)
    check_same("len(labels)", len(labels), "len(values)", len(values))
    check_device(values=values, labels=labels)
    return ClassMeans(*_ClassMeans.apply(values, mask_ignored(labels, ignore_index)))
