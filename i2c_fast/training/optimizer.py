"""Parameter groups, SGD and learning-rate schedules of the recipes."""

import math

import torch
from torch import nn

from ..config import OptimConfig, StageConfig
from ..losses import InterImageLoss
from ..models import Localizer


def build_optimizer(model: Localizer, criterion: InterImageLoss | None, optim: OptimConfig) -> torch.optim.SGD:
    """SGD with the release's learning-rate factors: body weights 1, body biases 2, head weights 10, head biases 20.

    Centers trained by back-propagation are a group of their own: factor 1, no weight decay. Momentum buffers exist from
    the start: torch's fused SGD leaves them uninitialized when its very first step is skipped.
    """
    groups = [
        _group("body weights", model.body, False, 1.0, optim),
        _group("body biases", model.body, True, optim.body_bias_factor, optim),
        _group("head weights", model.head, False, optim.head_factor, optim),
        _group("head biases", model.head, True, optim.head_bias_factor, optim),
    ]
    if criterion is not None and isinstance(criterion.centers, nn.Parameter):
        groups.append({"name": "centers", "params": [criterion.centers], "factor": 1.0, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    optimizer = torch.optim.SGD(
        groups, lr=0.0, momentum=optim.momentum, nesterov=optim.nesterov and optim.momentum > 0, fused=True
    )
    if optim.momentum > 0:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _group(name: str, module: nn.Module, biases: bool, factor: float, optim: OptimConfig) -> dict:  # type: ignore[type-arg]
    params = [p for key, p in module.named_parameters() if key.endswith("bias") == biases]
    return {"name": name, "params": params, "factor": factor, "weight_decay": optim.weight_decay}


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group `rate` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


def learning_rate(stage: StageConfig, step: int, steps_per_epoch: int) -> float:
    """Learning rate of body weights at a step of a stage: a pure function, so there is no schedule state to keep."""
    rising = step + 1 - stage.warmup_epochs * steps_per_epoch
    if rising < 0:
        return stage.lr * (step + 1) / (stage.warmup_epochs * steps_per_epoch)
    if stage.schedule == "steps":
        passed = sum(step >= milestone * steps_per_epoch for milestone in stage.milestones)
        return stage.lr * stage.decay**passed
    warmup = stage.warmup_epochs * steps_per_epoch
    share = (step - warmup) / max(1.0, stage.epochs * steps_per_epoch - warmup)
    return stage.lr * 0.5 * (1 + math.cos(math.pi * max(0.0, share)))
