"""Maps → boxes → errors, by named protocols."""

# ruff: noqa: F401 (what is imported here is what the package offers)

from .baseline import centered_box_error
from .boxes import Contours, find_contours, intersection_over_union, largest_region_boxes
from .evaluate import BatchObserver, evaluate
from .failures import FAILURES, Outcome, outcome
from .map_writer import require_empty, write_maps
from .metric import LocalizationMetric
from .pixels import PixelAveragePrecision, combine_masks
from .protocols import CONTOUR_IOUS, PaperProtocol, ScoringProtocol, Verdict, WsolEvaluationProtocol, named_protocol
from .score_maps import score_maps, score_masks
from .scores import LOCALIZATION_METRICS, Scores, accuracies, headline, paired_difference, paired_differences
