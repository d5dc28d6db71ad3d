"""What every trainer of the benchmark is given: one model, one batch, one way to be called."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from i2c_fast.data import TrainBatch
from i2c_fast.models import Localizer, build_localizer

# The batch is the same at every step: a rate that left the weights free to move would end in NaN, which a GPU
# multiplies with less power and so faster.
LEARNING_RATE = 1e-6
MOMENTUM = 0.9


@dataclass(frozen=True)
class Setting:
    """One row of the table but for its provider."""

    backbone: str = "resnet50"
    images: int = 80  # N, two of each class
    image_size: int = 224
    classes: int = 1000  # Y, at least N / 2
    precision: str = "bf16"  # of the providers that have a choice
    dropout: float = 0.5
    weight_decay: float = 5e-4
    sc_weight: float = 0.008
    gc_weight: float = 0.001

    def facts(self) -> dict[str, Any]:
        """For the results file."""
        names = ("backbone", "images", "image_size", "classes", "precision", "dropout")
        return {name: getattr(self, name) for name in names}


class Site(NamedTuple):
    """A call of the step that is a phase of its own: ``owner.attribute(…)``."""

    owner: object
    attribute: str
    phase: str


@dataclass
class Trainer:
    """A trainer that is ready to be timed.

    `step` trains on one batch. `prepare` makes the batch what the trainer's own loader would deliver, and is not timed.
    """

    step: Callable[[TrainBatch], object]
    model: Localizer
    optimizer: torch.optim.Optimizer
    changes: list[Tensor]  # all that a step changes, but for the optimizer's own state
    sites: list[Site] = field(default_factory=list)
    prepare: Callable[[TrainBatch], TrainBatch] = lambda batch: batch
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    convolutions_tf32: bool = True
    products_tf32: bool = True
    # Where the loss has the terms of I²C: the pixels [N, K] that the next step compares, and the centers [Y, D].
    seeds: Callable[[TrainBatch], Tensor] | None = None
    centers: Tensor | None = None

    def set_flags(self) -> None:
        """Make this trainer's precision torch's, which has one for the whole process."""
        torch.backends.cudnn.allow_tf32 = self.convolutions_tf32
        torch.set_float32_matmul_precision("high" if self.products_tf32 else "highest")
        torch.backends.cudnn.benchmark = True


def build_model(setting: Setting, device: torch.device, channels_last: bool = True) -> Localizer:
    """The same random weights for every provider."""
    torch.manual_seed(0)
    model = build_localizer(setting.backbone, setting.classes).to(device)
    model.head.dropout.p = setting.dropout
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.train()


def synthetic_batch(setting: Setting, device: torch.device) -> TrainBatch:
    """uint8 noise that lies on the device, channels_last, the two images of a class next to each other."""
    generator = torch.Generator().manual_seed(1)
    shape = (setting.images, setting.image_size, setting.image_size, 3)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    ids = torch.arange(setting.images, device=device)
    return TrainBatch(images.to(device).permute(0, 3, 1, 2), ids // 2, ids // 2, ids)
