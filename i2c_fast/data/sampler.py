"""Batches as a pure function of (seed, epoch, step): nothing depends on threads, loader, prefetch or earlier batches.

The paper's batches are class-paired: P slots of Q images of one class (P = 40, Q = 2). Slots hold distinct classes
while P ≤ Y and repeat classes evenly beyond. Slots of one class are adjacent; together they draw distinct images first
and repeat them, with other crops, only when the class has too few. Plain batches are consecutive parts of a
permutation of the whole split, drawn anew for each epoch.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError


class BatchPlan(NamedTuple):
    """What to load, in batch order; N = P·Q, or this rank's part of it."""

    indices: NDArray[np.int64]  # [N] image of the index
    labels: NDArray[np.int64]  # [N]
    groups: NDArray[np.int64]  # [N] slot number; images pair only inside their slot
    crops: NDArray[np.float64]  # [N, 2] position of the crop (x, y) as fractions of the free range, in [0, 1)
    flips: NDArray[np.bool_]  # [N] horizontal flip
    image_ids: NDArray[np.int64]  # [N] place in the global batch


class Deal(NamedTuple):
    """How a batch is divided: into micro-batches one after the other, and each of these over the ranks."""

    micro_batches: int = 1
    ranks: int = 1
    rank: int = 0


WHOLE = Deal()


class Sampler:
    """Plans the batches of an epoch.

    Args:
        labels: [n] class of each image of the split.
        slots: P, slots a batch. images: Q, images a slot. seed: of the run.
        deal: which part of each batch to plan; by default all of it.

    Raises:
        UserError: a batch of no image, or one that cannot be dealt so.
    """

    def __init__(self, labels: NDArray[np.int64], slots: int, images: int, seed: int, deal: Deal = WHOLE) -> None:
        if slots < 1 or images < 1:
            raise UserError(f"batch.classes and batch.images must be at least 1, got {slots} and {images}")
        self.labels, self.slots, self.images, self.seed, self.deal = labels, slots, images, seed, deal
        self.global_batch_size = slots * images
        self.steps_per_epoch = -(-len(labels) // self.global_batch_size)
        self._check_deal()
        self.batch_size = self.global_batch_size // deal.ranks

    def plan(self, epoch: int, step: int) -> BatchPlan:
        """The batch at (epoch, step), or the part of it that is dealt: nothing in it depends on the others."""
        rng, size = self._generator(epoch, step), self.global_batch_size
        indices, groups = self._draw(rng, epoch, step)
        crops, flips = rng.random((size, 2)), rng.random(size) < 0.5
        mine = np.arange(size).reshape(self.deal.micro_batches, self.deal.ranks, -1)[:, self.deal.rank].ravel()
        return BatchPlan(indices[mine], self.labels[indices[mine]], groups[mine], crops[mine], flips[mine], mine)

    def _check_deal(self) -> None:
        parts, ranks, _ = self.deal
        works = self._micro_batches()
        if parts not in works:
            raise UserError(
                f"batch.micro_batches={parts} does not cut this batch into like parts, no class in two of them; "
                f"{', '.join(map(str, works))} would"
            )
        units = self._units() // parts
        if units % ranks:
            fitting = [str(n) for n in range(1, units + 1) if units % n == 0]
            of = f" of each of {parts} micro-batches" if parts > 1 else ""
            raise UserError(
                f"{ranks} ranks cannot divide the {units} {self.unit}{of} alike; {', '.join(fitting)} ranks can, or "
                f"give another batch.classes than {self.slots}"
            )

    def _micro_batches(self) -> list[int]:
        """Numbers of like parts a batch can be cut into."""
        return [parts for parts in range(1, self.global_batch_size + 1) if self.global_batch_size % parts == 0]

    unit = "images"  # what a rank has whole

    def _units(self) -> int:
        return self.global_batch_size

    def _draw(self, rng: np.random.Generator, epoch: int, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Images and slot numbers of a batch."""
        raise NotImplementedError

    def _generator(self, *position: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, *position])))


class ClassPairedSampler(Sampler):
    """Slots of images of one class; batches are independent draws."""

    unit = "slots"

    def __init__(self, labels: NDArray[np.int64], slots: int, images: int, seed: int, deal: Deal = WHOLE) -> None:
        order = np.argsort(labels, kind="stable")
        starts = np.unique(labels[order], return_index=True)[1]
        self.members = np.split(order, starts[1:])  # a class without images has no slot
        super().__init__(labels, slots, images, seed, deal)

    def _micro_batches(self) -> list[int]:
        # With equally many slots and equally many whole classes each, the parts' mean losses are the batch's.
        classes = min(self.slots, len(self.members))
        whole = self.slots % classes == 0
        return [parts for parts in range(1, classes + 1) if classes % parts == 0 and (whole or parts == 1)]

    def _units(self) -> int:
        return self.slots

    def _draw(self, rng: np.random.Generator, epoch: int, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = rng.random(len(self.members)).argsort()
        slots_of = np.bincount(np.arange(self.slots) % len(order))  # of the first classes in that order
        drawn = []
        for of_class, slots in zip(order, slots_of, strict=False):
            members = self.members[of_class]
            shuffled = members[rng.random(len(members)).argsort()]
            drawn.append(np.resize(shuffled, slots * self.images))
        return np.concatenate(drawn), np.repeat(np.arange(self.slots), self.images)


class PlainSampler(Sampler):
    """Each image once an epoch, in an order drawn for the epoch; the last batch is filled up from its start."""

    _permutation: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))  # of the epoch planned last

    def _draw(self, rng: np.random.Generator, epoch: int, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._permutation[0] != epoch:
            # Steps draw by their own numbers; 2³² − 1 is none of them.
            self._permutation = epoch, self._generator(epoch, 2**32 - 1).permutation(len(self.labels))
        positions = np.arange(step * self.global_batch_size, (step + 1) * self.global_batch_size)
        return np.take(self._permutation[1], positions, mode="wrap"), np.zeros(self.global_batch_size, np.int64)


SAMPLERS = {"class_paired": ClassPairedSampler, "plain": PlainSampler}
