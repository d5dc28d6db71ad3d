"""Stochastic consistency (SC): seed vectors of two images of one class are drawn together.

    L_sc(i, j) = 1/K Σ_k ‖v_i^k − v_j^k‖²                                                          (Eq. 1)

In PyTorch, for pairs of adjacent images: ``(v[0::2] - v[1::2]).square().sum(-1).mean()``.
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
    check_same,
    check_tensor,
    earlier,
    first_true,
    mask_ignored,
    measure,
    reduce_terms,
    same_class,
)
from ._launch import launch
from ._ops import define_op
from ._pairs import (
    EPS,
    IGNORED,
    channel_chunks,
    chunk_block,
    find_partner,
    label_block,
    load_seeds,
    new_rows,
    seed_block,
    sum_squares,
    terms_of,
    total_sizes,
    unpack,
)
from ._triton import runs_triton, tl, triton
from .center_loss import total_losses


def pair_consistency_loss_reference(
    values: Tensor,
    labels: Tensor,
    groups: Tensor | None = None,
    distance: Distance = "squared_l2",
    reduction: Reduction = "mean",
    *,
    ignore_index: int = IGNORED_LABEL,
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch specification of `pair_consistency_loss`."""
    same = same_class(mask_ignored(labels, ignore_index))
    if groups is not None:
        same = same & (groups[:, None] == groups)
    order = earlier(same)
    partners = same & (order % 2 == 0)[:, None] & (order == order[:, None] + 1)
    paired = partners.any(1)
    v = values.to(accumulation_dtype(values.dtype))
    difference = torch.where(paired[:, None, None], v - v[first_true(partners)], 0.0)
    per_pair = measure(difference, distance).mean(1)
    count = paired.sum()
    return reduce_terms(torch.where(paired, per_pair, 0.0), count, reduction), count


