"""PxAP: how well maps separate the pixels of objects from the others, for sets with masks (OpenImages)."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .protocols import WsolEvaluationProtocol

Mask = NDArray[np.uint8]

BACKGROUND, OBJECT, IGNORED = 0, 1, 255


class PixelAveragePrecision:
    """Pixel average precision of wsolevaluation: the area under the precision–recall curve of all pixels of a split.

    1. Maps are resized and normalized as `WsolEvaluationProtocol` has it, and compared with the mask at 224 x 224.
    2. Pixels of all images are counted together, in bins [t, t + interval) of the normalized map, the last one from the
       last t to 1, and a bin of its own for 1. Ignored pixels are not counted.
    3. With the pixels of the highest bins taken as the object, bin after bin, precision p and recall r give
       Σ (r_i − r_{i−1})·p_i, in per cent.

    The counts are whole numbers, so shards merge exactly. Methods are named as torchmetrics names them.
    """

    def __init__(self, protocol: WsolEvaluationProtocol | None = None) -> None:
        self.protocol = WsolEvaluationProtocol() if protocol is None else protocol
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._edges = np.append(self.protocol.fractions, 1.0)
        self._counts = np.zeros((2, len(self._edges)), np.int64)  # background and object, by rising bin

    def update(self, maps: Tensor, masks: Sequence[Mask]) -> None:
        """Count the pixels of a batch.

        Args:
            maps: float [N, h, w], raw maps of the labels' classes, of any size and device.
            masks: for each map a uint8 [224, 224] of 0 (background), 1 (object) and 255 (ignored), see `combine_masks`.

        Raises:
            ValueError: another number of masks than maps, or a mask of another size or with other values.
        """
        if len(maps) != len(masks):
            raise ValueError(f"{len(maps)} maps, but {len(masks)} masks")
        for raw, mask in zip(maps.detach().double().cpu().numpy(), masks, strict=True):
            normalized = self.protocol.normalize(raw)
            if mask.shape != normalized.shape or not np.isin(mask, (BACKGROUND, OBJECT, IGNORED)).all():
                raise ValueError(f"expected masks {[*normalized.shape]} of 0, 1 and 255, got {[*mask.shape]}")
            bins = np.searchsorted(self._edges, normalized, side="right") - 1
            for kind in (BACKGROUND, OBJECT):
                self._counts[kind] += np.bincount(bins[mask == kind], minlength=len(self._edges))

    def compute(self) -> float:
        """PxAP in per cent.

        Raises:
            ValueError: no pixel of an object was seen.
        """
        false, true = self._counts[:, ::-1].cumsum(axis=1)
        if not true[-1]:
            raise ValueError("no mask has a pixel of an object")
        taken = true + false > 0
        precision = true[taken] / (true + false)[taken]
        gained = np.diff(true / true[-1], prepend=0)[taken]
        return 100 * float((gained * precision).sum())

    def merge_state(self, other: "PixelAveragePrecision") -> None:
        """Add the pixels of another one: of another rank or shard of the split.

        Raises:
            ValueError: it has other bins.
        """
        if not np.array_equal(self._edges, other._edges):
            raise ValueError("pixels counted at other thresholds do not mix")
        self._counts += other._counts


def combine_masks(masks: Sequence[Mask], ignore: Mask | None = None, side: int = 224) -> Mask:
    """One mask for `PixelAveragePrecision` from those of an image's objects, as wsolevaluation combines them.

    Each is resized to [side, side] by nearest neighbors, then: object where any mask is not 0, else ignored where
    `ignore` is not 0, else background.

    Args:
        masks: at least one, uint8 [H, W]. ignore: uint8 [H, W].

    Returns:
        uint8 [side, side] of 0, 1 and 255.
    """
    size = (side, side)
    found = np.any([cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) > 0 for mask in masks], axis=0)
    combined = np.where(found, np.uint8(OBJECT), np.uint8(BACKGROUND))
    if ignore is not None:
        combined[~found & (cv2.resize(ignore, size, interpolation=cv2.INTER_NEAREST) > 0)] = IGNORED
    return combined
