"""Find the boxes of regions and contours in a gray map at every threshold, and compute how boxes overlap."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Gray = NDArray[np.uint8]
Boxes = NDArray[np.int32]

# Inclusive bounds of no pixel: width and height 0, so its overlap with any box is 0.
EMPTY_BOX = (0, 0, -1, -1)
ALL_LEVELS = np.arange(255)


class Contours(NamedTuple):
    """What ``cv2.findContours(gray > t, RETR_TREE, CHAIN_APPROX_SIMPLE)`` finds at some thresholds t.

    A contour runs through the outermost pixels of an 8-connected region, or through the pixels around a hole of it. Its
    box is tight, with inclusive bounds. Thresholds of equal masks share their contours.
    """

    largest: Boxes  # [T, 4] that of largest `cv2.contourArea`, of equals OpenCV's first; `EMPTY_BOX` if there is none
    boxes: Boxes  # [S, 4] of all contours, mask by mask; `EMPTY_BOX` for a mask without any
    begins: NDArray[np.int64]  # [M] where the boxes of each mask begin
    mask_of: NDArray[np.int64]  # [T] the mask of each threshold

    def highest(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Highest of `values` [S], one a box, at each threshold, [T]."""
        return np.maximum.reduceat(values, self.begins)[self.mask_of]


def largest_region_boxes(gray: Gray, thresholds: NDArray[np.int64]) -> Boxes:
    """Box of the largest 8-connected region of ``gray > t`` for each threshold t.

    Args:
        gray: uint8 [H, W].
        thresholds: [T] gray levels, 0…254, in any order.

    Returns:
        int32 [T, 4] as x0, y0, x1, y1, inclusive; `EMPTY_BOX` where no pixel is above. Of equally large regions the one
        whose first pixel comes first in row-major order.

    Raises:
        TypeError: a map of another kind. ValueError: a threshold out of range.
    """
    from .sweep import trace  # late: numba takes seconds to load

    return trace(*_checked(gray, thresholds), False)[0]


def find_contours(gray: Gray, thresholds: NDArray[np.int64] = ALL_LEVELS) -> Contours:
    """All contours of ``gray > t`` at each threshold t; arguments and errors as `largest_region_boxes`."""
    from .sweep import trace

    return Contours(*trace(*_checked(gray, thresholds), True))


def _checked(gray: Gray, thresholds: NDArray[np.int64]) -> tuple[Gray, NDArray[np.int64]]:
    if gray.dtype != np.uint8 or gray.ndim != 2:
        raise TypeError(f"expected a uint8 map [H, W], got {gray.dtype} {[*gray.shape]}")
    if len(thresholds) and not 0 <= thresholds.min() <= thresholds.max() <= 254:
        raise ValueError(f"thresholds must be 0…254, got {thresholds.min()}…{thresholds.max()}")
    # The compiled functions take no read-only array.
    return np.require(gray, requirements="W"), np.array(thresholds, np.int64)


class Overlaps(NamedTuple):
    """How boxes overlap ground-truth boxes, float64 [T, B] each; 0 where no pixel is in both."""

    iou: NDArray[np.float64]  # intersection over union
    iop: NDArray[np.float64]  # intersection over the predicted box
    iog: NDArray[np.float64]  # intersection over the ground-truth box


def overlaps(boxes: NDArray[np.number], gt_boxes: NDArray[np.number]) -> Overlaps:
    """Overlaps of every box [T, 4] with every ground-truth box [B, 4]; bounds are inclusive: a width is x1 − x0 + 1."""
    from .sweep import overlap_ratios

    predicted, annotated = (np.ascontiguousarray(given, np.float64) for given in (boxes, gt_boxes))
    return Overlaps(*overlap_ratios(predicted, annotated).swapaxes(1, 2))


def intersection_over_union(boxes: NDArray[np.number], gt_boxes: NDArray[np.number]) -> NDArray[np.float64]:
    """IoU of every box [T, 4] with every ground-truth box [B, 4], float64 [T, B], as `overlaps` has it.

    Raises:
        ValueError: a box that is not finite, or upside down; an empty one such as `EMPTY_BOX` may be.
    """
    for name, given in (("boxes", boxes), ("gt_boxes", gt_boxes)):
        wrong = np.flatnonzero(~(np.isfinite(given) & np.tile(given[:, :2] <= given[:, 2:] + 1, 2)).all(1))
        if len(wrong):
            raise ValueError(f"{name}[{wrong[0]}] is {given[wrong[0]].tolist()}; expected x0 ≤ x1 and y0 ≤ y1")
    return overlaps(boxes, gt_boxes).iou


def highest_overlaps(boxes: NDArray[np.number], gt_boxes: NDArray[np.number]) -> NDArray[np.float64]:
    """Highest IoU of each box [T, 4] with any of the ground-truth boxes [B, 4], float64 [T]; 0 if there is none."""
    return overlaps(boxes, gt_boxes).iou.max(1, initial=0)
