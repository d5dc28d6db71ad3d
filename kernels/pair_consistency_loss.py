"""Stochastic consistency (SC): seeds of two images of one class are pulled together.

    L_sc(i, j) = 1/K Σ_k ‖v_i^k − v_j^k‖²                                                          (Eq. 1)

In PyTorch, for pairs in adjacent places: ``(v[0::2] - v[1::2]).square().sum(-1).mean(-1).sum()``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._common import (
    L2_EPS,
    Distance,
    accumulation_dtype,
    check_device,
    check_distance,
    check_same,
    check_tensor,
    earlier,
    first_true,
    measure,
    same_class,
)
from ._ops import define_op
from ._pairs import (
    EPS,
    channel_chunks,
    count_pairs,
    find_partner,
    label_block,
    load_seeds,
    seed_block,
    total_parts,
    total_sizes,
)
from ._triton import runs_triton, tl, triton


def pair_consistency_loss_reference(
    values: Tensor, labels: Tensor, groups: Tensor | None = None, distance: Distance = "squared_l2"
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch specification of `pair_consistency_loss`."""
    same = same_class(labels)
    if groups is not None:
        same = same & (groups[:, None] == groups)
    place = earlier(same)
    partners = same & (place % 2 == 0)[:, None] & (place == place[:, None] + 1)
    paired = partners.any(1)
    v = values.to(accumulation_dtype(values.dtype))
    difference = torch.where(paired[:, None, None], v - v[first_true(partners)], 0.0)
    per_pair = measure(difference, distance).mean(1)
    return torch.where(paired, per_pair, 0.0).sum(), paired.sum()


