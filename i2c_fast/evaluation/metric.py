"""Compute localization scores in any evaluation loop; methods are named as in torchmetrics."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Semaphore
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from ..data.index import inside
from .protocols import PaperProtocol, ScoringProtocol, Verdict
from .scores import Scores, joined

# Maps that may be queued for each thread.
WAITING = 64

Array = Tensor | NDArray[Any] | Sequence[Any]


class LocalizationMetric:
    """All localization and classification errors of a split, from class maps batch by batch.

    Threads judge the maps while the next batch is computed; `compute` waits for them. No map is kept once it is judged,
    and `update` waits while too many maps are queued.

    ::

        metric = LocalizationMetric(WsolEvaluationProtocol())
        for images, labels, gt_boxes, sizes in loader:
            metric.update(maps_of(images, labels), model(images), labels, gt_boxes, sizes)
        print(metric.compute()["loc_top1"])

    Args:
        protocol: how maps become verdicts; default `PaperProtocol`.
        threads: how many judge maps; default one for each processor.
        check: whether `update` raises for boxes outside their images and maps with NaN or infinity; else such boxes
            are scored as they are, and such maps as zeros.
    """

    def __init__(self, protocol: ScoringProtocol | None = None, threads: int | None = None, check: bool = True) -> None:
        self.protocol: ScoringProtocol = PaperProtocol() if protocol is None else protocol
        self.check = check
        count = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(count)
        # Bounds the memory of the queue: updates that come faster than verdicts wait.
        self._room = Semaphore(WAITING * count)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._merged: list[Scores] = []
        self._ranks: list[NDArray[np.int64] | None] = []
        self._indices: list[NDArray[np.int64] | None] = []
        self._boxed: list[bool] = []
        self._verdicts: list[Future[Verdict]] = []

    def update(
        self,
        maps: Array,
        logits: Array | None,
        labels: Array | None,
        gt_boxes: Sequence[Array],
        sizes: Array,
        indices: Array | None = None,
        *,
        ranks: Array | None = None,
    ) -> None:
        """Take in a batch; tensors on any device, NumPy arrays and lists will do.

        Args:
            maps: [N, h, w], the raw maps of the labels' classes, not normalized, of any size.
            logits: float [N, Y], or probabilities: only their order counts. labels: integer [N]. None for both, in
                every update, leaves errors that need predictions out.
            gt_boxes: ground-truth boxes [B, 4] of each image as x0, y0, x1, y1 in its pixels, inclusive; B may be 0.
            sizes: [N, 2] width and height of each image, in the pixels that the boxes are in.
            indices: [N] of the images in the split: shards then merge in its order. In every update, or in none.
            ranks: [N] rank of the label among the predictions, 0 = first, where there are no logits to rank it in.

        Raises:
            ValueError: shapes that do not fit together, a size of no pixels, and, unless `check` is off, a box that is
                not inside its image or a map with a NaN or infinity.
        """
        # Copies: threads read them while the caller may already be filling its buffers with the next batch.
        raws, pixels = _copied(maps), _copied(sizes)
        raws = raws if raws.dtype == np.float64 else raws.astype(np.float32, copy=False)
        if raws.ndim != 3 or not raws.size:
            raise ValueError(f"expected maps [N, h, w], got {[*raws.shape]}")
        count = len(raws)
        if logits is not None and labels is not None and ranks is None:
            scores = torch.as_tensor(logits)
            if scores.ndim != 2:
                raise ValueError(f"expected logits [N, Y], got {[*scores.shape]}")
        elif logits is not None or labels is not None:
            raise ValueError("expected logits and labels, or ranks, or none of them")
        given = (logits, labels, gt_boxes, sizes, indices, ranks)
        lengths = [count if part is None else len(part) for part in given]
        if set(lengths) != {count}:
            raise ValueError(f"{count} maps, but logits, labels, gt_boxes, sizes, indices and ranks are {lengths}")
        if pixels.shape != (count, 2) or pixels.min() < 1:
            raise ValueError("expected sizes [N, 2] of at least a pixel")
        boxes_of = [_copied(boxes).astype(np.float32, copy=False).reshape(-1, 4) for boxes in gt_boxes]
        if self.check:
            names = range(count) if indices is None else _copied(indices).tolist()
            for name, raw, boxes, size in zip(names, raws, boxes_of, pixels.tolist(), strict=True):
                _check_image(name, raw, boxes, size)
        if logits is not None and labels is not None:
            ranks = label_ranks(scores, torch.as_tensor(labels))
        self._ranks.append(None if ranks is None else _copied(ranks).astype(np.int64))
        self._indices.append(None if indices is None else _copied(indices).astype(np.int64))
        self._boxed += [len(boxes) > 0 for boxes in boxes_of]
        for raw, boxes, (width, height) in zip(raws, boxes_of, pixels.tolist(), strict=True):
            self._room.acquire()
            verdict = self._pool.submit(self.protocol.verdict, raw, width, height, boxes)
            verdict.add_done_callback(lambda _: self._room.release())
            self._verdicts.append(verdict)

    def scores(self) -> Scores:
        """Verdicts on all images so far, merged ones included.

        Raises:
            ValueError: there are no images, or an image came twice.
        """
        own = [self._own()] if self._verdicts else []
        if not own and not self._merged:
            raise ValueError("no images yet; call update() first")
        return Scores.merge([*own, *self._merged])

    def compute(self) -> dict[str, Any]:
        """All errors in per cent, as `Scores.summary` gives them."""
        return self.scores().summary()

    def merge_state(self, other: "LocalizationMetric") -> None:
        """Add the images of another metric: of another rank or shard of the split."""
        self._merged.append(other.scores())

    def gather(self, group: distributed.ProcessGroup | None = None) -> Scores:
        """Scores of the images of all ranks of a process group, the same on each; every rank has to call it.

        Where `update` is given `indices`, the result does not depend on how images are split over ranks, and an image
        that a sampler gave to two ranks counts once.

        Raises:
            ValueError: no rank has images, or some ranks gave `indices` or `logits` and others did not.
        """
        mine = self.scores() if self._verdicts or self._merged else None
        shards: list[Scores | None] = [None] * distributed.get_world_size(group)
        distributed.all_gather_object(shards, mine, group)
        scored = [shard for shard in shards if shard is not None]
        if not scored:
            raise ValueError("no images yet on any rank; call update() first")
        return Scores.merge(scored, repeats=True)

    def _own(self) -> Scores:
        verdicts = [verdict.result() for verdict in self._verdicts]
        contours = [verdict.contours for verdict in verdicts if verdict.contours is not None]
        hits, contour_hits = np.stack([verdict.box for verdict in verdicts]), np.stack(contours) if contours else None
        ranks = joined(self._ranks, "give `logits` in every update, or in none")
        indices = joined(self._indices, "give `indices` in every update, or in none")
        protocol, boxed = self.protocol, np.array(self._boxed)
        return Scores(protocol.name, protocol.thresholds, ranks, boxed, hits, contour_hits, indices)


def label_ranks(logits: Tensor, labels: Tensor) -> NDArray[np.int64]:
    """Rank of each label among its image's predictions, 0 = first, int64 [N].

    Ties and NaN count against the label: a model that gives every class one score recognizes nothing.

    Args:
        logits: [N, Y]. labels: [N], on any device.
    """
    own = logits.gather(1, labels.to(logits.device)[:, None])
    return (torch.sum(~(logits < own), 1) - 1).cpu().numpy()


def _copied(values: Array) -> NDArray[Any]:
    """A copy as a NumPy array; bfloat16, which NumPy lacks, becomes float32."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.array(values)


def _check_image(name: int, raw: NDArray[np.floating], boxes: NDArray[np.float32], size: Sequence[int]) -> None:
    """Raise ValueError for a map or box of an image that cannot be meant."""
    if not np.isfinite(raw).all():
        raise ValueError(f"the map of image {name} holds NaN or infinity; give finite maps")
    for i, box in enumerate(boxes.tolist()):
        if not inside(box, size):
            raise ValueError(
                f"box {i} of image {name} is {box}; expected x0 ≤ x1, y0 ≤ y1 inside its {size[0]} × {size[1]} pixels"
            )
