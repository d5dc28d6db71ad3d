"""From grey-level maps to boxes: regions and contours at every threshold, and how boxes overlap."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
Boxes = NDArray[np.int32]

# Inclusive bounds of no pixel: width and height 0, so its overlap with any box is 0.
EMPTY_BOX = (0, 0, -1, -1)


@dataclass(frozen=True)
class Contours:
    """What ``cv2.findContours(grey > t, RETR_TREE, CHAIN_APPROX_SIMPLE)`` finds at the thresholds t in 0…254.

    A contour runs through the outermost pixels of an 8-connected region, or through the pixels around a hole of it. Its
    box is tight, with inclusive bounds.
    """

    largest: Boxes  # [255, 4] that of largest `cv2.contourArea`, of equals OpenCV's first; `EMPTY_BOX` if there is none
    states: NDArray[np.int32]  # [S, 8] from `sweep`: all contours, with the thresholds at which each lasts

    @property
    def boxes(self) -> Boxes:
        """Boxes of all contours at all thresholds, int32 [S, 4]; those of equal regions at one threshold may repeat."""
        return self.states[:, :4]

    def at(self, threshold: int) -> Boxes:
        """Boxes of the contours at one threshold, int32 [B, 4]."""
        from .sweep import HIGH, LOW

        low, high = self.states[:, LOW], self.states[:, HIGH]
        return self.boxes[(low <= threshold) & (threshold <= high)]

    def best(self, values: NDArray[np.float64]) -> NDArray[np.intp]:
        """Place in `boxes` of the highest of `values` [S] at each threshold, [255]; −1 where there is no contour."""
        from .sweep import leaders

        return np.asarray(leaders(self.states, values), np.intp)


def largest_region_boxes(grey: Grey, thresholds: NDArray[np.int64]) -> Boxes:
    """Box of the largest 8-connected region of ``grey > t`` for each threshold t.

    Args:
        grey: uint8 [H, W].
        thresholds: [T] grey levels, 0…254.

    Returns:
        int32 [T, 4] as x0, y0, x1, y1, inclusive; `EMPTY_BOX` where no pixel is above. Of equally large regions the one
        whose first pixel comes first in row-major order.
    """
    from .sweep import EIGHT, PIXELS, sweep  # numba loads as slowly as it runs fast

    states, _, _ = sweep(_padded(grey), EIGHT, PIXELS, False)
    return _largest(states, first_wins=True)[thresholds]


def find_contours(grey: Grey) -> Contours:
    """All contours of ``grey > t`` at every threshold t.

    Holes are the 4-connected dark regions that do not reach the border; their contours' boxes are theirs, grown by a
    pixel. A contour's area is that of its region with all holes filled, and such regions lie side by side. So the
    largest is found in the map whose dark spots are filled up to the level at which they spill over the border, and of
    equal ones OpenCV, which lists siblings from the bottom to the top, meets the one that starts last.

    Args:
        grey: uint8 [H, W].
    """
    from .sweep import EIGHT, FOUR, PIXELS, POLYGON, fill, sweep

    dark = _padded(255 - grey)
    holes, entered, mergers = sweep(dark, FOUR, PIXELS, True)
    filled = 255 - fill(dark, entered, mergers)
    outer, _, _ = sweep(_padded(filled), EIGHT, POLYGON, False)
    regions = outer if np.array_equal(filled, grey) else sweep(_padded(grey), EIGHT, PIXELS, False)[0]
    everywhere = np.concatenate([_unpadded(regions), _hole_contours(holes, grey)])
    return Contours(_largest(outer, first_wins=False), everywhere)


def _largest(states: NDArray[np.int32], *, first_wins: bool) -> Boxes:
    """Box of the largest region at each threshold, int32 [255, 4], from the states of a sweep."""
    from .sweep import FIRST, SIZE, leaders

    first = states[:, FIRST].astype(np.int64)
    chosen = leaders(states, (states[:, SIZE].astype(np.int64) << 32) + (-first if first_wins else first))
    # The row after the last is what −1 stands for.
    return np.concatenate([_unpadded(states)[:, :4], np.array([EMPTY_BOX], np.int32)])[chosen]


def _padded(grey: Grey) -> Grey:
    """Zeros around a map, in row-major order whatever its own (which `np.pad` would keep)."""
    if grey.dtype != np.uint8 or grey.ndim != 2:
        raise TypeError(f"expected a uint8 map [H, W], got {grey.dtype} {[*grey.shape]}")
    padded = np.zeros((grey.shape[0] + 2, grey.shape[1] + 2), np.uint8)
    padded[1:-1, 1:-1] = grey
    return padded


def _unpadded(states: NDArray[np.int32]) -> NDArray[np.int32]:
    moved = states.copy()
    moved[:, :4] -= 1
    return moved


def _hole_contours(states: NDArray[np.int32], grey: Grey) -> NDArray[np.int32]:
    """States of hole contours from those of the dark regions, swept as 255 − grey."""
    from .sweep import HIGH, LOW

    height, width = grey.shape
    inside = np.all((states[:, :2] > 1) & (states[:, 2:4] < (width, height)), axis=1)
    contours = _unpadded(states[inside])
    contours[:, :4] += np.array([-1, -1, 1, 1], np.int32)
    contours[:, [LOW, HIGH]] = 254 - contours[:, [HIGH, LOW]]  # 255 − grey > s is what grey > 254 − s leaves out
    return contours


def intersection_over_union(boxes: Boxes, truth: NDArray[np.floating]) -> NDArray[np.float64]:
    """IoU of every box with every true box; bounds are inclusive, so a width is x1 − x0 + 1.

    Args:
        boxes: [T, 4]. truth: [B, 4].

    Returns:
        float64 [T, B].
    """
    ax0, ay0, ax1, ay1 = boxes.T.astype(np.float64)[..., None]
    bx0, by0, bx1, by1 = truth.T.astype(np.float64)[:, None]
    width = (np.minimum(ax1, bx1) - np.maximum(ax0, bx0) + 1).clip(min=0)
    height = (np.minimum(ay1, by1) - np.maximum(ay0, by0) + 1).clip(min=0)
    overlap = width * height
    areas = (ax1 - ax0 + 1) * (ay1 - ay0 + 1) + (bx1 - bx0 + 1) * (by1 - by0 + 1)
    return np.asarray(overlap / np.maximum(areas - overlap, np.finfo(np.float64).tiny))
