"""SC and GC of a batch that is shared out over ranks, so that N ranks train as one.

A rank backpropagates R/(K·P)·Σ over its own pairs, with P the pairs of the global batch and R the ranks, and the
gradient of GC at the global class means a: for one of its seed vectors R·2(a − w)/(Y_B·K·n_y), with Y_B classes in the
global batch and n_y images of class y. DistributedDataParallel's mean over ranks then is the gradient of the whole
batch. All that is exchanged has a fixed size and stays on the device.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .kernels import IGNORED_LABEL, ClassMeans, Slots, center_loss, class_means, gather_pixels, pair_consistency_loss
from .kernels._common import Distance, earlier, same_class, within
from .kernels.inter_image_loss import InterImageSums


class _Shared(torch.autograd.Function):
    """A value of all ranks, whose gradient goes, times the ranks, to what is this rank's own in it."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, own: Tensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        return None, gradient * ctx.ranks, None


def shared_inter_image_loss(
    features: Tensor,
    indices: Tensor,
    labels: Tensor,
    centers: Tensor,
    group: dist.ProcessGroup,
    *,
    slots: Slots | None = None,
    groups: Tensor | None = None,
    distance: Distance = "squared_l2",
) -> InterImageSums:
    """`inter_image_loss(..., reduction="mean")` of the global batch; every rank of `group` calls it.

    Args:
        group: the ranks, each with as many images. Other arguments as `inter_image_loss`, this rank's own.

    Returns:
        `InterImageSums` of the global batch, equal on all ranks; the gradients of `features` are those described above,
        that of trained `centers` is the whole batch's on every rank.
    """
    ranks = dist.get_world_size(group)
    values = gather_pixels(features, indices, slots)
    own, pairs = pair_consistency_loss(values, labels, groups, distance)
    totals = torch.stack([own.detach().double(), pairs.double()])
    dist.all_reduce(totals, group=group)
    sc = _Shared.apply(totals[0].to(own.dtype), own, ranks) / totals[1].clamp(min=1).to(own.dtype)

    of_class = exchange_means(class_means(values, labels), len(centers), group)
    gc, classes = center_loss(of_class.means, of_class.labels, centers, distance)
    gc = gc / classes.clamp(min=1)
    return InterImageSums(sc, totals[1].long(), gc, classes, of_class._replace(means=of_class.means.detach()))


def exchange_means(local: ClassMeans, classes: int, group: dist.ProcessGroup) -> ClassMeans:
    """Class means of the global batch, the same on every rank; this rank's own get their gradient times the ranks.

    The rows of all ranks are gathered while they are fewer than the classes; beyond, sums are reduced in a table of all
    classes, so that what is exchanged stays bounded at any number of ranks.

    Args:
        local: of this rank's images. classes: Y.
    """
    if dist.get_world_size(group) * len(local.labels) <= classes:
        return _from_rows(local, group)
    return _from_table(local, classes, group)


def _from_rows(local: ClassMeans, group: dist.ProcessGroup) -> ClassMeans:
    ranks, rank, rows = dist.get_world_size(group), dist.get_rank(group), len(local.labels)
    means = local.means.new_empty(ranks * rows, local.means.shape[1])
    dist.all_gather_into_tensor(means, local.means.detach().contiguous(), group=group)
    facts = local.counts.new_empty(ranks * rows, 2)
    dist.all_gather_into_tensor(facts, torch.stack([local.labels.long(), local.counts], 1), group=group)
    labels, counts = facts.unbind(1)
    start, end = rank * rows, (rank + 1) * rows
    own = _Shared.apply(means[start:end], local.means, ranks)
    means = torch.cat([means[:start], own, means[end:]])

    same = same_class(labels)
    leads = (earlier(same) == 0) & (labels != IGNORED_LABEL)
    members = (same * counts).sum(1)
    # fp64: a product of this size costs nothing, and fp32 ones may be rounded to TF32.
    share = torch.where(leads[:, None], same * counts, 0).double() / members.clamp(min=1)[:, None]
    # A NaN mean must stay in its class: 0·NaN is NaN.
    finite = means.isfinite().all(1)
    broken = (same & ~finite).any(1) & leads
    joined = share @ torch.where(finite[:, None], means, 0.0).double()
    return ClassMeans(
        torch.where(broken[:, None], torch.nan, joined).to(means.dtype),
        torch.where(leads, labels, IGNORED_LABEL).to(local.labels.dtype),
        torch.where(leads, members, 0),
    )


def _from_table(local: ClassMeans, classes: int, group: dist.ProcessGroup) -> ClassMeans:
    inside = within(local.labels, classes)
    facts = torch.cat([local.means * local.counts[:, None], local.counts[:, None].to(local.means.dtype)], 1)
    # Rows without a class go to one below the table, which then carries whether a label is none of the classes.
    table = facts.new_zeros(classes + 1, facts.shape[1])
    table = table.index_copy(0, torch.where(inside, local.labels, classes).long(), facts)
    wrong = (~inside & (local.labels != IGNORED_LABEL)).any()
    table = torch.cat([table[:classes], torch.where(wrong, torch.nan, torch.zeros_like(table[:1]))])
    total = table.detach().clone()
    dist.all_reduce(total, group=group)
    spoiled = total[classes, :-1]
    total = _Shared.apply(total, table, dist.get_world_size(group))[:classes]
    counts = total[:, -1].detach().long()
    present = torch.arange(classes, device=counts.device)
    return ClassMeans(
        total[:, :-1] / counts.clamp(min=1)[:, None] + spoiled,
        torch.where(counts > 0, present, IGNORED_LABEL).to(local.labels.dtype),
        counts,
    )
