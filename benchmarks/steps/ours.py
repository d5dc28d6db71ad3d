"""Our trainer: the real `TrainStep`, built from a real configuration, called as the training loop calls it."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from i2c_fast.config import Config, build_config
from i2c_fast.data import SAMPLERS, ImageIndex, TrainBatch, TrainBatches, train_loader
from i2c_fast.kernels import sample_pixels
from i2c_fast.methods.i2c import I2C
from i2c_fast.runtime import Runtime, open_runtime, seed_all
from i2c_fast.training import TrainStep
from i2c_fast.training.loading import loading_of
from i2c_fast.training.optimizer import learning_rate, set_learning_rate
from i2c_fast.training.stage import open_step

from .setting import LEARNING_RATE, MOMENTUM, Setting, Site, Trainer, build_model

STAGE = "stage0"


def config_of(setting: Setting, device: torch.device, method: str, *overrides: str) -> Config:
    """Raises UserError where an override asks for what this machine or version does not have."""
    return build_config({}, "the benchmark", (
        f"run.device={device.type}", f"run.precision={setting.precision}",
        f"model.backbone={setting.backbone}", "model.weights=none",
        f"data.image_size={setting.image_size}", f"data.short_side={setting.image_size * 8 // 7}",
        f"batch.classes={setting.images // 2}", "batch.images=2",
        f"optim.momentum={MOMENTUM}", f"optim.weight_decay={setting.weight_decay}",
        f"{STAGE}.method={method}", f"{STAGE}.lr={LEARNING_RATE}", "optim.head_factor=1", "optim.head_bias_factor=1",
        *((f"i2c.sc_weight={setting.sc_weight}", f"i2c.gc_weight={setting.gc_weight}") if method == "i2c" else ()),
        *overrides,
    ))  # fmt: skip


def ours(setting: Setting, device: torch.device, method: str, *overrides: str) -> Trainer:
    config = config_of(setting, device, method, *overrides)
    run = config.run
    runtime = open_runtime(run.device, run.precision, run.deterministic, run.threads)
    model = build_model(setting, device)
    train_step = open_step(config, STAGE, runtime.move(model), runtime)
    train_step.method.train()
    number = 0

    def step(batch: TrainBatch) -> Tensor:
        nonlocal number
        set_learning_rate(train_step.optimizer, learning_rate(config.stages[STAGE], number, 1000))
        seed_all(run.seed, number)
        number += 1
        return train_step(batch)

    trained = train_step.method
    options: dict[str, Any] = {}
    if isinstance(trained, I2C):
        options = {"centers": trained.criterion.centers, "seeds": partial(_seeds, trained, runtime)}
    return Trainer(
        step, model, train_step.optimizer, [*trained.parameters(), *trained.buffers()], _sites(train_step),
        autocast=runtime.autocast, **options,
    )  # fmt: skip


@torch.no_grad()
def _seeds(method: I2C, runtime: Runtime, batch: TrainBatch) -> Tensor:
    """The pixels that the criterion will draw."""
    loss = method.criterion
    with runtime.autocast():
        maps = method.model(batch.images, batch.labels).maps
    return sample_pixels(maps, loss.k, loss.threshold, loss.draws, batch.image_ids, loss.seed_choice)[0]


def _sites(step: TrainStep) -> list[Site]:
    method = step.method
    sites = [
        Site(method.model, "forward", "forward"),
        Site(Tensor, "backward", "backward"),
        Site(step, "_guard", "guard"),
        Site(step.optimizer, "zero_grad", "optimizer"),
        Site(step.optimizer, "step", "optimizer"),
    ]
    for statistics in step.statistics:
        sites += [Site(statistics, "keep", "guard"), Site(statistics, "restore", "guard")]
    if hasattr(method, "criterion"):
        sites += [Site(method.criterion, "forward", "I²C"), Site(method, "after_step", "I²C")]
    return sites


def batches_of(config: Config, index: ImageIndex) -> TrainBatches:
    """The class-paired batches of a run of the configuration."""
    batch, data = config.batch, config.data
    sampler = SAMPLERS["class_paired"](index.labels, batch.classes, batch.images, config.run.seed)
    return TrainBatches(index, sampler, data.image_size, data.short_side, data.resize)


def real_batches(config: Config, index: ImageIndex, device: torch.device, steps: int) -> Iterator[TrainBatch]:
    """The first of them, from the loader that the configuration names."""
    batches = batches_of(config, index)
    positions = (divmod(step, batches.sampler.steps_per_epoch) for step in range(steps))
    return train_loader(batches, positions, config.data.workers, loading_of(config.data, device))
