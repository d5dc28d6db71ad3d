"""Class-paired batches as a pure function of (seed, epoch, step).

A batch is P slots of Q images of one class (the paper: P = 40, Q = 2). Slots hold distinct classes while P ≤ Y and
repeat classes evenly beyond. Slots of one class are adjacent; together they draw distinct images first and repeat them,
with other crops, only when the class has too few. Nothing depends on threads, loader, prefetch or earlier batches.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError


class BatchPlan(NamedTuple):
    """What to load, in batch order; N = P·Q."""

    indices: NDArray[np.int64]  # [N] image of the index
    labels: NDArray[np.int64]  # [N]
    groups: NDArray[np.int64]  # [N] slot number; images pair only inside their slot
    crops: NDArray[np.float64]  # [N, 2] place of the crop (x, y) as a share of the free range, in [0, 1)
    flips: NDArray[np.bool_]  # [N] horizontal flip


class ClassPairedSampler:
    """Plans the batches of an epoch.

    Args:
        labels: [n] class of each image of the split.
        classes: P, slots a batch. images: Q, images a slot.
        seed: of the run.

    Raises:
        UserError: a batch of no image.
    """

    def __init__(self, labels: NDArray[np.int64], classes: int, images: int, seed: int) -> None:
        if classes < 1 or images < 1:
            raise UserError(f"batch.classes and batch.images must be at least 1, got {classes} and {images}")
        order = np.argsort(labels, kind="stable")
        self.present, starts = np.unique(labels[order], return_index=True)
        self.members = np.split(order, starts[1:])  # a class without images has no slot
        self.slots, self.images, self.seed = classes, images, seed
        self.batch_size = classes * images
        self.steps_per_epoch = -(-len(labels) // self.batch_size)

    def members_of(self, label: int) -> NDArray[np.int64]:
        """Images of a class, in index order."""
        return self.members[int(np.searchsorted(self.present, label))]

    def plan(self, epoch: int, step: int) -> BatchPlan:
        """The batch at (epoch, step)."""
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, epoch, step])))
        each, extra = divmod(self.slots, len(self.present))
        order = rng.random(len(self.present)).argsort()
        slots_of = np.full(len(order), each)
        slots_of[:extra] += 1
        drawn, labels = [], []
        for place, slots in zip(order, slots_of, strict=True):
            if slots:
                members = self.members[place]
                shuffled = members[rng.random(len(members)).argsort()]
                drawn.append(np.resize(shuffled, slots * self.images))
                labels.append(np.full(slots * self.images, self.present[place]))
        return BatchPlan(
            np.concatenate(drawn),
            np.concatenate(labels),
            np.repeat(np.arange(self.slots), self.images),
            rng.random((self.batch_size, 2)),
            rng.random(self.batch_size) < 0.5,
        )
