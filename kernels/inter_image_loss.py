"""The whole objective on chosen seed pixels: gather, SC, class means and GC in one call, split where ranks exchange.

    V = gather_pixels(F, pixels),   SC = mean over pairs of Eq. 1,   a = class means of V (Eq. 2),   GC = Eq. 5

In PyTorch: the four ops it stands for, one after the other. Here a first launch leaves a row for each image (`Rows`);
two more make class means and losses of all rows, of this rank or of all ranks. Backward, which needs the [N, K, D] seed
vectors and no second look at F or the centers, is one, plus the one that adds columns to F's gradient.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._add_columns import add_columns_
from ._common import (
    IGNORED_LABEL,
    Distance,
    TotalReduction,
    check_device,
    check_distance,
    check_indices,
    check_labels,
    check_same,
    check_tensor,
    mask_ignored,
    within,
)
from ._launch import launch
from ._ops import define_op
from ._pairs import (
    channel_chunks,
    chunk_block,
    find_class,
    label_block,
    new_rows,
    seed_block,
    terms_of,
    total_sizes,
    unpack,
)
from ._triton import runs_triton, tl, triton
from .center_loss import backward_to_centers, center_gradient, center_loss_reference, mean_gradients, total_losses
from .class_means import ClassMeans, class_means_reference, means_of_rows, row_of_class
from .gather_pixels import Slots, gather_pixels, gather_pixels_reference
from .pair_consistency_loss import (
    pair_consistency_loss_reference,
    pair_gradient,
    pair_rows,
    value_gradients,
    write_pair_rows,
)


class InterImageOutput(NamedTuple):
    """Both losses, the counts they are means over, and the class means that the centers move to."""

    sc: Tensor  # scalar, Eq. 1 over pairs
    pairs: Tensor  # int64 scalar
    gc: Tensor  # scalar, Eq. 5's terms over classes
    classes: Tensor  # int64 scalar
    class_means: ClassMeans  # detached


class Exchange(Protocol):
    """Makes the rows of all ranks out of this rank's, the same on every rank; launches nothing but what it needs."""

    ranks: int  # how many exchange

    def __call__(self, rows: Tensor, channels: int, k: int, distance: Distance) -> Tensor:
        """Take and give back a buffer of `Rows`; the other arguments are those of `unpack`."""
        ...


def inter_image_loss_reference(
    features: Tensor,
    indices: Tensor,
    labels: Tensor,
    centers: Tensor,
    *,
    slots: Slots | None = None,
    groups: Tensor | None = None,
    distance: Distance = "squared_l2",
    reduction: TotalReduction = "mean",
    ignore_index: int = IGNORED_LABEL,
) -> InterImageOutput:
    """Plain PyTorch specification of `inter_image_loss`, of one rank."""
    labels = mask_ignored(labels, ignore_index).long()
    values = gather_pixels_reference(features, indices) if slots is None else gather_pixels(features, indices, slots)
    sc, pairs = pair_consistency_loss_reference(values, labels, groups, distance, reduction)
    of_class = class_means_reference(values, labels)
    gc, classes = center_loss_reference(of_class.means, of_class.labels, centers, distance, reduction)
    return InterImageOutput(sc, pairs, gc, classes, of_class._replace(means=of_class.means.detach()))


class _Own(NamedTuple):
    """What the first op makes of this rank's images."""

    values: Tensor  # [N, K, D] the seed vectors
    partners: Tensor  # int32 [N] index of each image's partner, or −1
    rows: Tensor  # buffer of `Rows`


def _gather_rows(
    features: Tensor, indices: Tensor, labels: Tensor, groups: Tensor | None, distance: Distance
) -> tuple[Tensor, ...]:
    """Launch the first op: `_Own`."""
    if not (runs_triton(features) and indices.numel() and features.numel()):
        values = gather_pixels_reference(features, indices)
        return values, *pair_rows(values, labels, groups, distance)
    own = _own(features, indices, labels, groups, distance)
    (images, k), channels, squared = indices.shape, features.shape[1], distance == "squared_l2"
    rows = unpack(own.rows, channels, k, distance)
    chunks, sizes = channel_chunks(channels)
    launch(
        write_pair_rows, (images, chunks),
        features, indices.contiguous(), labels.contiguous(), None if groups is None else groups.contiguous(),
        own.values, rows.sums, rows.squares, rows.pairs, rows.images, rows.labels, own.partners,
        images, k, channels, features.shape[2] * features.shape[3], features.shape[3], *features.stride(),
        own.rows.stride(0), rows.labels.stride(0),
        SQUARED=squared, BLOCK_N=label_block(images), BLOCK_K=seed_block(k), **sizes,
    )  # fmt: skip
    return own


