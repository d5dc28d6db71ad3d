"""SGD or AdamW over a method's parameter groups, and the learning-rate schedules of the recipes."""

import math
from typing import Any

import torch
from torch import Tensor

from ..config import BatchConfig, OptimConfig, StageConfig
from ..errors import UserError
from ..methods import Method
from .apex import apex_sgd

PAPER_BATCH = 80  # images, for which the recipes' learning rates are made


def build_optimizer(method: Method, optim: OptimConfig) -> torch.optim.Optimizer:
    """SGD or AdamW, with a learning-rate factor for each group: by default the release's, 1 for body weights, 2 for
    body biases, 10 for head weights and 20 for head biases.

    Other groups of a method have the factor 1. Momentum buffers exist from the start: torch's fused SGD leaves them
    uninitialized when its very first step is skipped.

    Raises:
        UserError: ``impl`` is apex, and it cannot be used here or is asked for another optimizer than SGD.
    """
    if optim.impl == "apex" and optim.name != "sgd":
        raise UserError(f"optim.impl=apex has no {optim.name} here; take optim.impl=torch, or optim.name=sgd")
    factors = {
        "body biases": optim.body_bias_factor, "head weights": optim.head_factor, "head biases": optim.head_bias_factor
    }  # fmt: skip
    groups: list[dict[str, Any]] = [
        {
            "name": group.name,
            "params": group.params,
            "factor": factors.get(group.name, 1.0),
            "weight_decay": optim.weight_decay if group.decay else 0.0,
        }
        for group in method.parameter_groups()
    ]
    if optim.name == "adamw":
        # Without it a CUDA graph refuses; it says nothing on the CPU.
        capturable = groups[0]["params"][0].is_cuda
        return torch.optim.AdamW(groups, lr=0.0, fused=True, capturable=capturable)
    nesterov = optim.nesterov and optim.momentum > 0
    optimizer: torch.optim.Optimizer
    if optim.impl == "apex":
        optimizer = apex_sgd(groups, optim.momentum, nesterov)
    else:
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=optim.momentum, nesterov=nesterov, fused=True)
    if optim.momentum > 0:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group `rate` times its factor; in place where it is a tensor, which CUDA graphs read."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate * group["factor"])
        else:
            group["lr"] = rate * group["factor"]


def batch_factor(batch: BatchConfig, optim: OptimConfig) -> float:
    """What learning rates are multiplied by for the batch's size (Goyal et al. 2017) with ``scale_lr``."""
    return batch.classes * batch.images / PAPER_BATCH if optim.scale_lr else 1.0


def learning_rate(stage: StageConfig, step: int, steps_per_epoch: int) -> float:
    """Learning rate of body weights at a step of a stage: a pure function, so there is no schedule state to keep."""
    rising = step + 1 - stage.warmup_epochs * steps_per_epoch
    if rising < 0:
        return stage.lr * (step + 1) / (stage.warmup_epochs * steps_per_epoch)
    if stage.schedule == "steps":
        passed = sum(step >= milestone * steps_per_epoch for milestone in stage.milestones)
        return stage.lr * stage.decay**passed
    warmup = stage.warmup_epochs * steps_per_epoch
    progress = (step - warmup) / max(1.0, stage.epochs * steps_per_epoch - warmup)
    return stage.lr * 0.5 * (1 + math.cos(math.pi * max(0.0, progress)))
