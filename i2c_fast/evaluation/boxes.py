"""From gray-level maps to boxes: regions and contours at every threshold, and how boxes overlap."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Gray = NDArray[np.uint8]
Boxes = NDArray[np.int32]

# Inclusive bounds of no pixel: width and height 0, so its overlap with any box is 0.
EMPTY_BOX = (0, 0, -1, -1)


@dataclass(frozen=True)
class Contours:
    """What ``cv2.findContours(gray > t, RETR_TREE, CHAIN_APPROX_SIMPLE)`` finds at the thresholds t in 0…254.

    A contour runs through the outermost pixels of an 8-connected region, or through the pixels around a hole of it. Its
    box is tight, with inclusive bounds.
    """

    largest: Boxes  # [255, 4] that of largest `cv2.contourArea`, of equals OpenCV's first; `EMPTY_BOX` if there is none
    states: NDArray[np.int32]  # [S, 8] as in `sweep`: all contours, with the thresholds at which each lasts

    @property
    def boxes(self) -> Boxes:
        """Boxes of all contours at all thresholds, int32 [S, 4]; those of equal regions at one threshold may repeat."""
        return self.states[:, :4]

    def at(self, threshold: int) -> Boxes:
        """Boxes of the contours at one threshold, int32 [B, 4]."""
        low, high = self.states[:, 6], self.states[:, 7]
        return self.boxes[(low <= threshold) & (threshold <= high)]

    def best(self, values: NDArray[np.float64]) -> NDArray[np.intp]:
        """Index in `boxes` of the highest of `values` [S] at each threshold, [255]; −1 where there is no contour."""
        from .sweep import leaders

        return np.asarray(leaders(self.states, values), np.intp)


def largest_region_boxes(gray: Gray, thresholds: NDArray[np.int64]) -> Boxes:
    """Box of the largest 8-connected region of ``gray > t`` for each threshold t.

    Args:
        gray: uint8 [H, W].
        thresholds: [T] gray levels, 0…254.

    Returns:
        int32 [T, 4] as x0, y0, x1, y1, inclusive; `EMPTY_BOX` where no pixel is above. Of equally large regions the one
        whose first pixel comes first in row-major order.
    """
    from .sweep import trace_regions  # numba loads as slowly as it runs fast

    boxes: Boxes = trace_regions(_checked(gray))
    return boxes[thresholds]


def find_contours(gray: Gray) -> Contours:
    """All contours of ``gray > t`` at every threshold t.

    Args:
        gray: uint8 [H, W].
    """
    from .sweep import trace_contours

    return Contours(*trace_contours(_checked(gray)))


def _checked(gray: Gray) -> Gray:
    if gray.dtype != np.uint8 or gray.ndim != 2:
        raise TypeError(f"expected a uint8 map [H, W], got {gray.dtype} {[*gray.shape]}")
    return np.require(gray, requirements="W")  # what is compiled takes no read-only array


def intersection_over_union(boxes: Boxes, gt_boxes: NDArray[np.floating]) -> NDArray[np.float64]:
    """IoU of every box with every ground-truth box; bounds are inclusive, so a width is x1 − x0 + 1.

    Args:
        boxes: [T, 4]. gt_boxes: [B, 4].

    Returns:
        float64 [T, B].
    """
    ax0, ay0, ax1, ay1 = boxes.T.astype(np.float64)[..., None]
    bx0, by0, bx1, by1 = gt_boxes.T.astype(np.float64)[:, None]
    width = (np.minimum(ax1, bx1) - np.maximum(ax0, bx0) + 1).clip(min=0)
    height = (np.minimum(ay1, by1) - np.maximum(ay0, by0) + 1).clip(min=0)
    overlap = width * height
    areas = (ax1 - ax0 + 1) * (ay1 - ay0 + 1) + (bx1 - bx0 + 1) * (by1 - by0 + 1)
    return np.asarray(overlap / np.maximum(areas - overlap, np.finfo(np.float64).tiny))


def highest_overlaps(boxes: Boxes, gt_boxes: NDArray[np.floating]) -> NDArray[np.float64]:
    """Highest IoU of each box with any ground-truth box, equal to ``intersection_over_union(boxes, gt_boxes).max(1)``.

    Args:
        boxes: [T, 4]. gt_boxes: [B, 4]; without any, all overlaps are 0.

    Returns:
        float64 [T].
    """
    from .sweep import nearest

    whole = np.ascontiguousarray(boxes.astype(np.int32, casting="same_kind", copy=False))  # fractions are a TypeError
    overlaps: NDArray[np.float64] = nearest(whole, np.ascontiguousarray(gt_boxes, np.float64))
    return overlaps