def _own(features: Tensor, indices: Tensor, labels: Tensor, groups: Tensor | None, distance: Distance) -> _Own:
    (images, k), channels = indices.shape, features.shape[1]
    values = features.new_empty(images, k, channels)
    rows = new_rows(features, images, channels, k, distance)
    return _Own(values, labels.new_empty(images, dtype=torch.int32), rows)


class _All(NamedTuple):
    """What the second op makes of the rows of all ranks."""

    sc: Tensor
    pairs: Tensor  # int64 scalar
    gc: Tensor
    classes: Tensor  # int64 scalar
    means: Tensor  # [M, D], labels and counts: see `ClassMeans`
    labels: Tensor  # int64 [M]
    counts: Tensor  # int64 [M]
    gaps: Tensor  # [M, D] see `center_gap`
    squares: Tensor  # [M, chunks] their squares


def _losses(rows: Tensor, centers: Tensor, k: int, distance: Distance, mean: bool) -> tuple[Tensor, ...]:
    """Launch the second op: `_All`."""
    channels, squared = centers.shape[1], distance == "squared_l2"
    terms, chunks = terms_of(k, distance), channel_chunks(channels)[0]
    parts = unpack(rows, channels, k, distance)
    of_class = means_of_rows(parts, k, centers, distance)
    _, labels, _, _, squares = of_class
    if not (runs_triton(rows) and rows.numel()):
        pairs, classes = parts.pairs.sum().long(), (labels != IGNORED_LABEL).sum()
        per_term, per_class = parts.squares.unflatten(1, (terms, chunks)).sum(2), squares.sum(1)
        sc, gc = (x.sum() if squared else x.sqrt().sum() for x in (per_term, per_class))
        sc, gc = (sc / k / pairs.clamp(min=1), gc / classes.clamp(min=1)) if mean else (sc / k, gc)
        return sc, pairs, gc, classes, *of_class
    sc, pairs, gc, classes = (rows.new_empty((), dtype=d) for d in (rows.dtype, torch.int64) * 2)
    launch(
        total_losses, (1,),
        parts.squares, parts.pairs, squares, labels, sc, pairs, gc, classes, len(rows), k, terms, chunks,
        rows.stride(0), SQUARED=squared, MEAN=mean, **total_sizes(chunks),
    )  # fmt: skip
    return sc, pairs, gc, classes, *of_class


def _all(rows: Tensor, centers: Tensor, k: int, distance: Distance, mean: bool) -> _All:
    images, channels = rows.shape[0], centers.shape[1]
    sc, pairs, gc, classes = (rows.new_empty((), dtype=d) for d in (rows.dtype, torch.int64) * 2)
    labels, counts = (rows.new_empty(images, dtype=torch.int64) for _ in range(2))
    means, gaps = (rows.new_empty(images, channels) for _ in range(2))
    squares = rows.new_empty(images, channel_chunks(channels)[0])
    return _All(sc, pairs, gc, classes, means, labels, counts, gaps, squares)


class _Saved(NamedTuple):
    """What backward needs: a few MB, of which nobody else writes a byte. Neither F nor the centers are among it."""

    values: Tensor  # the first three as in `_Own`, the others as in `_All`
    partners: Tensor
    rows: Tensor
    pairs: Tensor
    classes: Tensor
    labels: Tensor
    counts: Tensor
    gaps: Tensor
    squares: Tensor