@triton.jit
def write_pair_rows(
    p_values, p_indices, p_labels, p_groups, p_copy, p_sums, p_squares, p_pairs, p_images, p_row_labels, p_partners,
    images, k, channels, pixels, width, s_image, s_channel, s_row, s_column, s_rows, s_row_label,
    SQUARED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program an image and chunk of channels: the squares of v_i − v_j if it leads a pair, 0 otherwise.

    Squares are [N, K, chunks] for l2, which takes the root of each seed's, and [N, 1, chunks] for squared_l2. With
    `p_copy` [N, K, D] the seed vectors are written there, and the other parts of `Rows` as well.
    """
    i_image, i_chunk = tl.program_id(0), tl.program_id(1)
    chunks = tl.num_programs(1)
    o_channel = i_chunk * BLOCK_D + tl.arange(0, BLOCK_D)
    partner = find_partner(p_labels, p_groups, i_image, images, BLOCK_N)
    o_row = i_image.to(tl.int64) * s_rows
    b_total = tl.zeros([BLOCK_K], tl.float32)
    b_sum = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, k, BLOCK_K):
        o_seed = start + tl.arange(0, BLOCK_K)
        m_tile = (o_seed < k)[:, None] & (o_channel < channels)[None, :]
        m_pair = m_tile & (partner > i_image)
        b_own = load_seeds(
            p_values, p_indices, i_image, o_seed, o_channel, m_pair if p_copy is None else m_tile,
            k, pixels, width, s_image, s_channel, s_row, s_column,
        )  # fmt: skip
        b_other = load_seeds(
            p_values, p_indices, partner, o_seed, o_channel, m_pair,
            k, pixels, width, s_image, s_channel, s_row, s_column,
        )  # fmt: skip
        if p_copy is not None:
            o_copy = (i_image.to(tl.int64) * k + o_seed)[:, None] * channels + o_channel[None, :]
            tl.store(p_copy + o_copy, b_own.to(p_copy.dtype.element_ty), mask=m_tile)
            b_sum += tl.sum(b_own, 0)
        b_apart = b_own - b_other if SQUARED else b_own - b_other + EPS
        b_square = tl.sum(tl.where(m_pair, b_apart * b_apart, 0.0), 1)
        if SQUARED:
            b_total += b_square
        else:
            tl.store(p_squares + o_row + o_seed * chunks + i_chunk, b_square, mask=o_seed < k)
    if SQUARED:
        tl.store(p_squares + o_row + i_chunk, tl.sum(b_total, 0))
    tl.store(p_partners + i_image, partner, mask=i_chunk == 0)
    tl.store(p_pairs + o_row, (partner > i_image).to(tl.float32), mask=i_chunk == 0)
    if p_copy is not None:
        label = tl.load(p_labels + i_image).to(tl.int64)
        tl.store(p_sums + o_row + o_channel, b_sum, mask=o_channel < channels)
        tl.store(p_images + o_row, (label != IGNORED).to(tl.float32), mask=i_chunk == 0)
        tl.store(p_row_labels + i_image.to(tl.int64) * s_row_label, label, mask=i_chunk == 0)


@triton.jit
def pair_gradient(
    p_values, p_squares, scale, i_image, partner, o_seed, o_channel, m_tile,
    k, chunks, s_image, s_channel, s_seed, s_rows, SQUARED: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """[BLOCK_K, BLOCK_D] gradient of `scale`·Σ_k of a pair's distances with respect to one of its two images."""
    m_pair = m_tile & (partner >= 0)
    b_own = load_seeds(p_values, None, i_image, o_seed, o_channel, m_pair, k, k, 1, s_image, s_channel, s_seed, 0)
    b_other = load_seeds(p_values, None, partner, o_seed, o_channel, m_pair, k, k, 1, s_image, s_channel, s_seed, 0)
    b_grad = 2.0 * (b_own - b_other)
    if not SQUARED:
        leader = tl.minimum(i_image, partner).to(tl.int64)
        m_seed = (o_seed < k) & (partner >= 0)
        b_square = sum_squares(p_squares + leader * s_rows + o_seed * chunks, m_seed, chunks, BLOCK_C)
        # The distance is that of v_i − v_j + ε with i the leader: seen from j the offset is negative.
        b_grad = (b_own - b_other + tl.where(partner > i_image, EPS, -EPS)) / tl.sqrt_rn(b_square)[:, None]
    return tl.where(m_pair, scale * b_grad, 0.0)


@triton.jit
def _pair_backward(
    p_grad, p_count, p_values, p_partners, p_squares, p_out,
    k, channels, chunks, s_grad, s_image, s_seed, s_channel, s_rows,
    SQUARED: tl.constexpr, MEAN: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program an image and chunk of channels; the gradient of a pair's loss is at the image that leads it."""
    i_image = tl.program_id(0)
    o_channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    partner = tl.load(p_partners + i_image)
    leader = tl.where(partner >= 0, tl.minimum(i_image, partner), i_image)
    scale = tl.load(p_grad + leader.to(tl.int64) * s_grad) / k
    if MEAN:
        scale /= tl.maximum(tl.load(p_count), 1).to(tl.float32)
    for start in range(0, k, BLOCK_K):
        o_seed = start + tl.arange(0, BLOCK_K)
        m_tile = (o_seed < k)[:, None] & (o_channel < channels)[None, :]
        b_grad = pair_gradient(
            p_values, p_squares, scale, i_image, partner, o_seed, o_channel, m_tile,
            k, chunks, s_image, s_channel, s_seed, s_rows, SQUARED, BLOCK_C,
        )  # fmt: skip
        o_out = (i_image.to(tl.int64) * k + o_seed)[:, None] * channels + o_channel[None, :]
        tl.store(p_out + o_out, b_grad.to(p_out.dtype.element_ty), mask=m_tile)


def _partners(labels: Tensor, groups: Tensor | None) -> Tensor:
    """int32 [N] image that each one pairs with inside its (class, group), −1 where there is none."""
    same = same_class(labels)
    if groups is not None:
        same = same & (groups[:, None] == groups)
    couple = earlier(same) // 2
    meets = same & (couple[:, None] == couple) & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return torch.where(meets.any(1), first_true(meets), -1).int()


def _apart(values: Tensor, partners: Tensor, distance: Distance) -> Tensor:
    """[N, K, D] v_i − v_j, with the offset of l2, as image i and as image j see it; 0 without a partner."""
    v = values.to(accumulation_dtype(values.dtype))
    apart = v - v[partners.clamp(min=0)]
    if distance == "l2":
        leads = partners > torch.arange(len(partners), device=partners.device)
        apart = apart + torch.where(leads, L2_EPS, -L2_EPS)[:, None, None]
    return torch.where((partners >= 0)[:, None, None], apart, 0.0)


def pair_rows(values: Tensor, labels: Tensor, groups: Tensor | None, distance: Distance) -> tuple[Tensor, Tensor]:
    """What `write_pair_rows` writes, in plain PyTorch: partners int32 [N] and the buffer of `Rows`."""
    (images, k, channels), chunks = values.shape, channel_chunks(values.shape[2])[0]
    partners = _partners(labels, groups)
    buffer = new_rows(values, images, channels, k, distance).zero_()
    rows = unpack(buffer, channels, k, distance)
    leads = partners > torch.arange(images, device=labels.device)
    squares = torch.where(leads[:, None], _apart(values, partners, distance).square().sum(-1), 0.0)
    rows.squares[:, ::chunks] = squares if distance == "l2" else squares.sum(1, keepdim=True)
    for part, value in (
        (rows.sums, values.to(buffer.dtype).sum(1)), (rows.labels, labels),
        (rows.pairs, leads[:, None]), (rows.images, (labels != IGNORED_LABEL)[:, None]),
    ):  # fmt: skip
        part.copy_(value)
    return partners, buffer


def _forward(
    values: Tensor, labels: Tensor, groups: Tensor | None, distance: Distance, reduction: Reduction
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the forward: loss, count, partners int32 [N], and squares [N, T·chunks] with the count of pairs behind."""
    images, k, channels = values.shape
    if not (runs_triton(values) and values.numel()):
        loss, count = pair_consistency_loss_reference(values, labels, groups, distance, reduction)
        partners, rows = pair_rows(values, labels, groups, distance)
        return loss, count, partners, rows[:, channels : channels + _squares(values, distance) + 1].clone()
    squared, (chunks, sizes) = distance == "squared_l2", channel_chunks(channels)
    loss, count, partners, squares = _outputs(values, labels, groups, distance, reduction)
    pairs, width = squares[:, -1], squares.shape[1]
    launch(
        write_pair_rows, (images, chunks),
        values, None, labels.contiguous(), None if groups is None else groups.contiguous(), None, None, squares, pairs,
        None, None, partners, images, k, channels, k, 1, values.stride(0), values.stride(2), values.stride(1), 0,
        width, 0, SQUARED=squared, BLOCK_N=label_block(images), BLOCK_K=seed_block(k), **sizes,
    )  # fmt: skip
    if reduction == "none":
        per_term = squares[:, :-1].unflatten(1, (terms_of(k, distance), chunks)).sum(2)
        return (per_term if squared else per_term.sqrt()).sum(1) / k, pairs.sum().long(), partners, squares
    launch(
        total_losses, (1,),
        squares, pairs, None, None, loss, count, None, None, images, k, terms_of(k, distance), chunks, width,
        SQUARED=squared, MEAN=reduction == "mean", **total_sizes(chunks),
    )  # fmt: skip
    return loss, count, partners, squares


def _squares(values: Tensor, distance: Distance) -> int:
    return terms_of(values.shape[1], distance) * channel_chunks(values.shape[2])[0]


def _outputs(
    values: Tensor, labels: Tensor, groups: Tensor | None, distance: Distance, reduction: Reduction
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    loss = values.new_empty(labels.shape if reduction == "none" else (), dtype=accumulation_dtype(values.dtype))
    squares = loss.new_empty(values.shape[0], _squares(values, distance) + 1)
    return loss, labels.new_empty((), dtype=torch.int64), labels.new_empty(labels.shape[0], dtype=torch.int32), squares


def value_gradients(
    gradient: Tensor,
    count: Tensor,
    values: Tensor,
    partners: Tensor,
    squares: Tensor,
    distance: Distance,
    mean: bool,
) -> Tensor:
    """Launch the backward: gradient of `values` from that of the loss, a scalar or [N]."""
    images, k, channels = values.shape
    gradient = gradient.expand(images)
    chunks, sizes = channel_chunks(channels)
    if runs_triton(values) and values.numel():
        out = torch.empty(values.shape, dtype=values.dtype, device=values.device)
        launch(
            _pair_backward, (images, chunks),
            gradient, count, values, partners, squares, out,
            k, channels, chunks, *gradient.stride(), *values.stride(), squares.stride(0),
            SQUARED=distance == "squared_l2", MEAN=mean, BLOCK_K=seed_block(k), BLOCK_C=chunk_block(chunks), **sizes,
        )  # fmt: skip
        return out
    gradient = gradient / count.clamp(min=1) if mean else gradient
    apart = _apart(values, partners, distance)
    direction = 2 * apart
    leaders = torch.minimum(partners, torch.arange(images, device=partners.device)).clamp(min=0)
    if distance == "l2":
        direction = apart / squares[leaders, : k * chunks].unflatten(1, (k, chunks)).sum(2, keepdim=True).sqrt()
    to_each = (gradient[leaders] / k)[:, None, None] * direction
    return torch.where((partners >= 0)[:, None, None], to_each, 0.0).to(values.dtype)


_op = define_op(
    "pair_consistency_loss(Tensor values, Tensor labels, Tensor? groups, str distance, str reduction)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _outputs,
)
_op_backward = define_op(
    "pair_consistency_loss_backward(Tensor gradient, Tensor count, Tensor values, Tensor partners, Tensor squares,"
    " str distance, bool mean) -> Tensor",
    value_gradients,
    lambda gradient, count, values, *_: torch.empty(values.shape, dtype=values.dtype, device=values.device),
)


class _PairConsistencyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, labels: Tensor, groups: Tensor | None, distance: Distance, reduction: Reduction
    ) -> tuple[Tensor, Tensor]:
        loss, count, partners, squares = _op(values, labels, groups, distance, reduction)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(count)
        ctx.save_for_backward(count, values, partners, squares)
        ctx.settings = distance, reduction == "mean"
        return loss, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        to_values = None if gradients[0] is None else _op_backward(gradients[0], *ctx.saved_tensors, *ctx.settings)
        return to_values, None, None, None, None


def pair_consistency_loss(
    values: Tensor,
    labels: Tensor,
    groups: Tensor | None = None,
    distance: Distance = "squared_l2",
    reduction: Reduction = "mean",
    *,
    ignore_index: int = IGNORED_LABEL,
) -> tuple[Tensor, Tensor]:
    """Eq. 1 over the pairs of a batch, and how many pairs there are.

    Inside each (class, group) the first image pairs with the second, the third with the fourth and so on, in batch
    order; the k-th seed vector meets the k-th. An image left over has no pair.

    Args:
        values: [N, K, D] seed vectors, floating point.
        labels: [N] integer classes.
        groups: [N] integer; images of different groups never pair (a class-paired batch gives its slot numbers).
        distance: ``squared_l2`` (Eq. 1) or ``l2`` (the released choice).
        reduction: ``mean`` over the pairs (0 without a pair), ``sum``, or ``none``: [N], the loss of each pair at its
            first image, 0 at all others.
        ignore_index: label of images that have no pair.

    Returns:
        The loss in fp32 (fp64 for fp64 input), differentiable in `values`, and the int64 scalar count of pairs.

    Raises:
        ValueError: distance, reduction, shapes, dtypes or devices that do not fit.
    """
    check_tensor("values", values, 3)
    check_tensor("labels", labels, 1, integer=True)
    check_same("len(labels)", len(labels), "len(values)", len(values))
    if groups is not None:
        check_tensor("groups", groups, 1, integer=True)
        check_same("len(groups)", len(groups), "len(values)", len(values))
    check_device(values=values, labels=labels, groups=groups)
    check_distance(distance, reduction)
    labels = mask_ignored(labels, ignore_index)
    loss, count = _PairConsistencyLoss.apply(values, labels, groups, distance, reduction)
    return loss, count
