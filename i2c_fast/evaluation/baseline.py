"""The baseline for localization errors: one centered box for all images."""

import numpy as np

from ..data import ImageIndex, read_image
from .protocols import PaperProtocol

FRACTIONS = np.arange(0.05, 1.01, 0.05)


def centered_box_error(index: ImageIndex, protocol: PaperProtocol) -> float:
    """Gt-known error in per cent of one centered box for all images, at the best of `FRACTIONS` of their sides.

    Args:
        index: a split with boxes; images without one do not count.
        protocol: how a box is judged.
    """
    right = []
    for i, gt_boxes in enumerate(index.boxes):
        if len(gt_boxes):
            known = index.sizes is not None and index.sizes[i].all()
            size = index.sizes[i] if index.sizes is not None and known else read_image(index.file(i)).shape[1::-1]
            half = FRACTIONS[:, None] * np.array(size) / 2
            middle = np.array(size) / 2
            boxes = np.concatenate([middle - half, middle + half - 1], 1).round().astype(np.int32)
            right.append(protocol.hits(boxes, gt_boxes))
    return 100 * float(1 - np.mean(right, 0).max())
