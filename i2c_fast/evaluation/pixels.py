"""PxAP: how well maps separate the pixels of objects from the others, for sets with masks (OpenImages)."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, distributed

from ..data import MaskPaths, read_gray
from ..errors import UserError
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
        self._ignored = 0

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
            self._ignored += int((mask == IGNORED).sum())

    def compute(self) -> float:
        """PxAP in per cent.

        Raises:
            ValueError: no pixel of an object was seen, as where masks mean an object by 255.
        """
        false, true = self._counts[:, ::-1].cumsum(axis=1)
        if not true[-1]:
            hint = f", {self._ignored} of 255 (ignored); make masks of 0 and 255 by combine_masks([mask])"
            raise ValueError(f"no mask has a pixel of an object (1){hint if self._ignored else ''}")
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
        self._ignored += other._ignored

    def gather(self, group: distributed.ProcessGroup | None = None) -> "PixelAveragePrecision":
        """The pixels of all ranks of a process group, the same on each; every rank has to call it.

        An image that a sampler gave to two ranks counts twice.

        Raises:
            ValueError: ranks have other bins.
        """
        shards: list[PixelAveragePrecision] = [self] * distributed.get_world_size(group)
        distributed.all_gather_object(shards, self, group)
        total = PixelAveragePrecision(self.protocol)
        for shard in shards:
            total.merge_state(shard)
        return total


def read_mask(root: Path, paths: MaskPaths) -> Mask:
    """One image's mask for `PixelAveragePrecision` from its files under `root`, decoded to gray.

    Raises:
        UserError: a file that is not under `root` or does not decode.
    """

    def read(path: str) -> Mask:
        if not (root / path).resolve().is_relative_to(root.resolve()):
            raise UserError(f"{root / path} leads out of {root}; copy the mask into the folder")
        return read_gray(root / path)

    return combine_masks([read(path) for path in paths.objects], None if paths.ignore is None else read(paths.ignore))


def combine_masks(masks: Sequence[Mask], ignore: Mask | None = None, side: int = 224) -> Mask:
    """One mask for `PixelAveragePrecision` from those of an image's objects, as wsolevaluation combines them.

    Each is resized to [side, side] by nearest neighbors, then: object where any mask is not 0, else ignored where
    `ignore` is not 0, else background.

    Args:
        masks: at least one, uint8 [H, W]. ignore: uint8 [H, W].

    Returns:
        uint8 [side, side] of 0, 1 and 255.

    Raises:
        ValueError: no mask, or one that is not [H, W].
    """
    if not masks:
        raise ValueError("expected at least one mask; where an image has no object, give one of zeros")
    for mask in masks if ignore is None else [*masks, ignore]:
        if mask.ndim != 2:
            raise ValueError(f"expected masks [H, W], got {[*mask.shape]}")
    size = (side, side)
    found = np.any([cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) > 0 for mask in masks], axis=0)
    combined = np.where(found, np.uint8(OBJECT), np.uint8(BACKGROUND))
    if ignore is not None:
        combined[~found & (cv2.resize(ignore, size, interpolation=cv2.INTER_NEAREST) > 0)] = IGNORED
    return combined
