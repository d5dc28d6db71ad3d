"""Maps → boxes → errors, by named protocols."""

from .baseline import centered_box_error
from .boxes import intersection_over_union, largest_region_boxes
from .evaluate import evaluate
from .protocols import PaperProtocol
from .scores import LOCALIZATION_METRICS, Scores, headline, paired_difference, paired_differences

__all__ = [
    "LOCALIZATION_METRICS",
    "PaperProtocol",
    "Scores",
    "centered_box_error",
    "evaluate",
    "headline",
    "intersection_over_union",
    "largest_region_boxes",
    "paired_difference",
    "paired_differences",
]
