"""Who trains: by name, in the order of the tables."""

from collections.abc import Callable
from functools import partial

import torch

from . import ours, plain
from .setting import Setting, Trainer

Build = Callable[[Setting, torch.device], Trainer]

PLAIN: dict[str, Build] = {
    "baseline": plain.baseline,
    "baseline strict fp32": plain.strict_baseline,
    "eager+amp": plain.eager,
    "compile+amp": plain.compiled,
}
WAYS = {"": (), "+compile": ("run.compile=true",), "+graph": ("run.cuda_graph=true",)}


def _ours(method: str, overrides: tuple[str, ...]) -> Build:
    return partial(_build_ours, method, overrides)


def _build_ours(method: str, overrides: tuple[str, ...], setting: Setting, device: torch.device) -> Trainer:
    return ours.ours(setting, device, method, *overrides)


# cam and i2c of one way are a pair: their difference is what I²C costs.
PAIRS = {f"ours cam{way}": f"ours i2c{way}" for way in WAYS}
PROVIDERS: dict[str, Build] = {
    **PLAIN,
    **{f"ours {method}{way}": _ours(method, keys) for way, keys in WAYS.items() for method in ("cam", "i2c")},
    "ours i2c+apex": _ours("i2c", ("optim.impl=apex",)),
}
