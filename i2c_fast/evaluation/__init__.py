"""Maps → boxes → errors, by named protocols."""

from .baseline import centered_box_error
from .boxes import Contours, find_contours, intersection_over_union, largest_region_boxes
from .evaluate import BatchObserver, evaluate
from .metric import LocalizationMetric
from .pixels import PixelAveragePrecision, combine_masks
from .protocols import CONTOUR_IOUS, PaperProtocol, ScoringProtocol, Verdict, WsolEvaluationProtocol
from .scores import LOCALIZATION_METRICS, Scores, headline, paired_difference, paired_differences

__all__ = [
    "CONTOUR_IOUS",
    "LOCALIZATION_METRICS",
    "BatchObserver",
    "Contours",
    "LocalizationMetric",
    "PaperProtocol",
    "PixelAveragePrecision",
    "Scores",
    "ScoringProtocol",
    "Verdict",
    "WsolEvaluationProtocol",
    "centered_box_error",
    "combine_masks",
    "evaluate",
    "find_contours",
    "headline",
    "intersection_over_union",
    "largest_region_boxes",
    "paired_difference",
    "paired_differences",
]
