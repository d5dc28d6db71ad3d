"""Training from files: how long a step waits for its images.

The baselines load as the authors' release does, by Pillow in a plain DataLoader, in as many processes as the others'
loader has; all others through the loader that the configuration names.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from i2c_fast.config import Config
from i2c_fast.data import ImageIndex, TrainBatch
from i2c_fast.training.loading import settle_loader
from i2c_fast.training.run import open_split

from ..loader import PillowImages
from .ours import batches_of, config_of, real_batches
from .providers import PROVIDERS
from .setting import Setting

Row = dict[str, Any]
WARMUP = 5


def run_files(
    setting: Setting, chosen: tuple[str, ...], device: torch.device, root: str, steps: int, overrides: tuple[str, ...]
) -> list[Row]:
    """One row a provider, measured one after the other.

    ``waiting`` is the fraction of the time that the host spends waiting for batches; a GPU may be busy meanwhile.
    ``lost`` is the fraction by which as many steps on a batch that is there already are shorter. ``images_per_s`` is
    None without a GPU.

    Raises:
        UserError: the data set or an override does not fit.
    """
    config = config_of(setting, device, "i2c", f"data.root={root}", *overrides)
    config = settle_loader(config, device, print)
    index = open_split(config.data, "train")
    setting = replace(setting, classes=max(len(index.classes), setting.images // 2))
    rows = []
    for name in chosen:
        trainer = PROVIDERS[name](setting, device)
        trainer.set_flags()
        waited, began = 0.0, 0.0
        by_pillow = name.startswith("baseline")
        loader = "pil" if by_pillow else config.data.loader
        batches = (pillow_batches if by_pillow else real_batches)(config, index, device, WARMUP + steps)
        for number in range(WARMUP + steps):
            if number == WARMUP:
                waited, began = 0.0, _now(device)
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            trainer.step(trainer.prepare(batch.to(device)))
        seconds = _now(device) - began
        began, held = _now(device), trainer.prepare(batch.to(device))
        for _ in range(steps):
            trainer.step(held)
        without_loader = _now(device) - began
        rows.append({
            **setting.facts(), "data": root, "provider": name, "status": "ok",
            "loader": f"{loader}, {config.data.workers} {'threads' if loader == 'dali' else 'processes'}",
            "waiting": waited / seconds, "lost": max(0.0, 1 - without_loader / seconds),
            "images_per_s": steps * setting.images / seconds if device.type == "cuda" else None,
        })  # fmt: skip
    return rows


def pillow_batches(config: Config, index: ImageIndex, device: torch.device, steps: int) -> Iterator[TrainBatch]:
    """The same crops as `real_batches`, fp32 and normalized."""
    data = config.data
    images = PillowImages(batches_of(config, index))
    loader = DataLoader(images, config.batch.classes * 2, num_workers=data.workers, pin_memory=device.type == "cuda")
    ids = torch.arange(config.batch.classes * 2)
    return (TrainBatch(pixels, labels, ids // 2, ids) for pixels, labels in islice(loader, steps))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
