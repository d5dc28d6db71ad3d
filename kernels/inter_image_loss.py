"""The whole objective on chosen seeds: gather, SC, class means and GC in one call.

    V = gather_pixels(F, seeds),   SC = Σ pairs Eq. 1,   a = class means of V (Eq. 2),   GC = Σ classes Eq. 5

In PyTorch: the four ops it stands for, one after the other. Here forward is two launches and backward, which needs the
[N, K, D] seed vectors and no second look at F or the centers, is one, plus the one that adds columns to F's gradient.
"""

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._add_columns import add_columns_
from ._common import (
    Distance,
    accumulation_dtype,
    check_device,
    check_distance,
    check_indices,
    check_labels,
    check_same,
    check_tensor,
)
from ._ops import define_op
from ._pairs import (
    IGNORED,
    channel_chunks,
    count_classes,
    count_pairs,
    find_class,
    find_partner,
    label_block,
    seed_block,
    total_parts,
    total_sizes,
)
from ._triton import runs_triton, tl, triton
from .center_loss import (
    backward_to_centers,
    center_backward,
    center_forward,
    center_loss_reference,
    center_pull,
    center_slope,
)
from .class_means import (
    ClassMeans,
    class_means_backward,
    class_means_forward,
    class_means_reference,
    mean_of_class,
    write_class,
)
from .gather_pixels import Slots, gather_pixels, gather_pixels_reference
from .pair_consistency_loss import (
    pair_backward,
    pair_consistency_loss_reference,
    pair_forward,
    pair_pull,
    write_pair_parts,
)

Reduction = Literal["sum", "mean"]


class InterImageSums(NamedTuple):
    """Sums over a batch with what they are to be divided by, and the class means the centers move to."""

    sc: Tensor  # scalar, sum of Eq. 1 over pairs; their mean with reduction="mean"
    pairs: Tensor  # int64 scalar
    gc: Tensor  # scalar, sum of Eq. 5's terms over classes; their mean with reduction="mean"
    classes: Tensor  # int64 scalar
    class_means: ClassMeans  # detached


def inter_image_loss_reference(
    features: Tensor,
    indices: Tensor,
    labels: Tensor,
    centers: Tensor,
    *,
    slots: Slots | None = None,
    groups: Tensor | None = None,
    distance: Distance = "squared_l2",
    reduction: Reduction = "sum",
) -> InterImageSums:
    """Plain PyTorch specification of `inter_image_loss`."""
    values = gather_pixels_reference(features, indices) if slots is None else gather_pixels(features, indices, slots)
    sc, pairs = pair_consistency_loss_reference(values, labels, groups, distance)
    of_class = class_means_reference(values, labels)
    gc, classes = center_loss_reference(of_class.means, of_class.labels, centers, distance)
    if reduction == "mean":
        sc, gc = sc / pairs.clamp(min=1), gc / classes.clamp(min=1)
    return InterImageSums(sc, pairs, gc, classes, of_class._replace(means=of_class.means.detach()))


