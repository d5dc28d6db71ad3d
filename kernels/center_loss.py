"""Global consistency (GC): the class means of a batch are pulled towards the centers of the whole data set.

    L_gc = 1/|Y_B| Σ_{y ∈ Y_B} ‖a^y − w^y‖²                                                        (Eq. 5)

In PyTorch: ``(means - centers[labels]).square().sum(-1).sum()``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._common import (
    IGNORED_LABEL,
    L2_EPS,
    Distance,
    accumulation_dtype,
    check_device,
    check_distance,
    check_labels,
    check_same,
    check_tensor,
    measure,
    within,
)
from ._ops import define_op
from ._pairs import (
    EPS,
    IGNORED,
    channel_chunks,
    count_classes,
    find_class,
    label_block,
    next_of_class,
    total_parts,
    total_sizes,
)
from ._triton import runs_triton, tl, triton


def center_loss_reference(
    means: Tensor, labels: Tensor, centers: Tensor, distance: Distance = "squared_l2"
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch specification of `center_loss`."""
    present = labels != IGNORED_LABEL
    rows = centers[labels.clamp(0, len(centers) - 1)].to(means.dtype)
    difference = torch.where(present[:, None], means - rows, 0.0)
    difference = torch.where((present & ~within(labels, len(centers)))[:, None], torch.nan, difference)
    return torch.where(present, measure(difference, distance), 0.0).sum(), present.sum()


@triton.jit
def center_slope(  # type: ignore[no-untyped-def]
    b_mean, p_centers, label, present, o_channel, channels, classes, s_center, s_center_channel, SQUARED: tl.constexpr
):  # fmt: skip
    """[BLOCK_D] direction of a class's gradient, and the sum of squares of mean − center over these channels.

    The direction is 2(a − w) for squared_l2, and for l2 a − w + 1e-6, still to be divided by its length. A class that
    is not `present` has 0 and 0, one out of range 0 and NaN.
    """
    known = present & (label >= 0) & (label < classes)
    m_known = (o_channel < channels) & known
    p_center = p_centers + tl.where(known, label, 0) * s_center + o_channel.to(tl.int64) * s_center_channel
    b_gap = b_mean - tl.load(p_center, mask=m_known, other=0.0).to(tl.float32)
    if not SQUARED:
        b_gap += EPS
    b_gap = tl.where(m_known, b_gap, 0.0)
    part = tl.where(present & (known == 0), float("nan"), tl.sum(b_gap * b_gap, 0))
    return (2.0 * b_gap if SQUARED else b_gap), part


@triton.jit
def center_pull(  # type: ignore[no-untyped-def]
    p_slopes, p_lengths, scale, label, row, o_channel, channels, classes, SQUARED: tl.constexpr
):  # fmt: skip
    """[BLOCK_D] gradient of `scale`·distance with respect to the mean in `row`; 0 for a label out of range."""
    known = (label >= 0) & (label < classes)
    b_slope = tl.load(
        p_slopes + row.to(tl.int64) * channels + o_channel, mask=(o_channel < channels) & known, other=0.0
    )
    if not SQUARED:
        b_slope = b_slope / tl.load(p_lengths + row, mask=known, other=1.0)
    return tl.where(known, scale * b_slope, 0.0)


