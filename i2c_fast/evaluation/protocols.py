"""Scoring protocols: every convention between a raw class map and a verdict, in one object each."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from .boxes import Boxes, Contours, Gray, find_contours, highest_overlaps, largest_region_boxes

Verdicts = NDArray[np.bool_]

# IoU thresholds of MaxBoxAccV2.
CONTOUR_IOUS = (0.3, 0.5, 0.7)


class Verdict(NamedTuple):
    """Whether the boxes of one map are right, at each threshold of a protocol."""

    box: Verdicts  # [T] the one box
    contours: Verdicts | None = None  # [3, T] any contour's box, at each of CONTOUR_IOUS


class ScoringProtocol(Protocol):
    """Turns a raw map into a gray map, boxes and verdicts. By default the gray map has the size of the image."""

    name: ClassVar[str]

    @property
    def thresholds(self) -> NDArray[np.int64]:
        """The grid of gray levels, [T]."""

    def map_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the gray map of an image of the given size."""
        return width, height

    def gray_map(self, raw: NDArray[np.floating], width: int, height: int) -> Gray:
        """Raw map [h, w] of an image of the given size → what thresholds are applied to, uint8 of `map_size`."""

    def box_at(self, gray: Gray, threshold: int) -> Boxes:
        """The one box at a gray level, int32 [4] in pixels of the gray map, inclusive."""

    def to_map(self, gt_boxes: NDArray[np.float32], width: int, height: int) -> NDArray[np.floating]:
        """Boxes [B, 4] in pixels of an image of the given size → in pixels of its gray map, where they are judged."""
        return gt_boxes

    def to_image(self, box: NDArray[np.number], width: int, height: int) -> NDArray[np.float64]:
        """A box [4] in pixels of the gray map → in pixels of its image, for drawing."""
        return box.astype(np.float64)

    def verdict(self, raw: NDArray[np.floating], width: int, height: int, gt_boxes: NDArray[np.float32]) -> Verdict:
        """Judge a raw map [h, w] of an image of the given size; without ground-truth boxes [B, 4] all is wrong."""


@dataclass(frozen=True)
class PaperProtocol(ScoringProtocol):
    """The paper's protocol (section 3.3, after CAM), with a decision written down wherever the paper leaves one open.

    1. The raw map is min–max normalized; a constant map, or one with a NaN or infinity, becomes zeros.
    2. It is resized bilinearly to the stored image's size and becomes uint8(255·m), truncated.
    3. At threshold t the region is value > t, t in 0…254; the box is the tight one of the largest 8-connected region,
       with inclusive pixel bounds. No region, no box.
    4. The box is right when its IoU with any ground-truth box of the image is > 0.5; widths and heights count +1.

    Attributes:
        threshold_step: gray levels between the thresholds of the grid.
    """

    threshold_step: int = 1
    name: ClassVar[str] = "paper"

    @property
    def thresholds(self) -> NDArray[np.int64]:
        """The grid of gray levels, [T]."""
        return np.arange(0, 255, self.threshold_step)

    def gray_map(self, raw: NDArray[np.floating], width: int, height: int) -> Gray:
        """Raw map [h, w] → uint8 [height, width] (steps 1 and 2)."""
        scaled = cv2.resize(_min_max(raw), (width, height), interpolation=cv2.INTER_LINEAR)
        return (scaled * 255).clip(0, 255).astype(np.uint8)

    def boxes(self, gray: Gray) -> Boxes:
        """Box at each threshold of the grid, int32 [T, 4] (step 3)."""
        return largest_region_boxes(gray, self.thresholds)

    def box_at(self, gray: Gray, threshold: int) -> Boxes:
        """Box at one threshold, int32 [4] (step 3)."""
        return largest_region_boxes(gray, np.array([threshold]))[0]

    def hits(self, boxes: Boxes, gt_boxes: NDArray[np.float32]) -> Verdicts:
        """Whether each box [T, 4] matches any ground-truth box [B, 4]: bool [T] (step 4)."""
        return np.asarray(highest_overlaps(boxes, gt_boxes) > 0.5)

    def verdict(self, raw: NDArray[np.floating], width: int, height: int, gt_boxes: NDArray[np.float32]) -> Verdict:
        """Judge a raw map [h, w] of an image of the given size; without ground-truth boxes [B, 4] all is wrong."""
        if not len(gt_boxes):
            return Verdict(np.zeros(len(self.thresholds), np.bool_))
        return Verdict(self.hits(self.boxes(self.gray_map(raw, width, height)), gt_boxes))


