"""Inter-Image Communication (I²C, ECCV 2020) for weakly supervised object localization, fast and real."""

from .losses import InterImageLoss, InterImageTerms

__version__ = "0.1.0"

__all__ = ["InterImageLoss", "InterImageTerms", "__version__"]
