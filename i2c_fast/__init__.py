"""Inter-Image Communication (I²C, ECCV 2020) for weakly supervised object localization, fast and real."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation import LocalizationMetric
    from .losses import InterImageLoss, InterImageTerms
    from .models import build_localizer
    from .training import load_checkpoint

__version__ = "0.1.0"

__all__ = [
    "InterImageLoss",
    "InterImageTerms",
    "LocalizationMetric",
    "__version__",
    "build_localizer",
    "load_checkpoint",
]

_MODULES = {
    "InterImageLoss": "losses",
    "InterImageTerms": "losses",
    "LocalizationMetric": "evaluation",
    "build_localizer": "models",
    "load_checkpoint": "training",
}


def __getattr__(name: str) -> Any:
    # On first use: importing torch takes seconds, which `i2c-fast --help` should not.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
