"""SC and GC of a batch that two ranks divide, on one device: emulated, and as two processes that talk by gloo."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from i2c_fast.kernels import InterImageOutput, inter_image_loss
from i2c_fast.kernels._common import Distance
from i2c_fast.kernels.inter_image_loss import Exchange
from i2c_fast.ranks import RankExchange, rows_of_table, table_of_classes

RANKS = 2
Outputs = tuple[Tensor, ...]


class Recorder:
    """Keeps a rank's rows for the others."""

    ranks = RANKS

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def __call__(self, rows: Tensor, channels: int, k: int, distance: Distance) -> Tensor:
        self.rows.append(rows)
        return rows


class Emulated:
    """Gives each rank the rows of all: one after the other, or added up by class as beyond as many ranks as classes."""

    ranks = RANKS

    def __init__(self, rows: list[Tensor], classes: int, table: bool) -> None:
        self.rows, self.classes, self.table = rows, classes, table

    def __call__(self, rows: Tensor, channels: int, k: int, distance: Distance) -> Tensor:
        if not self.table:
            return torch.cat(self.rows)
        tables = [table_of_classes(own, self.classes, channels, k, distance) for own in self.rows]
        return rows_of_table(torch.stack(tables).sum(0), channels, k, distance)


class OverHost:
    """A process group's exchange through the host's memory: two processes may share a GPU then, which NCCL refuses."""

    ranks = RANKS

    def __init__(self, group: dist.ProcessGroup, classes: int) -> None:
        self.exchange = RankExchange(group, classes)

    def __call__(self, rows: Tensor, channels: int, k: int, distance: Distance) -> Tensor:
        return self.exchange(rows.cpu(), channels, k, distance).to(rows.device)


def all_of(out: InterImageOutput) -> Outputs:
    """Losses, their counts, class means, their classes and counts."""
    return out.sc, out.gc, out.pairs, out.classes, *out.class_means


def on_ranks(table: bool) -> Callable[..., Outputs]:
    """`inter_image_loss` on emulated ranks. The gradient of the mean of their losses is DDP's mean over ranks."""

    def call(features: Tensor, indices: Tensor, labels: Tensor, centers: Tensor) -> Outputs:
        recorder = Recorder()
        _on_each_rank(recorder, features.detach(), indices, labels, centers)
        everyone = Emulated(recorder.rows, len(centers), table)
        outputs = [all_of(out) for out in _on_each_rank(everyone, features, indices, labels, centers)]
        return mean_of_ranks(outputs, 4 if table else 7)  # a table has a row for each class, not for each image

    return call


def _on_each_rank(
    exchange: Exchange, features: Tensor, indices: Tensor, labels: Tensor, centers: Tensor
) -> list[InterImageOutput]:
    parts = zip(features.chunk(RANKS), indices.chunk(RANKS), labels.chunk(RANKS), strict=True)
    return [inter_image_loss(own, at, of, centers, exchange=exchange) for own, at, of in parts]


def mean_of_ranks(outputs: list[Outputs], count: int) -> Outputs:
    """The first `count` outputs, which all ranks have to have to the bit; SC and GC as means over ranks."""
    first = outputs[0][:count]
    for other in outputs[1:]:
        for mine, theirs in zip(first, other[:count], strict=True):
            if not torch.equal(mine, theirs):
                raise ValueError("ranks compute different losses or class means")
    sc, gc = (torch.stack([own[i] for own in outputs]).mean() for i in range(2))
    return sc, gc, *first[2:]


def on_gloo_ranks(inputs: Outputs, upstream: Outputs) -> Outputs:
    """`inter_image_loss` in two processes, each with half of the batch: its first outputs, and the gradient of F.

    Args:
        inputs: features, indices, labels and centers; upstream: gradients of SC and GC.
    """
    features, indices, labels, centers = inputs
    with tempfile.TemporaryDirectory() as folder:
        parts = zip(*(tensor.detach().cpu().chunk(RANKS) for tensor in (features, indices, labels)), strict=True)
        shared = centers.cpu(), *(tensor.cpu() for tensor in upstream)
        torch.save([(*part, *shared) for part in parts], Path(folder) / "parts.pt")
        torch.multiprocessing.spawn(_gloo_rank, (folder, str(features.device)), nprocs=RANKS)
        found: list[tuple[Any, Tensor]] = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(RANKS)]
    outputs = mean_of_ranks([tuple(own) for own, _ in found], 4)
    gradient = torch.cat([own for _, own in found]) / RANKS
    return tuple(tensor.to(features.device) for tensor in (*outputs, gradient))


def _gloo_rank(rank: int, folder: str, device: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    try:
        features, *others = (tensor.to(device) for tensor in torch.load(f"{folder}/parts.pt")[rank])
        indices, labels, centers, to_sc, to_gc = others
        features.requires_grad_()
        assert dist.group.WORLD is not None
        exchange = OverHost(dist.group.WORLD, len(centers))
        out = inter_image_loss(features, indices, labels, centers, exchange=exchange)
        (gradient,) = torch.autograd.grad((out.sc, out.gc), features, (to_sc, to_gc))
        torch.save(([tensor.detach().cpu() for tensor in all_of(out)], gradient.cpu()), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
