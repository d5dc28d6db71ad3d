"""Maps → boxes → errors, by named protocols."""

from .baseline import centered_box_error
from .bootstrap import paired_difference, paired_differences
from .boxes import Contours, find_contours, intersection_over_union, largest_region_boxes
from .evaluate import BatchObserver, evaluate, unobserved
from .failures import FAILURES, Outcome, outcome
from .map_writer import require_empty, write_maps
from .metric import LocalizationMetric
from .pixels import PixelAveragePrecision, combine_masks, read_mask
from .protocols import CONTOUR_IOUS, PaperProtocol, ScoringProtocol, Verdict, WsolEvaluationProtocol, named_protocol
from .score_maps import score_maps, score_masks
from .scores import LOCALIZATION_METRICS, Scores, accuracies, headline

__all__ = [
    "CONTOUR_IOUS",
    "FAILURES",
    "LOCALIZATION_METRICS",
    "BatchObserver",
    "Contours",
    "LocalizationMetric",
    "Outcome",
    "PaperProtocol",
    "PixelAveragePrecision",
    "Scores",
    "ScoringProtocol",
    "Verdict",
    "WsolEvaluationProtocol",
    "accuracies",
    "centered_box_error",
    "combine_masks",
    "evaluate",
    "find_contours",
    "headline",
    "intersection_over_union",
    "largest_region_boxes",
    "named_protocol",
    "outcome",
    "paired_difference",
    "paired_differences",
    "read_mask",
    "require_empty",
    "score_maps",
    "score_masks",
    "unobserved",
    "write_maps",
]