@triton.jit
def _center_parts(  # type: ignore[no-untyped-def]
    p_means, p_labels, p_centers, p_parts, p_slopes,
    channels, classes, s_mean, s_mean_channel, s_center, s_center_channel,
    SQUARED: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program a row and chunk of channels."""
    i_row, i_chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_channel = i_chunk * BLOCK_D + tl.arange(0, BLOCK_D)
    m_channel = o_channel < channels
    label = tl.load(p_labels + i_row).to(tl.int64)
    present = label != IGNORED
    p_mean = p_means + i_row * s_mean + o_channel.to(tl.int64) * s_mean_channel
    b_mean = tl.load(p_mean, mask=m_channel & present, other=0.0).to(tl.float32)
    b_slope, part = center_slope(
        b_mean, p_centers, label, present, o_channel, channels, classes, s_center, s_center_channel, SQUARED
    )
    tl.store(p_slopes + i_row * channels + o_channel, b_slope, mask=m_channel)
    tl.store(p_parts + i_row * tl.num_programs(1) + i_chunk, part)


@triton.jit
def _center_total(  # type: ignore[no-untyped-def]
    p_parts, p_labels, p_lengths, p_total, p_count, rows, chunks,
    SQUARED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program, so that the sum has one order."""
    total = total_parts(p_parts, p_lengths, rows, chunks, SQUARED, BLOCK, BLOCK_C)
    tl.store(p_total, total.to(p_total.dtype.element_ty))
    tl.store(p_count, count_classes(p_labels, rows, BLOCK).to(tl.int64))


@triton.jit
def _center_backward(  # type: ignore[no-untyped-def]
    p_grad, p_slopes, p_labels, p_lengths, p_out, channels, classes, SQUARED: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    i_row = tl.program_id(0)
    o_channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    label = tl.load(p_labels + i_row).to(tl.int64)
    scale = tl.load(p_grad).to(tl.float32)
    b_pull = center_pull(p_slopes, p_lengths, scale, label, i_row, o_channel, channels, classes, SQUARED)
    p_row = p_out + i_row.to(tl.int64) * channels + o_channel
    tl.store(p_row, b_pull.to(p_out.dtype.element_ty), mask=o_channel < channels)


@triton.jit
def _center_backward_to_centers(  # type: ignore[no-untyped-def]
    p_grad, p_slopes, p_labels, p_lengths, p_out, rows, channels, classes,
    SQUARED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The first row of each label writes the sum over all of them into the zero-filled gradient of the centers."""
    i_row = tl.program_id(0)
    o_channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    label, first, _ = find_class(p_labels, i_row, rows, BLOCK_N)
    scale = tl.load(p_grad).to(tl.float32)
    b_sum = tl.zeros([BLOCK_D], tl.float32)
    i_member = tl.where(first == i_row, i_row, rows)
    while i_member < rows:
        b_sum -= center_pull(p_slopes, p_lengths, scale, label, i_member, o_channel, channels, classes, SQUARED)
        i_member = next_of_class(p_labels, label, i_member, rows, BLOCK_N)
    m_write = (o_channel < channels) & (first == i_row) & (label >= 0) & (label < classes)
    tl.store(p_out + label * channels + o_channel, b_sum.to(p_out.dtype.element_ty), mask=m_write)


def center_forward(
    means: Tensor, labels: Tensor, centers: Tensor, distance: Distance
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the forward: sum, count, slopes [N, D] as in `center_slope` and, for l2, the distances [N]."""
    rows, channels = means.shape
    squared = distance == "squared_l2"
    if not (runs_triton(means) and means.numel()):
        total, count = center_loss_reference(means, labels, centers, distance)
        dtype = accumulation_dtype(means.dtype)
        gap = means.to(dtype) - centers[labels.clamp(0, len(centers) - 1)].to(dtype)
        slopes = torch.where(within(labels, len(centers))[:, None], 2 * gap if squared else gap + L2_EPS, 0.0)
        lengths = slopes.new_empty(0) if squared else slopes.square().sum(1).sqrt()
        return total, count, slopes, lengths
    total, count, slopes, lengths = _outputs(means, labels, centers, distance)
    chunks, sizes = channel_chunks(channels)
    parts = slopes.new_empty(rows, chunks)
    labels = labels.contiguous()
    _center_parts[rows, chunks](
        means, labels, centers, parts, slopes, channels, len(centers), *means.stride(), *centers.stride(),
        SQUARED=squared, **sizes,
    )  # fmt: skip
    _center_total[1,](parts, labels, lengths, total, count, rows, chunks, SQUARED=squared, **total_sizes(chunks))
    return total, count, slopes, lengths


def _outputs(
    means: Tensor, labels: Tensor, centers: Tensor, distance: Distance
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    slopes = means.new_empty(means.shape, dtype=accumulation_dtype(means.dtype))
    lengths = slopes.new_empty(0 if distance == "squared_l2" else means.shape[0])
    return means.new_empty(()), labels.new_empty((), dtype=torch.int64), slopes, lengths


def _pulls(gradient: Tensor, slopes: Tensor, labels: Tensor, lengths: Tensor, classes: int, squared: bool) -> Tensor:
    """What `center_pull` computes, for all rows."""
    directions = slopes if squared else slopes / lengths[:, None]
    return torch.where(within(labels, classes)[:, None], gradient * directions, 0.0)


def center_backward(
    gradient: Tensor,
    slopes: Tensor,
    labels: Tensor,
    lengths: Tensor,
    classes: int,
    distance: Distance,
    dtype: torch.dtype,
) -> Tensor:
    """Launch the backward: gradient [N, D] of the means from that of the sum."""
    squared = distance == "squared_l2"
    if not (runs_triton(slopes) and slopes.numel()):
        return _pulls(gradient, slopes, labels, lengths, classes, squared).to(dtype)
    rows, channels = slopes.shape
    out = torch.empty(rows, channels, dtype=dtype, device=slopes.device)
    chunks, sizes = channel_chunks(channels)
    _center_backward[rows, chunks](
        gradient, slopes, labels.contiguous(), lengths, out, channels, classes,
        SQUARED=squared, **sizes,
    )  # fmt: skip
    return out


def _backward_to_centers(
    gradient: Tensor,
    slopes: Tensor,
    labels: Tensor,
    lengths: Tensor,
    classes: int,
    distance: Distance,
    dtype: torch.dtype,
) -> Tensor:
    """Launch the backward to the centers: dense [Y, D], zero but for the rows present."""
    squared = distance == "squared_l2"
    if not (runs_triton(slopes) and slopes.numel()):
        pulls = _pulls(gradient, slopes, labels, lengths, classes, squared)
        out = slopes.new_zeros(classes, slopes.shape[1])
        return out.index_add(0, labels.clamp(0, classes - 1), -pulls).to(dtype)
    rows, channels = slopes.shape
    out = torch.zeros(classes, channels, dtype=dtype, device=slopes.device)
    chunks, sizes = channel_chunks(channels)
    _center_backward_to_centers[rows, chunks](
        gradient, slopes, labels.contiguous(), lengths, out, rows, channels, classes,
        SQUARED=squared, BLOCK_N=label_block(rows), **sizes,
    )  # fmt: skip
    return out


_op = define_op(
    "center_loss(Tensor means, Tensor labels, Tensor centers, str distance) -> (Tensor, Tensor, Tensor, Tensor)",
    center_forward,
    _outputs,
)
_BACKWARD_ARGUMENTS = (
    "(Tensor gradient, Tensor slopes, Tensor labels, Tensor lengths, SymInt classes, str distance, ScalarType dtype)"
)
_op_backward = define_op(
    f"center_loss_backward{_BACKWARD_ARGUMENTS} -> Tensor",
    center_backward,
    lambda gradient, slopes, labels, lengths, classes, distance, dtype: slopes.new_empty(slopes.shape, dtype=dtype),
)
backward_to_centers = define_op(
    f"center_loss_backward_to_centers{_BACKWARD_ARGUMENTS} -> Tensor",
    _backward_to_centers,
    lambda gradient, slopes, labels, lengths, classes, distance, dtype: slopes.new_empty(
        classes, slopes.shape[1], dtype=dtype
    ),
)


class _CenterLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, means: Tensor, labels: Tensor, centers: Tensor, distance: Distance) -> tuple[Tensor, Tensor]:
        total, count, slopes, lengths = _op(means, labels, centers, distance)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(count)
        # Not the centers: they may have moved when backward comes.
        ctx.save_for_backward(slopes, labels, lengths)
        ctx.classes, ctx.distance, ctx.dtypes = len(centers), distance, (means.dtype, centers.dtype)
        return total, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, Tensor | None, None]:
        if gradients[0] is None:
            return None, None, None, None
        saved = (gradients[0], *ctx.saved_tensors, ctx.classes, ctx.distance)
        to_means = _op_backward(*saved, ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
        to_centers = backward_to_centers(*saved, ctx.dtypes[1]) if ctx.needs_input_grad[2] else None
        return to_means, None, to_centers, None


def center_loss(
    means: Tensor, labels: Tensor, centers: Tensor, distance: Distance = "squared_l2"
) -> tuple[Tensor, Tensor]:
    """Sum of distances of class means to their centers, and how many classes there are.

    Args:
        means: [N, D] floating point; rows labelled −100 do not count (see `class_means`).
        labels: [N] integer class of each row, −100 to ignore it; another one outside 0…Y−1 makes the sum NaN.
        centers: [Y, D]; takes a gradient only if it requires one (centers trained by back-propagation, section 4.3).
        distance: ``squared_l2`` (Eq. 5) or ``l2`` (the released choice).

    Returns:
        Scalar sum in the dtype of `means`, differentiable, and the int64 scalar count of classes.

    Raises:
        ValueError: distance, shapes, dtypes or devices that do not fit.
    """
    check_tensor("means", means, 2)
    check_tensor("labels", labels, 1, integer=True)
    check_tensor("centers", centers, 2)
    check_same("len(labels)", len(labels), "len(means)", len(means))
    check_same("means.shape[1]", means.shape[1], "centers.shape[1]", centers.shape[1])
    check_device(means=means, labels=labels, centers=centers)
    check_distance(distance)
    check_labels(labels, len(centers))
    total, count = _CenterLoss.apply(means, labels, centers, distance)
    return total, count