@dataclass(frozen=True)
class WsolEvaluationProtocol(ScoringProtocol):
    """The field's standard protocol (Choe et al., CVPR 2020, and its evaluator wsolevaluation), bit for bit.

    1. The raw map is resized to 224 x 224 with OpenCV's INTER_CUBIC, in float64 as there. Then it is min–max
       normalized; a constant map, or one with a NaN, becomes zeros (and one with an infinity, which is an error there).
       A map that is 224 x 224 and normalized already stays as it is; one that does not reach 0 and 1 is normalized
       here, while the evaluator's code, which expects normalized files, scores it as it is.
    2. It becomes uint8(255·m), truncated: 255 is always reached, unless all is zero.
    3. Thresholds are t in arange(0, 1, interval), masks value > int(t · maximum). So at most 255 differ; the grid has
       each gray level int(255·t) once, and `expand` gives verdicts at every t. (A map of zeros has no mask at any t.)
    4. MaxBoxAcc's box is that of the contour of largest `cv2.contourArea` among all that `cv2.findContours` returns
       with RETR_TREE, of equals the first; MaxBoxAccV2 takes all contours, those of holes included. A box is
       (x, y, min(x + w, 223), min(y + h, 223)), one pixel more to the right and below than the contour; without a
       contour it is (0, 0, 0, 0).
    5. Ground-truth boxes are scaled to 224 x 224 and rounded down. A box is right when its IoU with any of them is
       ≥ 0.5 (V2: that of any contour's box ≥ 0.3, 0.5, 0.7); widths and heights count +1.

    Attributes:
        interval: between the thresholds t (``cam_curve_interval``), 1e-6…1.

    Raises:
        ValueError: an interval out of range.
    """

    interval: float = 0.001
    name: ClassVar[str] = "wsolevaluation"
    side: ClassVar[int] = 224

    def __post_init__(self) -> None:
        if not 1e-6 <= self.interval <= 1:
            raise ValueError(f"the interval between thresholds must be 1e-6…1, got {self.interval}")

    @property
    def fractions(self) -> NDArray[np.float64]:
        """The evaluator's thresholds t."""
        return np.arange(0, 1, self.interval)

    @cached_property
    def thresholds(self) -> NDArray[np.int64]:
        """The grid of gray levels, [T] (step 3)."""
        return np.unique(self._levels)

    @property
    def _levels(self) -> NDArray[np.int64]:
        return (self.fractions * 255).astype(np.int64)

    def expand(self, verdicts: Verdicts) -> Verdicts:
        """Verdicts [..., T] on the grid → at each of `fractions`."""
        return verdicts[..., np.searchsorted(self.thresholds, self._levels)]

    def map_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the gray map of any image."""
        return self.side, self.side

    def normalize(self, raw: NDArray[np.floating]) -> NDArray[np.float64]:
        """Raw map [h, w] → float64 [224, 224] from 0 to 1 (step 1)."""
        resized = cv2.resize(raw.astype(np.float64), (self.side, self.side), interpolation=cv2.INTER_CUBIC)
        return np.asarray(_min_max(resized), np.float64)

    def gray_map(self, raw: NDArray[np.floating], width: int, height: int) -> Gray:
        """Raw map [h, w] of an image of any size → uint8 [224, 224] (steps 1 and 2)."""
        return (self.normalize(raw) * 255).astype(np.uint8)

    def boxes(self, contours: Contours) -> Boxes:
        """MaxBoxAcc's box at each threshold of `contours`, int32 [T, 4] (step 4)."""
        return self._enlarged(contours.largest)

    def box_at(self, gray: Gray, threshold: int) -> Boxes:
        """MaxBoxAcc's box at one threshold, int32 [4] (step 4)."""
        return self._enlarged(find_contours(gray, np.array([threshold])).largest)[0]

    def to_map(self, gt_boxes: NDArray[np.float32], width: int, height: int) -> NDArray[np.floating]:
        """Boxes [B, 4] of an image of the given size → in pixels of the gray map, rounded down (step 5)."""
        return np.floor(gt_boxes.astype(np.float64) * self.side / (width, height, width, height))

    def to_image(self, box: NDArray[np.number], width: int, height: int) -> NDArray[np.float64]:
        """A box [4] in the gray map → each inclusive bound at the far edge of what its pixel covers of the image."""
        scale = np.array([width, height]) / self.side
        return np.concatenate([box[:2] * scale, (box[2:] + 1) * scale - 1])

    def verdict(self, raw: NDArray[np.floating], width: int, height: int, gt_boxes: NDArray[np.float32]) -> Verdict:
        """Judge a raw map [h, w] of an image of the given size; without ground-truth boxes [B, 4] all is wrong."""
        grid = len(self.thresholds)
        if not len(gt_boxes):
            return Verdict(np.zeros(grid, np.bool_), np.zeros((len(CONTOUR_IOUS), grid), np.bool_))
        contours = find_contours(self.gray_map(raw, width, height), self.thresholds)
        boxes = self._enlarged(np.concatenate([contours.largest, contours.boxes]))
        overlaps = highest_overlaps(boxes, self.to_map(gt_boxes, width, height))
        largest, best = overlaps[:grid], contours.highest(overlaps[grid:])
        return Verdict(largest >= 0.5, best >= np.array(CONTOUR_IOUS)[:, None])

    def _enlarged(self, boxes: Boxes) -> Boxes:
        enlarged = np.minimum(boxes + np.array([0, 0, 1, 1], np.int32), self.side - 1)
        enlarged[boxes[:, 2] < 0] = 0
        return enlarged


def _min_max(values: NDArray[Any]) -> NDArray[np.floating]:
    """Values from 0 to 1; zeros for a constant map or one with a NaN or infinity."""
    low, high = values.min(), values.max()
    with np.errstate(over="ignore", invalid="ignore"):
        span = high - low
    if not np.isfinite(span) or span == 0:
        return np.zeros(values.shape)
    shifted = values - low
    return np.divide(shifted, span, out=shifted)


def named_protocol(name: str, threshold_step: int = 1) -> ScoringProtocol:
    """The protocol ``paper``, with that step between its thresholds, or ``wsolevaluation``."""
    return WsolEvaluationProtocol() if name == WsolEvaluationProtocol.name else PaperProtocol(threshold_step)
