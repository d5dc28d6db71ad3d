"""Global consistency (GC): the class means of a batch are drawn to the centers of the whole data set.

    L_gc = 1/|Y_B| Σ_{y ∈ Y_B} ‖a^y − w^y‖²                                                        (Eq. 5)

In PyTorch: ``(means - centers[labels]).square().sum(-1).mean()``. With ``l2``, ‖w − a + 1e-6‖ as the release has it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._common import (
    IGNORED_LABEL,
    L2_EPS,
    Distance,
    Reduction,
    accumulation_dtype,
    check_device,
    check_distance,
    check_labels,
    check_same,
    check_tensor,
    mask_ignored,
    measure,
    reduce_terms,
    within,
)
from ._launch import launch
from ._ops import define_op
from ._pairs import EPS, IGNORED, channel_chunks, chunk_block, sum_squares, total_sizes
from ._triton import runs_triton, tl, triton


def center_loss_reference(
    means: Tensor,
    labels: Tensor,
    centers: Tensor,
    distance: Distance = "squared_l2",
    reduction: Reduction = "mean",
    *,
    ignore_index: int = IGNORED_LABEL,
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch specification of `center_loss`."""
    labels = mask_ignored(labels, ignore_index)
    present = labels != IGNORED_LABEL
    rows = centers[labels.clamp(0, len(centers) - 1)].to(means.dtype)
    difference = torch.where(present[:, None], rows - means, 0.0)
    difference = torch.where((present & ~within(labels, len(centers)))[:, None], torch.nan, difference)
    count = present.sum()
    return reduce_terms(torch.where(present, measure(difference, distance), 0.0), count, reduction), count


@triton.jit
def center_gap(
    b_mean, p_centers, label, present, o_channel, channels, classes, s_center, s_center_channel, SQUARED: tl.constexpr
):
    """[BLOCK_D] mean − center, less 1e-6 for l2, and the sum of its squares over these channels.

    A class that is not `present` has 0 and 0, one out of range 0 and NaN.
    """
    known = present & (label >= 0) & (label < classes)
    m_known = (o_channel < channels) & known
    p_center = p_centers + tl.where(known, label, 0) * s_center + o_channel.to(tl.int64) * s_center_channel
    b_gap = b_mean - tl.load(p_center, mask=m_known, other=0.0).to(tl.float32)
    if not SQUARED:
        b_gap -= EPS
    b_gap = tl.where(m_known, b_gap, 0.0)
    return b_gap, tl.where(present & (known == 0), float("nan"), tl.sum(b_gap * b_gap, 0))


