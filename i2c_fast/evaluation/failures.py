"""Classify why an image is not localized, from its predicted box and ground-truth boxes.

The terms are those of TS-CAM (Gao et al., ICCV 2021), whose error analysis tells classification errors, multi-instance
errors, localization part errors and localization more errors apart. With the intersection divided by the area of the
predicted box (IoP) or of a ground-truth box (IoG), the first of these that holds is an image's outcome:

1. `WRONG_CLASS`: the label is not the first prediction, wherever the box lies.
2. `RIGHT`: the protocol calls the box right.
3. `SEVERAL` (multi-instance): IoG > 0.3 with at least two ground-truth boxes.
4. `TOO_SMALL` (part): IoP > 0.5 with the ground-truth box of largest IoU: most of the box lies on the object.
5. `TOO_LARGE` (more): IoG > 0.7 with that ground-truth box: most of the object lies in the box.
6. `ELSEWHERE`: anything else, no box at all included.

Outcomes 1 and 3–6 together are the Top-1 Loc error at the threshold of the boxes.
"""

from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from .boxes import overlaps

SEVERAL_IOG, PART_IOP, MORE_IOG = 0.3, 0.5, 0.7


class Outcome(StrEnum):
    """Result for one image with a ground-truth box."""

    RIGHT = "right"
    WRONG_CLASS = "wrong class"
    SEVERAL = "several objects"
    TOO_SMALL = "too small"
    TOO_LARGE = "too large"
    ELSEWHERE = "elsewhere"


# For each outcome but `RIGHT`, in the order of the tests: its name in the literature, and its meaning.
FAILURES: dict[Outcome, tuple[str, str]] = {
    Outcome.WRONG_CLASS: ("classification error", "the first predicted class is not the label, wherever the box lies"),
    Outcome.SEVERAL: (
        "multi-instance error",
        f"the box covers more than {100 * SEVERAL_IOG:.0f} % of two or more ground-truth boxes (IoG > {SEVERAL_IOG})",
    ),
    Outcome.TOO_SMALL: (
        "localization part error",
        f"more than {100 * PART_IOP:.0f} % of the box lies on the ground-truth box (IoP > {PART_IOP})",
    ),
    Outcome.TOO_LARGE: (
        "localization more error",
        f"the box covers more than {100 * MORE_IOG:.0f} % of the ground-truth box (IoG > {MORE_IOG}), and much besides",
    ),
    Outcome.ELSEWHERE: ("", "none of these: the box lies beside the object or half on it, or there is none"),
}


def outcome(box: NDArray[np.number], gt_boxes: NDArray[np.floating], *, right_class: bool, right_box: bool) -> Outcome:
    """Outcome of one image.

    Args:
        box: [4] predicted x0, y0, x1, y1, inclusive; an empty one (x1 < x0) overlaps nothing.
        gt_boxes: [B, 4] ground-truth boxes in the same frame, B ≥ 1.
        right_class: whether the label is the first prediction. right_box: whether the protocol calls the box right.

    Raises:
        ValueError: no ground-truth box.
    """
    if not len(gt_boxes):
        raise ValueError("an image without a ground-truth box has no outcome")
    if not right_class:
        return Outcome.WRONG_CLASS
    if right_box:
        return Outcome.RIGHT
    iou, iop, iog = (ratios[0] for ratios in overlaps(box[None], gt_boxes))
    if np.count_nonzero(iog > SEVERAL_IOG) > 1:
        return Outcome.SEVERAL
    nearest = int(iou.argmax())
    if iop[nearest] > PART_IOP:
        return Outcome.TOO_SMALL
    return Outcome.TOO_LARGE if iog[nearest] > MORE_IOG else Outcome.ELSEWHERE