@triton.jit
def write_pair_parts(  # type: ignore[no-untyped-def]
    p_values, p_indices, p_copy, p_parts, i_image, partner, i_chunk, o_channel,
    seeds, channels, pixels, width, s_image, s_channel, s_row, s_column,
    SQUARED: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums of squares of v_i − v_j over a chunk of channels, written by the image that leads a pair; others write 0.

    `p_parts` is [N, K, chunks] for l2, which takes the root of each seed, and [N, chunks] for squared_l2. The seed
    vectors of `i_image` are also written to `p_copy` [N, K, D] if that is given.
    """
    chunks = tl.num_programs(1)
    b_total = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, seeds, BLOCK_K):
        o_seed = start + tl.arange(0, BLOCK_K)
        m_tile = (o_seed < seeds)[:, None] & (o_channel < channels)[None, :]
        m_pair = m_tile & (partner > i_image)
        b_own = load_seeds(
            p_values, p_indices, i_image, o_seed, o_channel, m_pair if p_copy is None else m_tile,
            seeds, pixels, width, s_image, s_channel, s_row, s_column,
        )  # fmt: skip
        b_other = load_seeds(
            p_values, p_indices, partner, o_seed, o_channel, m_pair,
            seeds, pixels, width, s_image, s_channel, s_row, s_column,
        )  # fmt: skip
        o_row = i_image.to(tl.int64) * seeds + o_seed
        if p_copy is not None:
            o_copy = o_row[:, None] * channels + o_channel[None, :]
            tl.store(p_copy + o_copy, b_own.to(p_copy.dtype.element_ty), mask=m_tile)
        b_apart = b_own - b_other if SQUARED else b_own - b_other + EPS
        b_square = tl.sum(tl.where(m_pair, b_apart * b_apart, 0.0), 1)
        if SQUARED:
            b_total += b_square
        else:
            tl.store(p_parts + o_row * chunks + i_chunk, b_square, mask=o_seed < seeds)
    if SQUARED:
        tl.store(p_parts + i_image.to(tl.int64) * chunks + i_chunk, tl.sum(b_total, 0))


@triton.jit
def pair_pull(  # type: ignore[no-untyped-def]
    p_values, p_lengths, scale, i_image, partner, o_seed, o_channel, m_tile,
    seeds, s_image, s_channel, s_seed, SQUARED: tl.constexpr,
):  # fmt: skip
    """[BLOCK_K, BLOCK_D] gradient of `scale`·Σ_k of a pair's distances with respect to one of its two images."""
    m_pair = m_tile & (partner >= 0)
    b_own = load_seeds(
        p_values, None, i_image, o_seed, o_channel, m_pair, seeds, seeds, 1, s_image, s_channel, s_seed, 0
    )
    b_other = load_seeds(
        p_values, None, partner, o_seed, o_channel, m_pair, seeds, seeds, 1, s_image, s_channel, s_seed, 0
    )
    b_pull = 2.0 * (b_own - b_other)
    if not SQUARED:
        leader = tl.minimum(i_image, partner).to(tl.int64)
        m_seed = (o_seed < seeds) & (partner >= 0)
        b_length = tl.load(p_lengths + leader * seeds + o_seed, mask=m_seed, other=1.0)
        # The length is that of v_i − v_j + ε with i the leader: seen from j the offset is negative.
        b_pull = (b_own - b_other + tl.where(partner > i_image, EPS, -EPS)) / b_length[:, None]
    return tl.where(m_pair, scale * b_pull, 0.0)


@triton.jit
def _pair_parts(  # type: ignore[no-untyped-def]
    p_values, p_labels, p_groups, p_parts, p_partners,
    images, seeds, channels, s_image, s_seed, s_channel,
    SQUARED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program an image and chunk of channels."""
    i_image, i_chunk = tl.program_id(0), tl.program_id(1)
    o_channel = i_chunk * BLOCK_D + tl.arange(0, BLOCK_D)
    partner = find_partner(p_labels, p_groups, i_image, images, BLOCK_N)
    tl.store(p_partners + i_image, partner, mask=i_chunk == 0)
    write_pair_parts(
        p_values, None, None, p_parts, i_image, partner, i_chunk, o_channel,
        seeds, channels, seeds, 1, s_image, s_channel, s_seed, 0, SQUARED, BLOCK_K,
    )  # fmt: skip


@triton.jit
def _pair_total(  # type: ignore[no-untyped-def]
    p_parts, p_partners, p_lengths, p_total, p_count, images, rows, seeds, chunks,
    SQUARED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program, so that the sum has one order."""
    total = total_parts(p_parts, p_lengths, rows, chunks, SQUARED, BLOCK, BLOCK_C)
    tl.store(p_total, total / seeds)
    tl.store(p_count, count_pairs(p_partners, images, BLOCK).to(tl.int64))


@triton.jit
def _pair_backward(  # type: ignore[no-untyped-def]
    p_grad, p_values, p_partners, p_lengths, p_out, seeds, channels, s_image, s_seed, s_channel,
    SQUARED: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_image = tl.program_id(0)
    o_channel = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    partner = tl.load(p_partners + i_image)
    scale = tl.load(p_grad) / seeds
    for start in range(0, seeds, BLOCK_K):
        o_seed = start + tl.arange(0, BLOCK_K)
        m_tile = (o_seed < seeds)[:, None] & (o_channel < channels)[None, :]
        b_pull = pair_pull(
            p_values, p_lengths, scale, i_image, partner, o_seed, o_channel, m_tile,
            seeds, s_image, s_channel, s_seed, SQUARED,
        )  # fmt: skip
        o_out = (i_image.to(tl.int64) * seeds + o_seed)[:, None] * channels + o_channel[None, :]
        tl.store(p_out + o_out, b_pull.to(p_out.dtype.element_ty), mask=m_tile)


def partners_reference(labels: Tensor, groups: Tensor | None) -> Tensor:
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


def pair_forward(
    values: Tensor, labels: Tensor, groups: Tensor | None, distance: Distance
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the forward: sum, count, partners int32 [N] and, for l2, the distances [N, K] of the images that lead."""
    images, seeds, channels = values.shape
    if not (runs_triton(values) and values.numel()):
        total, count = pair_consistency_loss_reference(values, labels, groups, distance)
        partners = partners_reference(labels, groups)
        lengths = _apart(values, partners, distance).square().sum(-1).sqrt() if distance == "l2" else total.new_empty(0)
        return total, count, partners, lengths
    squared = distance == "squared_l2"
    total, count, partners, lengths = _outputs(values, labels, groups, distance)
    chunks, sizes = channel_chunks(channels)
    rows = images if squared else images * seeds
    parts = total.new_empty(rows, chunks)
    _pair_parts[images, chunks](
        values, labels.contiguous(), None if groups is None else groups.contiguous(), parts, partners,
        images, seeds, channels, *values.stride(), SQUARED=squared,
        BLOCK_N=label_block(images), BLOCK_K=seed_block(seeds), **sizes,
    )  # fmt: skip
    _pair_total[1,](
        parts, partners, lengths, total, count, images, rows, seeds, chunks, SQUARED=squared, **total_sizes(chunks)
    )
    return total, count, partners, lengths


def _outputs(
    values: Tensor, labels: Tensor, groups: Tensor | None, distance: Distance
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total = values.new_empty((), dtype=accumulation_dtype(values.dtype))
    lengths = total.new_empty(values.shape[:2] if distance == "l2" else 0)
    return total, labels.new_empty((), dtype=torch.int64), labels.new_empty(labels.shape[0], dtype=torch.int32), lengths


def pair_backward(gradient: Tensor, values: Tensor, partners: Tensor, lengths: Tensor, distance: Distance) -> Tensor:
    """Launch the backward: gradient of `values` from that of the sum."""
    images, seeds, channels = values.shape
    if runs_triton(values) and values.numel():
        out = torch.empty(values.shape, dtype=values.dtype, device=values.device)
        chunks, sizes = channel_chunks(channels)
        _pair_backward[images, chunks](
            gradient, values, partners, lengths, out, seeds, channels, *values.stride(),
            SQUARED=distance == "squared_l2", BLOCK_K=seed_block(seeds), **sizes,
        )  # fmt: skip
        return out
    apart = _apart(values, partners, distance)
    pull = 2 * apart if distance == "squared_l2" else apart / lengths[..., None]
    return torch.where((partners >= 0)[:, None, None], gradient / seeds * pull, 0.0).to(values.dtype)


_op = define_op(
    "pair_consistency_loss(Tensor values, Tensor labels, Tensor? groups, str distance)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    pair_forward,
    _outputs,
)
_op_backward = define_op(
    "pair_consistency_loss_backward(Tensor gradient, Tensor values, Tensor partners, Tensor lengths, str distance)"
    " -> Tensor",
    pair_backward,
    lambda gradient, values, *_: torch.empty(values.shape, dtype=values.dtype, device=values.device),
)


class _PairConsistencyLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: Tensor, labels: Tensor, groups: Tensor | None, distance: Distance
    ) -> tuple[Tensor, Tensor]:
        total, count, partners, lengths = _op(values, labels, groups, distance)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(count)
        ctx.save_for_backward(values, partners, lengths)
        ctx.distance = distance
        return total, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        values, partners, lengths = ctx.saved_tensors
        gradient = gradients[0]
        pull = None if gradient is None else _op_backward(gradient, values, partners, lengths, ctx.distance)
        return pull, None, None, None


def pair_consistency_loss(
    values: Tensor, labels: Tensor, groups: Tensor | None = None, distance: Distance = "squared_l2"
) -> tuple[Tensor, Tensor]:
    """Sum of Eq. 1 over the pairs of a batch, and how many pairs there are.

    Inside each (class, group) the first image pairs with the second, the third with the fourth and so on, in batch
    order; the k-th seed meets the k-th. An image left over, or labelled −100, has no pair.

    Args:
        values: [N, K, D] seed vectors, floating point.
        labels: [N] integer classes.
        groups: [N] integer; images of different groups never pair (a class-paired batch gives its slot numbers).
        distance: ``squared_l2`` (Eq. 1) or ``l2`` (the released choice).

    Returns:
        Scalar sum in fp32 (fp64 for fp64 input), differentiable in `values`, and the int64 scalar count. Divide one by
        the other for the mean; with several ranks divide by the global count.

    Raises:
        ValueError: distance, shapes, dtypes or devices that do not fit.
    """
    check_tensor("values", values, 3)
    check_tensor("labels", labels, 1, integer=True)
    check_same("len(labels)", len(labels), "len(values)", len(values))
    if groups is not None:
        check_tensor("groups", groups, 1, integer=True)
        check_same("len(groups)", len(groups), "len(values)", len(values))
    check_device(values=values, labels=labels, groups=groups)
    check_distance(distance)
    total, count = _PairConsistencyLoss.apply(values, labels, groups, distance)
    return total, count
