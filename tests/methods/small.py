"""A small model and batch that every method's tests share."""

from typing import Any

import torch

from i2c_fast.data import TrainBatch
from i2c_fast.methods import METHODS, Method
from i2c_fast.models import Localizer, build_localizer


def small_model(classes: int = 3) -> Localizer:
    return build_localizer("resnet18", classes, head_width=8)


def method(name: str, model: Localizer | None = None, **options: Any) -> Method:
    """A method in training mode over a small model."""
    return METHODS[name](model or small_model(), METHODS[name].Options(**options)).train()


def batch(side: int = 32, labels: tuple[int, ...] = (0, 0, 2, 2, 1, 1)) -> TrainBatch:
    count = len(labels)
    images = torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return TrainBatch(
        images.contiguous(memory_format=torch.channels_last),
        torch.tensor(labels),
        torch.arange(count) // 2,
        torch.arange(count),
    )
