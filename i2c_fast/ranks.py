"""SC and GC of a batch that ranks divide, so that N ranks train as one: one collective a step.

A rank backpropagates R/(K·P)·Σ over its own pairs, with P the pairs of the global batch and R the ranks, and the
gradient of GC at the global class means a: for one of its seed vectors R·2(a − w)/(Y_B·K·n_y), with Y_B classes in the
global batch and n_y images of class y. DistributedDataParallel's mean over ranks then is the gradient of the whole
batch. All that is exchanged has a fixed size and stays on the device.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from .kernels import IGNORED_LABEL
from .kernels._common import Distance, within
from .kernels._pairs import unpack


class RankExchange:
    """`kernels.Exchange` over a process group: every rank ends up with the same rows, bit for bit.

    Rows of all ranks are gathered while they are fewer than the classes. Beyond, a table with a row for each class is
    reduced, so that what is exchanged stays bounded at any number of ranks.

    Args:
        group: the ranks, each with as many images. classes: Y.
    """

    def __init__(self, group: dist.ProcessGroup, classes: int) -> None:
        self.group, self.classes, self.ranks = group, classes, dist.get_world_size(group)

    def __call__(self, rows: Tensor, channels: int, k: int, distance: Distance) -> Tensor:
        if self.ranks * len(rows) > self.classes:
            table = table_of_classes(rows, self.classes, channels, k, distance)
            dist.all_reduce(table, group=self.group)
            return rows_of_table(table, channels, k, distance)
        everyone = rows.new_empty(self.ranks * len(rows), rows.shape[1])
        dist.all_gather_into_tensor(everyone, rows, group=self.group)
        return everyone


def table_of_classes(rows: Tensor, classes: int, channels: int, k: int, distance: Distance) -> Tensor:
    """Rows added up by class, to be added up over ranks: [Y + 2], of which the last two are of wrong labels and none.

    An SC of roots is no sum of squares: its distances stand as the first term.
    """
    parts = unpack(rows, channels, k, distance)
    numbers = torch.cat([rows[:, :-2], torch.zeros_like(rows[:, -2:])], 1)
    if distance == "l2":
        lengths = parts.squares.unflatten(1, (k, -1)).sum(2).sqrt().sum(1)
        unpack(numbers, channels, k, distance).squares.zero_()[:, 0] = lengths
    row = parts.labels.masked_fill(~within(parts.labels, classes), classes)
    row = row.masked_fill_(parts.labels == IGNORED_LABEL, classes + 1)
    return rows.new_zeros(classes + 2, rows.shape[1]).index_put_((row,), numbers, accumulate=True)


def rows_of_table(table: Tensor, channels: int, k: int, distance: Distance) -> Tensor:
    """The reduced table as rows, in place: class y's images are row y. The row of wrong labels is out of range too."""
    parts = unpack(table, channels, k, distance)
    if distance == "l2":
        parts.squares[:, 0].square_()  # whoever reads it takes the root
    torch.arange(len(table), out=parts.labels)
    parts.labels.masked_fill_(parts.images[:, 0] == 0, IGNORED_LABEL)
    parts.labels[-1:].fill_(IGNORED_LABEL)
    return table