@triton.jit
def _inter_image_backward(
    p_to_sc, p_to_gc, p_indices, p_values, p_partners, p_pair_squares, p_labels, p_pairs, p_classes, p_class_labels,
    p_counts, p_gaps, p_center_squares, p_columns, p_carrier,
    k, channels, classes, rows, chunks, ranks, s_rows, s_label,
    SQUARED: tl.constexpr, MEAN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program an image and chunk of channels; a loss without gradient is not looked at."""
    i_image, i_chunk = tl.program_id(0), tl.program_id(1)
    o_channel = i_chunk * BLOCK_D + tl.arange(0, BLOCK_D)

    b_to_class = tl.zeros([BLOCK_D], tl.float32)
    if p_to_gc is not None:
        label = tl.load(p_labels + i_image.to(tl.int64) * s_label)
        known = (label >= 0) & (label < classes)
        row, _ = find_class(p_class_labels, None, label, rows, 1, 0, BLOCK_N)
        members = tl.load(p_counts + row, mask=known, other=1) * k
        if MEAN:
            members *= tl.maximum(tl.load(p_classes), 1)
        scale = tl.load(p_to_gc) * ranks / members.to(tl.float32)
        b_to_class = center_gradient(
            p_gaps, p_center_squares, scale, label, row, o_channel, channels, classes, chunks, SQUARED, BLOCK_C
        )

    partner = tl.load(p_partners + i_image)
    for start in range(0, k, BLOCK_K):
        o_seed = start + tl.arange(0, BLOCK_K)
        m_tile = (o_seed < k)[:, None] & (o_channel < channels)[None, :]
        b_grad = tl.zeros([BLOCK_K, BLOCK_D], tl.float32) + b_to_class[None, :]
        if p_to_sc is not None:
            scale = tl.load(p_to_sc) * ranks / k
            if MEAN:
                scale /= tl.maximum(tl.load(p_pairs), 1).to(tl.float32)
            b_grad += pair_gradient(
                p_values, p_pair_squares, scale, i_image, partner, o_seed, o_channel, m_tile,
                k, chunks, k * channels, 1, channels, s_rows, SQUARED, BLOCK_C,
            )  # fmt: skip
        o_row = i_image.to(tl.int64) * k + o_seed
        o_tile = o_row[:, None] * channels + o_channel[None, :]
        tl.store(p_columns + o_tile, b_grad.to(p_columns.dtype.element_ty), mask=m_tile)
        m_row = (o_seed < k) & (i_chunk == 0)
        tl.store(p_carrier + o_row, tl.load(p_indices + o_row, mask=m_row, other=0).to(tl.float32), mask=m_row)


def _backward(to_sc: Tensor | None, to_gc: Tensor | None, indices: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    """Launch the backward: gradient of the values, and the indices as the fp32 that `Slots` carry.

    `arguments` are `_Saved`, how many centers there are, the distance, whether SC and GC are means, and the ranks over
    which gradients will be averaged.
    """
    *state, num_centers, distance, mean, ranks = arguments
    saved = _Saved(*state)
    images, k, channels = saved.values.shape
    rows = unpack(saved.rows, channels, k, distance)
    if runs_triton(saved.values) and saved.values.numel():
        columns, carrier = _backward_outputs(to_sc, to_gc, indices, *arguments)
        chunks, sizes = channel_chunks(channels)
        launch(
            _inter_image_backward, (images, chunks),
            to_sc, to_gc, indices.contiguous(), saved.values, saved.partners, rows.squares, rows.labels, *saved[3:],
            columns, carrier, k, channels, num_centers, len(saved.labels), chunks, ranks, saved.rows.stride(0),
            rows.labels.stride(0), SQUARED=distance == "squared_l2", MEAN=mean,
            BLOCK_N=label_block(len(saved.labels)), BLOCK_K=seed_block(k), BLOCK_C=chunk_block(chunks), **sizes,
        )  # fmt: skip
        return columns, carrier
    columns = torch.zeros_like(saved.values)
    if to_sc is not None:
        columns += value_gradients(
            to_sc * ranks, saved.pairs, saved.values, saved.partners, rows.squares, distance, mean
        )
    if to_gc is not None:
        to_means = mean_gradients(
            to_gc * ranks, saved.classes, saved.gaps, saved.labels, saved.squares, num_centers, distance, mean,
            saved.gaps.dtype,
        )  # fmt: skip
        row = row_of_class(rows.labels, saved.labels)
        per_seed = to_means[row] / (saved.counts[row].clamp(min=1) * k)[:, None]
        columns += torch.where(within(rows.labels, num_centers)[:, None], per_seed, 0.0).to(columns.dtype)[:, None]
    return columns, indices.float()


def _backward_outputs(
    to_sc: Tensor | None, to_gc: Tensor | None, indices: Tensor, values: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return values.new_empty(values.shape), values.new_empty(indices.shape, dtype=torch.float32)


def _tensors(*names: str) -> str:
    return ", ".join(f"Tensor {name}" for name in names)


_op_rows = define_op(
    f"inter_image_rows({_tensors('features', 'indices', 'labels')}, Tensor? groups, str distance)"
    f" -> ({_tensors(*_Own._fields)})",
    _gather_rows,
    _own,
)
_op_losses = define_op(
    f"inter_image_losses({_tensors('rows', 'centers')}, SymInt k, str distance, bool mean)"
    f" -> ({_tensors(*_All._fields)})",
    _losses,
    _all,
)
_op_backward = define_op(
    f"inter_image_loss_backward(Tensor? to_sc, Tensor? to_gc, {_tensors('indices', *_Saved._fields)},"
    " SymInt num_centers, str distance, bool mean, SymInt ranks) -> (Tensor, Tensor)",
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
        exchange: Exchange | None,
    ) -> tuple[Tensor, ...]:
        own = _Own(*_op_rows(features, indices, labels, groups, distance))
        k, ranks, rows = indices.shape[1], 1, own.rows
        if exchange is not None:
            ranks, rows = exchange.ranks, exchange(rows, features.shape[1], k, distance)
        of_all = _All(*_op_losses(rows, centers, k, distance, mean))
        sc, pairs, gc, classes, means, class_labels, counts, gaps, squares = of_all
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(pairs, classes, means, class_labels, counts)
        ctx.save_for_backward(indices, *own, pairs, classes, class_labels, counts, gaps, squares)
        ctx.settings, ctx.centers_dtype = (len(centers), distance, mean, ranks), centers.dtype
        ctx.shape = features.shape
        # Channels last where a pixel's features are adjacent.
        ctx.layout = torch.channels_last if features.stride(1) == 1 else torch.contiguous_format
        return sc, pairs, gc, classes, means, class_labels, counts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        to_sc, _, to_gc, *_ = gradients
        indices, *state = ctx.saved_tensors
        saved = _Saved(*state)
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
            to_centers = backward_to_centers(
                to_gc, saved.classes, saved.gaps, saved.labels, saved.squares, *ctx.settings[:3], ctx.centers_dtype
            )
        return to_features, to_columns, to_carrier, None, None, None, to_centers, None, None, None


def inter_image_loss(
    features: Tensor,
    indices: Tensor,
    labels: Tensor,
    centers: Tensor,
    *,
    slots: Slots | None = None,
    groups: Tensor | None = None,
    distance: Distance = "squared_l2",
    reduction: TotalReduction = "mean",
    ignore_index: int = IGNORED_LABEL,
    exchange: Exchange | None = None,
) -> InterImageOutput:
    """SC and GC of a batch whose seed pixels are chosen.

    Args:
        features: [N, D, H, W]; indices: [N, K]; slots: see `gather_pixels`.
        labels: [N]; groups: [N] or None; distance, ignore_index: see `pair_consistency_loss`.
        centers: [Y, D], read only; see `center_loss`.
        reduction: ``mean``: SC over the pairs and GC over the classes, 0 where there are none; or ``sum``.
        exchange: of ranks that divide a batch. Results are then those of all their images, and gradients of `features`
            are multiplied by the ranks, so that DistributedDataParallel's mean over them is the whole batch's.

    Returns:
        `InterImageOutput`, differentiable in `features` (and in `centers` where they require a gradient).

    Raises:
        ValueError: arguments that do not fit, as the four ops it stands for raise it.
        RuntimeError: slots that served a gather before.
    """
    check_tensor("features", features, 4)
    check_tensor("indices", indices, 2, integer=True)
    check_same("len(indices)", len(indices), "len(features)", len(features))
    check_tensor("labels", labels, 1, integer=True)
    check_same("len(labels)", len(labels), "len(features)", len(features))
    if groups is not None:
        check_tensor("groups", groups, 1, integer=True)
        check_same("len(groups)", len(groups), "len(features)", len(features))
    check_tensor("centers", centers, 2)
    check_same("features.shape[1]", features.shape[1], "centers.shape[1]", centers.shape[1])
    check_device(features=features, indices=indices, labels=labels, groups=groups, centers=centers)
    check_distance(distance, reduction, TotalReduction)
    labels = mask_ignored(labels, ignore_index)
    check_indices(indices, features.shape[2] * features.shape[3])
    check_labels(labels, len(centers))
    columns = carrier = None
    if slots is not None:
        columns, carrier = slots.claim(features, indices)
        features = features.detach()
    sc, pairs, gc, classes, *of_class = _InterImageLoss.apply(
        features, columns, carrier, indices, labels, groups, centers, distance, reduction == "mean", exchange
    )
    return InterImageOutput(sc, pairs, gc, classes, ClassMeans(*of_class))