@triton.jit
def _inter_image_parts(  # type: ignore[no-untyped-def]
    p_features, p_indices, p_labels, p_groups, p_centers,
    p_pair_parts, p_center_parts, p_means, p_class_labels, p_counts, p_values, p_partners, p_firsts, p_slopes,
    images, seeds, channels, classes, pixels, width,
    s_image, s_channel, s_row, s_column, s_center, s_center_channel,
    SQUARED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program an image and chunk of channels: its seeds, its pair if it leads one, its class if it is the first."""
    i_image, i_chunk = tl.program_id(0), tl.program_id(1)
    o_channel = i_chunk * BLOCK_D + tl.arange(0, BLOCK_D)
    m_channel = o_channel < channels

    partner = find_partner(p_labels, p_groups, i_image, images, BLOCK_N)
    tl.store(p_partners + i_image, partner, mask=i_chunk == 0)
    write_pair_parts(
        p_features, p_indices, p_values, p_pair_parts, i_image, partner, i_chunk, o_channel,
        seeds, channels, pixels, width, s_image, s_channel, s_row, s_column, SQUARED, BLOCK_K,
    )  # fmt: skip

    label, first, count = find_class(p_labels, i_image, images, BLOCK_N)
    write_class(p_class_labels, p_counts, p_firsts, i_image, label, first, count, i_chunk == 0)
    leads = first == i_image
    b_mean = mean_of_class(
        p_features, p_indices, p_labels, label, tl.where(leads, i_image, images), count, o_channel,
        images, seeds, channels, pixels, width, s_image, s_channel, s_row, s_column, BLOCK_N, BLOCK_K, BLOCK_D,
    )  # fmt: skip
    b_slope, part = center_slope(
        b_mean, p_centers, label, leads, o_channel, channels, classes, s_center, s_center_channel, SQUARED
    )
    o_mean = i_image.to(tl.int64) * channels + o_channel
    tl.store(p_means + o_mean, b_mean, mask=m_channel)
    tl.store(p_slopes + o_mean, b_slope, mask=m_channel)
    tl.store(p_center_parts + i_image.to(tl.int64) * tl.num_programs(1) + i_chunk, part)


@triton.jit
def _inter_image_totals(  # type: ignore[no-untyped-def]
    p_pair_parts, p_center_parts, p_partners, p_class_labels, p_pair_lengths, p_center_lengths,
    p_sc, p_pairs, p_gc, p_classes, images, rows, seeds, chunks,
    SQUARED: tl.constexpr, MEAN: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program, so that each sum has one order."""
    sc = total_parts(p_pair_parts, p_pair_lengths, rows, chunks, SQUARED, BLOCK, BLOCK_C) / seeds
    gc = total_parts(p_center_parts, p_center_lengths, images, chunks, SQUARED, BLOCK, BLOCK_C)
    pairs, classes = count_pairs(p_partners, images, BLOCK), count_classes(p_class_labels, images, BLOCK)
    if MEAN:
        sc, gc = sc / tl.maximum(pairs, 1), gc / tl.maximum(classes, 1)
    tl.store(p_sc, sc)
    tl.store(p_gc, gc)
    tl.store(p_pairs, pairs.to(tl.int64))
    tl.store(p_classes, classes.to(tl.int64))


@triton.jit
def _inter_image_backward(  # type: ignore[no-untyped-def]
    p_to_sc, p_to_gc, p_indices, p_pairs, p_classes, p_class_labels, p_counts, p_values, p_partners, p_firsts,
    p_slopes, p_pair_lengths, p_center_lengths, p_columns, p_carrier, seeds, channels, classes,
    SQUARED: tl.constexpr, MEAN: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program an image and chunk of channels; a loss without gradient is not looked at."""
    i_image, i_chunk = tl.program_id(0), tl.program_id(1)
    o_channel = i_chunk * BLOCK_D + tl.arange(0, BLOCK_D)

    b_to_class = tl.zeros([BLOCK_D], tl.float32)
    if p_to_gc is not None:
        first = tl.load(p_firsts + i_image)
        label = tl.load(p_class_labels + first, mask=first >= 0, other=IGNORED).to(tl.int64)
        members = tl.load(p_counts + first, mask=first >= 0, other=1) * seeds
        if MEAN:
            members *= tl.maximum(tl.load(p_classes), 1)
        scale = tl.load(p_to_gc) / members.to(tl.float32)
        b_to_class = center_pull(p_slopes, p_center_lengths, scale, label, first, o_channel, channels, classes, SQUARED)

    partner = tl.load(p_partners + i_image)
    for start in range(0, seeds, BLOCK_K):
        o_seed = start + tl.arange(0, BLOCK_K)
        m_tile = (o_seed < seeds)[:, None] & (o_channel < channels)[None, :]
        b_grad = tl.zeros([BLOCK_K, BLOCK_D], tl.float32) + b_to_class[None, :]
        if p_to_sc is not None:
            scale = tl.load(p_to_sc) / seeds
            if MEAN:
                scale /= tl.maximum(tl.load(p_pairs), 1).to(tl.float32)
            b_grad += pair_pull(
                p_values, p_pair_lengths, scale, i_image, partner, o_seed, o_channel, m_tile,
                seeds, seeds * channels, 1, channels, SQUARED,
            )  # fmt: skip
        o_row = i_image.to(tl.int64) * seeds + o_seed
        o_tile = o_row[:, None] * channels + o_channel[None, :]
        tl.store(p_columns + o_tile, b_grad.to(p_columns.dtype.element_ty), mask=m_tile)
        m_row = (o_seed < seeds) & (i_chunk == 0)
        tl.store(p_carrier + o_row, tl.load(p_indices + o_row, mask=m_row, other=0).to(tl.float32), mask=m_row)


class _Saved(NamedTuple):
    """What backward needs: a few MB, of which nobody else writes a byte. Neither F nor the centers are among it."""

    pairs: Tensor  # int64 scalar
    classes: Tensor  # int64 scalar
    class_labels: Tensor  # [N] see `ClassMeans`
    counts: Tensor  # int64 [N] see `ClassMeans`
    values: Tensor  # [N, K, D] the seed vectors
    partners: Tensor  # int32 [N] place of each image's partner, or −1
    firsts: Tensor  # int32 [N] place of the first image of each one's class, or −1
    slopes: Tensor  # [N, D] see `center_slope`
    pair_lengths: Tensor  # for l2, [N, K] distances of the images that lead a pair
    center_lengths: Tensor  # for l2, [N] distances of the class means


def _forward(
    features: Tensor,
    indices: Tensor,
    labels: Tensor,
    groups: Tensor | None,
    centers: Tensor,
    distance: Distance,
    mean: bool,
) -> tuple[Tensor, ...]:
    """Launch the forward: SC, GC, the class means [N, D], and `_Saved`."""
    if not (runs_triton(features) and indices.numel() and features.numel()):
        values = gather_pixels_reference(features, indices)
        sc, pairs, partners, pair_lengths = pair_forward(values, labels, groups, distance)
        means, class_labels, counts, firsts = class_means_forward(values, labels)
        gc, classes, slopes, center_lengths = center_forward(means, class_labels, centers, distance)
        if mean:
            sc, gc = sc / pairs.clamp(min=1), gc / classes.clamp(min=1)
        return sc, gc, means, *_Saved(
            pairs, classes, class_labels, counts, values, partners, firsts, slopes, pair_lengths, center_lengths
        )  # fmt: skip
    (images, seeds), channels, squared = indices.shape, features.shape[1], distance == "squared_l2"
    sc, gc, means, *state = _outputs(features, indices, labels, groups, centers, distance, mean)
    saved = _Saved(*state)
    chunks, sizes = channel_chunks(channels)
    rows = images if squared else images * seeds
    pair_parts, center_parts = sc.new_empty(rows, chunks), sc.new_empty(images, chunks)
    _inter_image_parts[images, chunks](
        features, indices.contiguous(), labels.contiguous(), None if groups is None else groups.contiguous(), centers,
        pair_parts, center_parts, means, saved.class_labels, saved.counts, saved.values, saved.partners, saved.firsts,
        saved.slopes, images, seeds, channels, len(centers), features.shape[2] * features.shape[3], features.shape[3],
        *features.stride(), *centers.stride(), SQUARED=squared,
        BLOCK_N=label_block(images), BLOCK_K=seed_block(seeds), **sizes,
    )  # fmt: skip
    _inter_image_totals[1,](
        pair_parts, center_parts, saved.partners, saved.class_labels, saved.pair_lengths, saved.center_lengths,
        sc, saved.pairs, gc, saved.classes, images, rows, seeds, chunks,
        SQUARED=squared, MEAN=mean, **total_sizes(chunks),
    )  # fmt: skip
    return sc, gc, means, *saved


def _outputs(
    features: Tensor,
    indices: Tensor,
    labels: Tensor,
    groups: Tensor | None,
    centers: Tensor,
    distance: Distance,
    mean: bool,
) -> tuple[Tensor, ...]:
    """Memory for what `_forward` returns."""
    (images, seeds), channels, l2 = indices.shape, features.shape[1], distance == "l2"
    means = features.new_empty(images, channels, dtype=accumulation_dtype(features.dtype))
    return means.new_empty(()), means.new_empty(()), means, *_Saved(
        pairs=labels.new_empty((), dtype=torch.int64),
        classes=labels.new_empty((), dtype=torch.int64),
        class_labels=labels.new_empty(images),
        counts=labels.new_empty(images, dtype=torch.int64),
        values=features.new_empty(images, seeds, channels),
        partners=labels.new_empty(images, dtype=torch.int32),
        firsts=labels.new_empty(images, dtype=torch.int32),
        slopes=means.new_empty(images, channels),
        pair_lengths=means.new_empty((images, seeds) if l2 else 0),
        center_lengths=means.new_empty(images if l2 else 0),
    )  # fmt: skip


def _backward(to_sc: Tensor | None, to_gc: Tensor | None, indices: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Launch the backward: gradient of the values, and the indices as the fp32 that `Slots` carry.

    `arguments` are `_Saved`, how many centers there are, the distance, and whether SC and GC are means.
    """
    *state, num_centers, distance, mean = arguments
    saved = _Saved(*state)
    images, seeds, channels = saved.values.shape
    if runs_triton(saved.values) and saved.values.numel():
        columns, carrier = _backward_outputs(to_sc, to_gc, indices, *arguments)
        chunks, sizes = channel_chunks(channels)
        _inter_image_backward[images, chunks](
            to_sc, to_gc, indices.contiguous(), *saved, columns, carrier, seeds, channels, num_centers,
            SQUARED=distance == "squared_l2", MEAN=mean, BLOCK_K=seed_block(seeds), **sizes,
        )  # fmt: skip
        return columns, carrier
    columns = torch.zeros_like(saved.values)
    if to_sc is not None:
        to_sc = to_sc / saved.pairs.clamp(min=1) if mean else to_sc
        columns += pair_backward(to_sc, saved.values, saved.partners, saved.pair_lengths, distance)
    if to_gc is not None:
        to_gc = to_gc / saved.classes.clamp(min=1) if mean else to_gc
        slopes = saved.slopes
        to_means = center_backward(
            to_gc, slopes, saved.class_labels, saved.center_lengths, num_centers, distance, slopes.dtype
        )
        columns += class_means_backward(to_means, saved.counts, saved.firsts, seeds, columns.dtype)[:, None]
    return columns, indices.float()


def _backward_outputs(
    to_sc: Tensor | None, to_gc: Tensor | None, indices: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    """Memory for what `_backward` returns."""
    values = _Saved(*arguments[:-3]).values
    return values.new_empty(values.shape), values.new_empty(indices.shape, dtype=torch.float32)


_op = define_op(
    "inter_image_loss(Tensor features, Tensor indices, Tensor labels, Tensor? groups, Tensor centers, str distance,"
    f" bool mean) -> ({', '.join(['Tensor'] * (3 + len(_Saved._fields)))})",
    _forward,
    _outputs,
)
_op_backward = define_op(
    "inter_image_loss_backward(Tensor? to_sc, Tensor? to_gc, Tensor indices,"
    f" {', '.join(f'Tensor {name}' for name in _Saved._fields)}, SymInt num_centers, str distance, bool mean)"
    " -> (Tensor, Tensor)",
    _backward,
    _backward_outputs,
)


class _InterImageLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        columns: Tensor | None,
        carrier: Tensor | None,
        indices: Tensor,
        labels: Tensor,
        groups: Tensor | None,
        centers: Tensor,
        distance: Distance,
        mean: bool,
    ) -> tuple[Tensor, ...]:
        sc, gc, means, *state = _op(features, indices, labels, groups, centers, distance, mean)
        saved = _Saved(*state)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(saved.pairs, saved.classes, means, saved.class_labels, saved.counts)
        ctx.save_for_backward(indices, *saved)
        ctx.settings, ctx.centers_dtype = (len(centers), distance, mean), centers.dtype
        ctx.shape = features.shape
        # Channels last where a pixel's features are adjacent.
        ctx.layout = torch.channels_last if features.stride(1) == 1 else torch.contiguous_format
        return sc, saved.pairs, gc, saved.classes, means, saved.class_labels, saved.counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        to_sc, _, to_gc, *_ = gradients
        indices, *state = ctx.saved_tensors
        saved, (num_centers, distance, mean) = _Saved(*state), ctx.settings
        to_features = to_columns = to_carrier = to_centers = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            columns, carrier = _op_backward(to_sc, to_gc, indices, *saved, *ctx.settings)
            if ctx.needs_input_grad[1]:
                to_columns, to_carrier = columns, carrier
            else:
                to_features = torch.empty(
                    ctx.shape, dtype=columns.dtype, device=columns.device, memory_format=ctx.layout
                ).zero_()
                add_columns_(to_features, columns, indices)
        if ctx.needs_input_grad[6] and to_gc is not None:
            to_gc = to_gc / saved.classes.clamp(min=1) if mean else to_gc
            to_centers = backward_to_centers(
                to_gc, saved.slopes, saved.class_labels, saved.center_lengths, num_centers, distance, ctx.centers_dtype
            )
        return to_features, to_columns, to_carrier, None, None, None, to_centers, None, None


def inter_image_loss(
    features: Tensor,
    indices: Tensor,
    labels: Tensor,
    centers: Tensor,
    *,
    slots: Slots | None = None,
    groups: Tensor | None = None,
    distance: Distance = "squared_l2",
    reduction: Reduction = "sum",
) -> InterImageSums:
    """SC and GC of a batch whose seeds are chosen.

    Args:
        features: [N, D, H, W]; indices: [N, K]; slots: see `gather_pixels`.
        labels: [N]; groups: [N] or None; distance: see `pair_consistency_loss`.
        centers: [Y, D], read only; see `center_loss`.
        reduction: ``sum``, to be divided by counts of more than this batch, or ``mean``: SC over the pairs and GC over
            the classes of this batch, 0 where there are none.

    Returns:
        `InterImageSums`, differentiable in `features` (and in `centers` where they require a gradient).

    Raises:
        ValueError: arguments that do not fit, as the four ops it stands for raise it.
        RuntimeError: slots that served a gather before.
    """
    check_tensor("features", features, 4)
    check_tensor("indices", indices, 2, integer=True)
    check_same("len(indices)", len(indices), "len(features)", len(features))
    check_tensor("labels", labels, 1, integer=True)
    check_same("len(labels)", len(labels), "len(values)", len(features))
    if groups is not None:
        check_tensor("groups", groups, 1, integer=True)
        check_same("len(groups)", len(groups), "len(values)", len(features))
    check_tensor("centers", centers, 2)
    check_same("means.shape[1]", features.shape[1], "centers.shape[1]", centers.shape[1])
    check_device(features=features, indices=indices, labels=labels, groups=groups, centers=centers)
    check_distance(distance)
    if reduction not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}, got {reduction!r}")
    check_indices(indices, features.shape[2] * features.shape[3])
    check_labels(labels, len(centers))
    columns = carrier = None
    if slots is not None:
        columns, carrier = slots.claim(features, indices)
        features = features.detach()
    sc, pairs, gc, classes, *of_class = _InterImageLoss.apply(
        features, columns, carrier, indices, labels, groups, centers, distance, reduction == "mean"
    )
    return InterImageSums(sc, pairs, gc, classes, ClassMeans(*of_class))
