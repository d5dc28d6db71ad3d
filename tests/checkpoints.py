"""Whole checkpoints of models that no run has trained."""

from typing import Any

import torch

from i2c_fast.config import Config, as_dict
from i2c_fast.models import Localizer, build_localizer
from i2c_fast.training.stage import build_method


def whole_state(config: Config, classes: list[str], model: Localizer | None = None, **entries: Any) -> dict[str, Any]:
    """What a run of the configuration saves at its end, with drawn weights; `entries` replace or add to it."""
    torch.manual_seed(0)
    made = model or build_localizer(config.model.backbone, len(classes), config.model.head_width)
    stage = list(config.stages)[-1]
    state = {
        "step": 8,
        "stage": stage,
        "epoch_closed": True,
        "skipped_in_row": 0,
        "config": as_dict(config),
        "classes": classes,
        "train_fingerprint": "0" * 64,
        "model": made.state_dict(),
        "method": build_method(config, stage, made).own_state(),
        "train_step": {"optimizer": {"state": {}, "param_groups": []}, "loss_scale": None},
        "ema": None,
        "scores": None,
    }
    return {**state, **entries}
