"""Trainers in plain PyTorch, as others would train the same model, over the same modules.

``baseline``
    the way the authors' release trains: fp32 in NCHW without autocast, a dense map of every class, the objective in
    Python loops over images, pairs and classes, which look at values on the host, torch's default SGD. Its convolutions
    use TF32, which is torch's default; ``baseline strict fp32`` forbids it.
``eager+amp``
    the same objective written with care: vectorized, the label's map alone, autocast, channels_last, fused SGD.
``compile+amp``
    a plain trainer as timm has it: compiled model, autocast, channels_last, fused SGD, cross-entropy alone.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from i2c_fast.data import TrainBatch
from i2c_fast.models import Localizer

from .. import objective
from ..candidates import compile_backend
from .setting import LEARNING_RATE, MOMENTUM, Setting, Site, Trainer, build_model

SEEDS = 3
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class PlainStep:
    """Forward, the terms of I²C if the trainer has them, backward, SGD, centers.

    Args:
        loops: the release's way of computing the objective; else the vectorized one.
        consistency: whether SC and GC are part of the loss.
    """

    def __init__(
        self,
        model: Any,
        setting: Setting,
        optimizer: torch.optim.Optimizer,
        autocast: Callable[[], AbstractContextManager[object]],
        loops: bool = False,
        consistency: bool = True,
    ) -> None:
        self.model, self.setting, self.optimizer, self.autocast = model, setting, optimizer, autocast
        self.loops, self.consistency = loops, consistency
        self.draw = objective.loops_draw if loops else objective.draw
        if consistency:
            device = next(model.parameters()).device
            centers = torch.randn(setting.classes, model.feature_dim, device=device)
            self.bank = objective.Bank(centers, torch.zeros(setting.classes, dtype=torch.int64, device=device))

    def __call__(self, batch: TrainBatch) -> Tensor:
        self.optimizer.zero_grad()
        with self.autocast():
            logits, maps, features = self.forward(batch)
            ce = functional.cross_entropy(logits.float(), batch.labels)
        loss = ce
        if self.consistency:
            terms, means = self.compare(features, maps, batch.labels)
            loss = ce + terms
        loss.backward()
        self.optimizer.step()
        if self.consistency:
            self.move_centers(batch.labels, means)
        return ce.detach()

    def forward(self, batch: TrainBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, the label's maps and the features; the last two are empty without the terms of I²C."""
        if not self.consistency:
            logits = self.model(batch.images)
            return logits, logits, logits
        model, rows = self.model, torch.arange(len(batch.labels), device=batch.labels.device)
        features = model.body(model.normalize(batch.images))
        x = model.head(features)
        if self.loops:
            maps = model.head.fc8(x)
            return maps.mean((2, 3)), maps.detach()[rows, batch.labels].float(), features
        logits = model.head.logits(x)
        with torch.no_grad():
            weight, bias = model.head.fc8.weight.flatten(1)[batch.labels], model.head.fc8.bias[batch.labels]
            maps = (x.permute(0, 2, 3, 1).flatten(1, 2) @ weight.to(x.dtype)[:, :, None]).float()
        return logits, maps.view(len(x), *x.shape[2:]) + bias[:, None, None], features

    def compare(self, features: Tensor, maps: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
        """λ1 SC + λ2 GC, and the class means."""
        indices = self.draw(maps, SEEDS)
        losses = objective.loops_losses_at if self.loops else objective.losses_at
        sc, gc, means = losses(features, indices, labels, self.bank.centers)
        return self.setting.sc_weight * sc + self.setting.gc_weight * gc, means

    def move_centers(self, labels: Tensor, means: Any) -> None:
        if self.loops:
            objective.loops_move_centers(self.bank, means)
        else:
            objective.move_centers(*self.bank, labels, means)

    def seeds(self, batch: TrainBatch) -> Tensor:
        """Pixels that this and all steps to come compare."""
        side = batch.images.shape[-1] // self.model.stride
        pixels = torch.rand(len(batch.labels), side * side, device=batch.labels.device).topk(SEEDS).indices
        self.draw = lambda maps, k: pixels
        return pixels


def _trainer(step: PlainStep, model: Localizer, **options: Any) -> Trainer:
    sites = [
        Site(step, "forward", "forward"),
        Site(step, "compare", "I²C"),
        Site(Tensor, "backward", "backward"),
        Site(step.optimizer, "zero_grad", "optimizer"),
        Site(step.optimizer, "step", "optimizer"),
        Site(step, "move_centers", "I²C"),
    ]
    changes = [*model.parameters(), *model.buffers()]
    if not step.consistency:
        return Trainer(step, model, step.optimizer, changes, **options)
    own: dict[str, Any] = {"seeds": step.seeds, "centers": step.bank.centers, "sites": sites}
    return Trainer(step, model, step.optimizer, [*changes, *step.bank], **own, **options)


def _sgd(model: torch.nn.Module, setting: Setting, fused: bool | None) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=setting.weight_decay, nesterov=True, fused=fused
    )


def baseline(setting: Setting, device: torch.device, tf32: bool = True) -> Trainer:
    model = build_model(setting, device, channels_last=False)
    optimizer = _sgd(model, setting, fused=None)
    step = PlainStep(model, setting, optimizer, nullcontext, loops=True)

    def as_its_loader_delivers(batch: TrainBatch) -> TrainBatch:
        """Normalized fp32 in NCHW: the release normalizes in the loader's processes."""
        return batch._replace(images=model.normalize(batch.images).contiguous())

    return _trainer(step, model, prepare=as_its_loader_delivers, convolutions_tf32=tf32, products_tf32=False)


def strict_baseline(setting: Setting, device: torch.device) -> Trainer:
    return baseline(setting, device, tf32=False)


def autocast_of(setting: Setting, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    if setting.precision not in AUTOCAST:
        return nullcontext
    return lambda: torch.autocast(device.type, AUTOCAST[setting.precision])


def eager(setting: Setting, device: torch.device) -> Trainer:
    model, autocast = build_model(setting, device), autocast_of(setting, device)
    optimizer = _sgd(model, setting, fused=True)
    return _trainer(PlainStep(model, setting, optimizer, autocast), model, autocast=autocast)


def compiled(setting: Setting, device: torch.device) -> Trainer:
    model, autocast = build_model(setting, device), autocast_of(setting, device)
    optimizer = _sgd(model, setting, fused=True)
    fast = torch.compile(model, backend=compile_backend(device))
    return _trainer(PlainStep(fast, setting, optimizer, autocast, consistency=False), model, autocast=autocast)
