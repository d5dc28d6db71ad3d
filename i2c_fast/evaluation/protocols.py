"""Scoring protocols: every convention between a raw class map and a verdict, in one object each."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from .boxes import Boxes, Grey, intersection_over_union, largest_region_boxes


@dataclass(frozen=True)
class PaperProtocol:
    """The paper's protocol (section 3.3, after CAM), with what it leaves open decided and written down.

    1. The raw map is min–max normalized; a constant map, or one with a NaN or infinity, becomes zeros.
    2. It is resized bilinearly to the stored image's size and becomes uint8(255·m), truncated.
    3. At threshold t the region is value > t, t in 0…254; the box is the tight one of the largest 8-connected region,
       with inclusive pixel bounds. No region, no box.
    4. The box is right when its IoU with any true box of the image is > 0.5; widths and heights count +1.

    Attributes:
        threshold_step: grey levels between the thresholds of the grid.
    """

    threshold_step: int = 1
    name: str = "paper"

    @property
    def thresholds(self) -> NDArray[np.int64]:
        """The grid of grey levels, [T]."""
        return np.arange(0, 255, self.threshold_step)

    def grey(self, raw: NDArray[np.float32], width: int, height: int) -> Grey:
        """Raw map [h, w] → uint8 [height, width] (steps 1 and 2)."""
        low, high = raw.min(), raw.max()
        with np.errstate(over="ignore", invalid="ignore"):
            span = high - low
        if not np.isfinite(span) or span == 0:
            return np.zeros((height, width), np.uint8)
        scaled = cv2.resize((raw - low) / span, (width, height), interpolation=cv2.INTER_LINEAR)
        return (scaled * 255).clip(0, 255).astype(np.uint8)

    def boxes(self, grey: Grey) -> Boxes:
        """Box at each threshold of the grid, int32 [T, 4] (step 3)."""
        return largest_region_boxes(grey, self.thresholds)

    def box(self, grey: Grey, threshold: int) -> Boxes:
        """Box at one threshold, int32 [4] (step 3)."""
        box: Boxes = largest_region_boxes(grey, np.array([threshold]))[0]
        return box

    def hits(self, boxes: Boxes, truth: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Whether each box [T, 4] matches any true box [B, 4]: bool [T] (step 4)."""
        return np.any(intersection_over_union(boxes, truth) > 0.5, axis=1)
