"""Batches for the tests of `InterImageLoss`, and the same in slow loops."""

from typing import Any

import torch
from torch import Tensor

from i2c_fast import InterImageLoss

from ..kernels import oracles

CLASSES, CHANNELS = 5, 4
LABELS = torch.tensor([1, 3, 1, -100, 3, 0])
Batch = tuple[Tensor, Tensor, Tensor]


def batch(seed: int = 0, labels: Tensor = LABELS, dtype: torch.dtype = torch.float32) -> Batch:
    """Features [N, 4, 3, 5], maps [N, 3, 5] and labels."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(labels), CHANNELS, 3, 5, generator=generator).to(dtype)
    return features, torch.rand(len(labels), 3, 5, generator=generator), labels


def make(**arguments: Any) -> InterImageLoss:
    return InterImageLoss(CLASSES, CHANNELS, **({"k": 2, "threshold": 0.4, "alpha": 0.5, "seed": 7} | arguments))


def state(loss: InterImageLoss) -> dict[str, Tensor]:
    """Copies of the three buffers as they stand, without the commit of `state_dict`."""
    return {name: getattr(loss, name).detach().clone() for name in ("centers", "steps", "draws")}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


class Oracle:
    """The module once more in fp64 and loops: draws, SC, GC and the bank's evolution."""

    def __init__(self, loss: InterImageLoss, groups: list[int] | None = None) -> None:
        self.loss, self.groups = loss, groups
        self.centers, self.steps = loss.centers.detach().double(), [0] * len(loss.steps)
        self.run, self.step = loss.draws.tolist()
        self.means: dict[int, Tensor] = {}

    def terms(self, features: Tensor, maps: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        loss = self.loss
        first = loss.seed_choice == "first"
        chosen, counts = oracles.seeds(maps, loss.k, loss.threshold, self.run, self.step, first=first)
        values = oracles.gathered(features.double(), chosen)
        found = oracles.pairs(labels.tolist(), self.groups)
        means = oracles.means_by_class(values, labels.tolist())
        sc = oracles.pair_sum(values, found, loss.distance) / max(1, len(found))
        gc = oracles.center_sum(means, self.centers, loss.distance) / max(1, len(means))
        self.means = {label: mean.detach() for label, mean in means.items()}
        return sc, gc, counts

    def commit(self) -> None:
        oracles.move_centers(self.centers, self.steps, self.means, self.loss.alpha)
        self.step += 1