@triton.jit
def center_gradient(
    p_gaps, p_squares, scale, label, row, o_channel, channels, classes, chunks,
    SQUARED: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """[BLOCK_D] gradient of `scale`·distance with respect to the mean in `row`; 0 for a label out of range."""
    known = (label >= 0) & (label < classes)
    m_known = (o_channel < channels) & known
    b_gap = tl.load(p_gaps + row.to(tl.int64) * channels + o_channel, mask=m_known, other=0.0)
    if SQUARED:
        return tl.where(known, scale * 2.0 * b_gap, 0.0)
    b_row = tl.zeros([1], tl.int64) + row
    b_square = sum_squares(p_squares + b_row * chunks, known & (b_row >= 0), chunks, BLOCK_C)
    return tl.where(known, scale * b_gap / tl.sqrt_rn(b_square), 0.0)


@triton.jit
def _total_terms(
    p_squares, terms, terms_in_row, chunks, s_row, SQUARED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Sum of the terms whose squares are given, of their roots for l2."""
    BLOCK_T: tl.constexpr = BLOCK // BLOCK_C
    b_total = tl.zeros([BLOCK_T], tl.float32)
    for start in range(0, terms, BLOCK_T):
        o_term = start + tl.arange(0, BLOCK_T)
        p_term = p_squares + (o_term // terms_in_row).to(tl.int64) * s_row + o_term % terms_in_row * chunks
        b_term = sum_squares(p_term, o_term < terms, chunks, BLOCK_C)
        b_total += b_term if SQUARED else tl.sqrt_rn(b_term)
    return tl.sum(b_total, 0)


@triton.jit
def total_losses(
    p_pair_squares, p_row_pairs, p_center_squares, p_class_labels, p_sc, p_pairs, p_gc, p_classes,
    rows, k, terms, chunks, s_row, SQUARED: tl.constexpr, MEAN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """SC and the count of pairs, GC and the count of classes, or one of both: one program, so a sum has one order."""
    b_pairs, b_classes = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for start in range(0, rows, BLOCK):
        o_row = (start + tl.arange(0, BLOCK)).to(tl.int64)
        if p_sc is not None:
            b_pairs += tl.load(p_row_pairs + o_row * s_row, mask=o_row < rows, other=0.0).to(tl.int32)
        if p_gc is not None:
            b_label = tl.load(p_class_labels + o_row, mask=o_row < rows, other=IGNORED)
            b_classes += (b_label != IGNORED).to(tl.int32)
    if p_sc is not None:
        sc = _total_terms(p_pair_squares, rows * terms, terms, chunks, s_row, SQUARED, BLOCK, BLOCK_C) / k
        pairs = tl.sum(b_pairs, 0)
        tl.store(p_sc, sc / tl.maximum(pairs, 1) if MEAN else sc)
        tl.store(p_pairs, pairs.to(tl.int64))
    if p_gc is not None:
        gc = _total_terms(p_center_squares, rows, 1, chunks, chunks, SQUARED, BLOCK, BLOCK_C)
        classes = tl.sum(b_classes, 0)
        tl.store(p_gc, (gc / tl.maximum(classes, 1) if MEAN else gc).to(p_gc.dtype.element_ty))
        tl.store(p_classes, classes.to(tl.int64))


@triton.jit
def _center_gaps(
    p_means, p_labels, p_centers, p_squares, p_gaps,
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
    b_gap, squares = center_gap(
        b_mean, p_centers, label, present, o_channel, channels, classes, s_center, s_center_channel, SQUARED
    )
    tl.store(p_gaps + i_row * channels + o_channel, b_gap, mask=m_channel)
    tl.store(p_squares + i_row * tl.num_programs(1) + i_chunk, squares)


@triton.jit
def _center_backward(
    p_grad, p_count, p_gaps, p_labels, p_squares, p_out, channels, classes, chunks, s_grad,
    SQUARED: tl.constexpr, MEAN: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program a row and chunk of channels."""
    i_row = tl.program_id(0)
    o_channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    label = tl.load(p_labels + i_row).to(tl.int64)
    scale = tl.load(p_grad + i_row.to(tl.int64) * s_grad).to(tl.float32)
    if MEAN:
        scale /= tl.maximum(tl.load(p_count), 1).to(tl.float32)
    b_grad = center_gradient(
        p_gaps, p_squares, scale, label, i_row, o_channel, channels, classes, chunks, SQUARED, BLOCK_C
    )
    p_row = p_out + i_row.to(tl.int64) * channels + o_channel
    tl.store(p_row, b_grad.to(p_out.dtype.element_ty), mask=o_channel < channels)


def center_gap_reference(means: Tensor, labels: Tensor, centers: Tensor, distance: Distance) -> tuple[Tensor, Tensor]:
    """What `center_gap` computes, for all rows: gaps [N, D] and squares [N, chunks], all of them in the first chunk."""
    dtype = accumulation_dtype(means.dtype)
    gaps = means.to(dtype) - centers[labels.clamp(0, len(centers) - 1)].to(dtype)
    known = within(labels, len(centers))
    gaps = torch.where(known[:, None], gaps - L2_EPS if distance == "l2" else gaps, 0.0)
    squares = gaps.new_zeros(len(gaps), channel_chunks(means.shape[1])[0])
    squares[:, 0] = torch.where((labels != IGNORED_LABEL) & ~known, torch.nan, gaps.square().sum(1))
    return gaps, squares


def _forward(
    means: Tensor, labels: Tensor, centers: Tensor, distance: Distance, reduction: Reduction
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the forward: loss, count, gaps [N, D] and their squares [N, chunks]."""
    if not (runs_triton(means) and means.numel()):
        loss, count = center_loss_reference(means, labels, centers, distance, reduction)
        return loss, count, *center_gap_reference(means, labels, centers, distance)
    loss, count, gaps, squares = _outputs(means, labels, centers, distance, reduction)
    (rows, channels), (chunks, sizes), squared = means.shape, channel_chunks(means.shape[1]), distance == "squared_l2"
    labels = labels.contiguous()
    launch(
        _center_gaps, (rows, chunks),
        means, labels, centers, squares, gaps, channels, len(centers), *means.stride(), *centers.stride(),
        SQUARED=squared, **sizes,
    )  # fmt: skip
    if reduction == "none":
        per_row = squares.sum(1) if squared else squares.sum(1).sqrt()
        return per_row.to(means.dtype), (labels != IGNORED_LABEL).sum(), gaps, squares
    launch(
        total_losses, (1,),
        None, None, squares, labels, None, None, loss, count, rows, 1, 1, chunks, 0,
        SQUARED=squared, MEAN=reduction == "mean", **total_sizes(chunks),
    )  # fmt: skip
    return loss, count, gaps, squares


def _outputs(
    means: Tensor, labels: Tensor, centers: Tensor, distance: Distance, reduction: Reduction
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gaps = means.new_empty(means.shape, dtype=accumulation_dtype(means.dtype))
    squares = gaps.new_empty(means.shape[0], channel_chunks(means.shape[1])[0])
    loss = means.new_empty(labels.shape if reduction == "none" else ())
    return loss, labels.new_empty((), dtype=torch.int64), gaps, squares


def mean_gradients(
    gradient: Tensor,
    count: Tensor,
    gaps: Tensor,
    labels: Tensor,
    squares: Tensor,
    classes: int,
    distance: Distance,
    mean: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Launch the backward: gradient [N, D] of the means from that of the loss, a scalar or [N]."""
    rows, channels = gaps.shape
    gradient = gradient.expand(rows)
    chunks, sizes = channel_chunks(channels)
    squared = distance == "squared_l2"
    if runs_triton(gaps) and gaps.numel():
        out = torch.empty(rows, channels, dtype=dtype, device=gaps.device)
        launch(
            _center_backward, (rows, chunks),
            gradient, count, gaps, labels.contiguous(), squares, out, channels, classes, chunks, *gradient.stride(),
            SQUARED=squared, MEAN=mean, BLOCK_C=chunk_block(chunks), **sizes,
        )  # fmt: skip
        return out
    gradient = gradient / count.clamp(min=1) if mean else gradient
    directions = 2 * gaps if squared else gaps / squares.sum(1, keepdim=True).sqrt()
    return torch.where(within(labels, classes)[:, None], gradient[:, None] * directions, 0.0).to(dtype)


def _center_gradients(
    gradient: Tensor,
    count: Tensor,
    gaps: Tensor,
    labels: Tensor,
    squares: Tensor,
    classes: int,
    distance: Distance,
    mean: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Gradient [Y, D] of the centers, dense: rows of one class are added in fp32, where GC has one row a class."""
    to_means = mean_gradients(gradient, count, gaps, labels, squares, classes, distance, mean, gaps.dtype)
    # Rows out of range have gradient 0. Sorted, not atomic: the same bits in every run.
    row = labels.clamp(0, classes - 1).long()
    return gaps.new_zeros(classes, gaps.shape[1]).index_put((row,), -to_means, accumulate=True).to(dtype)


_op = define_op(
    "center_loss(Tensor means, Tensor labels, Tensor centers, str distance, str reduction)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _outputs,
)
_BACKWARD_ARGUMENTS = (
    "(Tensor gradient, Tensor count, Tensor gaps, Tensor labels, Tensor squares, SymInt classes, str distance,"
    " bool mean, ScalarType dtype) -> Tensor"
)
_op_backward = define_op(
    f"center_loss_backward{_BACKWARD_ARGUMENTS}",
    mean_gradients,
    lambda gradient, count, gaps, *rest: gaps.new_empty(gaps.shape, dtype=rest[-1]),
)
backward_to_centers = define_op(
    f"center_loss_backward_to_centers{_BACKWARD_ARGUMENTS}",
    _center_gradients,
    lambda gradient, count, gaps, labels, squares, classes, *rest: gaps.new_empty(
        classes, gaps.shape[1], dtype=rest[-1]
    ),
)


class _CenterLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, means: Tensor, labels: Tensor, centers: Tensor, distance: Distance, reduction: Reduction
    ) -> tuple[Tensor, Tensor]:
        loss, count, gaps, squares = _op(means, labels, centers, distance, reduction)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(count)
        # Not the centers: they may have moved when backward comes.
        ctx.save_for_backward(count, gaps, labels, squares)
        ctx.settings, ctx.dtypes = (len(centers), distance, reduction == "mean"), (means.dtype, centers.dtype)
        return loss, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradients[0] is None:
            return None, None, None, None, None
        saved = (gradients[0], *ctx.saved_tensors, *ctx.settings)
        to_means = _op_backward(*saved, ctx.dtypes[0]) if ctx.needs_input_grad[0] else None
        to_centers = backward_to_centers(*saved, ctx.dtypes[1]) if ctx.needs_input_grad[2] else None
        return to_means, None, to_centers, None, None


def center_loss(
    means: Tensor,
    labels: Tensor,
    centers: Tensor,
    distance: Distance = "squared_l2",
    reduction: Reduction = "mean",
    *,
    ignore_index: int = IGNORED_LABEL,
) -> tuple[Tensor, Tensor]:
    """Distance of class means to their centers, and how many classes there are.

    Args:
        means: [N, D] floating point, a row a class (see `class_means`).
        labels: [N] integer class of each row; one outside 0…Y−1 makes the loss NaN.
        centers: [Y, D]; takes a gradient only if it requires one (centers trained by back-propagation, section 4.3).
        distance: ``squared_l2`` (Eq. 5) or ``l2`` (the released choice).
        reduction: ``mean`` over the classes (0 without a class), ``sum``, or ``none``: [N], one loss a row.
        ignore_index: label of rows that do not count.

    Returns:
        The loss in the dtype of `means`, differentiable, and the int64 scalar count of classes.

    Raises:
        ValueError: distance, reduction, shapes, dtypes or devices that do not fit.
    """
    check_tensor("means", means, 2)
    check_tensor("labels", labels, 1, integer=True)
    check_tensor("centers", centers, 2)
    check_same("len(labels)", len(labels), "len(means)", len(means))
    check_same("means.shape[1]", means.shape[1], "centers.shape[1]", centers.shape[1])
    check_device(means=means, labels=labels, centers=centers)
    check_distance(distance, reduction)
    labels = mask_ignored(labels, ignore_index)
    check_labels(labels, len(centers))
    loss, count = _CenterLoss.apply(means, labels, centers, distance, reduction)
    return loss, count
