"""A trainer's step over a model so small that fp64 and many steps cost little: two convolutions, no BatchNorm."""

from typing import Any

import torch
from torch import Tensor, nn

from i2c_fast.config import OptimConfig
from i2c_fast.data import ClassPairedSampler, TrainBatch
from i2c_fast.methods import METHODS, Setup
from i2c_fast.models import Localizer
from i2c_fast.models.head import LocalizationHead
from i2c_fast.runtime import Runtime, seed_all
from i2c_fast.training.optimizer import build_optimizer, set_learning_rate
from i2c_fast.training.step import TrainStep

CPU = torch.device("cpu")


def small_localizer(classes: int, dropout: float = 0.0) -> Localizer:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1))
    body.out_channels, body.stride = 6, 8  # type: ignore[assignment]
    return Localizer(body, LocalizationHead(6, classes, width=8, dropout=dropout), (0.5,) * 3, (0.25,) * 3)


def step_over(
    model: Localizer, method: str = "i2c", optim: OptimConfig | None = None, runtime: Runtime | None = None, **own: Any
) -> TrainStep:
    """A step with the given options of `TrainStep`."""
    setup = Setup(seed=3, micro_batches=own.get("micro_batches", 1))
    made = METHODS[method](model, METHODS[method].Options(), setup).to(next(model.parameters()).dtype).train()
    optimizer = build_optimizer(made, optim or OptimConfig(head_factor=1, head_bias_factor=1, body_bias_factor=1))
    set_learning_rate(optimizer, 0.01)
    return TrainStep(made, optimizer, runtime or Runtime(CPU), **own)


def paired_batch(step: int, slots: int, classes: int, side: int = 32) -> TrainBatch:
    """Noise images of a class-paired plan over `classes` classes of five images."""
    plan = ClassPairedSampler(torch.arange(classes).repeat_interleave(5).numpy(), slots, 2, seed=0).plan(0, step)
    noise = torch.Generator().manual_seed(step)
    images = torch.randint(256, (2 * slots, 3, side, side), dtype=torch.uint8, generator=noise)
    labels, groups = torch.from_numpy(plan.labels), torch.from_numpy(plan.groups)
    return TrainBatch(images, labels, groups, torch.arange(2 * slots))


def take(step: TrainStep, number: int, slots: int = 6, classes: int = 6) -> dict[str, float]:
    seed_all(0, number)
    values = step(paired_batch(number, slots, classes)).tolist()
    return dict(zip(step.terms, values, strict=True))


def tensors_of(step: TrainStep) -> dict[str, Tensor]:
    """Weights, bank, draws and momentum."""
    state = {name: tensor.clone() for name, tensor in step.method.state_dict().items()}
    for number, entry in step.optimizer.state_dict()["state"].items():
        state[f"momentum.{number}"] = entry["momentum_buffer"].clone()
    return state
