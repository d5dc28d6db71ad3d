"""From grey-level maps to boxes: the tight box of the largest connected region above each threshold."""

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
Boxes = NDArray[np.int32]

# Inclusive bounds of no pixel: width and height 0, so its overlap with any box is 0.
EMPTY_BOX = (0, 0, -1, -1)


def largest_region_boxes(grey: Grey, thresholds: NDArray[np.int64]) -> Boxes:
    """Box of the largest 8-connected region of ``grey > t`` for each threshold t.

    Args:
        grey: uint8 [H, W].
        thresholds: [T] grey levels, 0…254.

    Returns:
        int32 [T, 4] as x0, y0, x1, y1, inclusive; `EMPTY_BOX` where no pixel is above. Of equally large regions the one
        whose first pixel comes first in row-major order.
    """
    boxes = np.empty((len(thresholds), 4), np.int32)
    for i, threshold in enumerate(thresholds):
        mask = (grey > threshold).view(np.uint8)
        # Wu's algorithm numbers regions by their first pixels; OpenCV's default goes by blocks of 2 x 2 pixels.
        count, _, statistics, _ = cv2.connectedComponentsWithStatsWithAlgorithm(mask, 8, cv2.CV_32S, cv2.CCL_WU)
        if count == 1:
            boxes[i] = EMPTY_BOX
            continue
        x, y, width, height, _ = statistics[1 + np.argmax(statistics[1:, cv2.CC_STAT_AREA])]
        boxes[i] = x, y, x + width - 1, y + height - 1
    return boxes


def intersection_over_union(boxes: Boxes, truth: NDArray[np.float32]) -> NDArray[np.float64]:
    """IoU of every box with every true box; bounds are inclusive, so a width is x1 − x0 + 1.

    Args:
        boxes: [T, 4]. truth: [B, 4].

    Returns:
        float64 [T, B].
    """
    a, b = boxes.astype(np.float64)[:, None], truth.astype(np.float64)[None]
    inner = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + 1
    overlap = inner.clip(min=0).prod(-1)
    areas = (a[..., 2:] - a[..., :2] + 1).prod(-1) + (b[..., 2:] - b[..., :2] + 1).prod(-1)
    return overlap / np.maximum(areas - overlap, np.finfo(np.float64).tiny)
