"""Localization scores inside anybody's own evaluation loop, with the methods that metrics have in torchmetrics."""

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Semaphore
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from .protocols import PaperProtocol, ScoringProtocol, Verdict
from .scores import Scores

# Maps for each thread that may wait to be judged.
WAITING = 64


class LocalizationMetric:
    """All localization and classification errors of a split, from class maps batch by batch.

    Threads judge the maps while the next batch is computed; `compute` waits for them. A judged map is forgotten, and
    `update` waits while too many are not judged.

    ::

        metric = LocalizationMetric(WsolEvaluationProtocol())
        for images, labels, boxes, sizes in loader:
            metric.update(maps_of(images, labels), model(images), labels, boxes, sizes)
        print(metric.compute()["loc_top1"])

    Args:
        protocol: how maps become verdicts; default `PaperProtocol`.
        threads: how many judge maps; default one for each processor.
    """

    def __init__(self, protocol: ScoringProtocol | None = None, threads: int | None = None) -> None:
        self.protocol: ScoringProtocol = PaperProtocol() if protocol is None else protocol
        count = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(count)
        # Of 50,000 maps only a few may wait at a time: updates that come faster than verdicts wait instead.
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
        maps: Tensor,
        logits: Tensor | None,
        labels: Tensor | None,
        boxes: Sequence[NDArray[np.float32] | Tensor],
        sizes: Sequence[Sequence[int]] | Tensor,
        indices: Sequence[int] | Tensor | None = None,
    ) -> None:
        """Take in a batch.

        Args:
            maps: floating [N, h, w], the raw maps of the labels' classes, not normalized, of any size and device.
            logits: float [N, Y], or probabilities: only their order counts. labels: integer [N]. None for both, in
                every update, leaves errors that need predictions out.
            boxes: ground-truth boxes [B, 4] of each image as x0, y0, x1, y1 in its pixels, inclusive; B may be 0.
            sizes: [N, 2] width and height of each image, in the pixels that the boxes are in.
            indices: [N] of the images in the split: shards then merge in its order. In every update, or in none.

        Raises:
            ValueError: shapes that do not fit together, or a size of no pixels.
        """
        count = len(maps)
        if maps.ndim != 3 or not maps.numel():
            raise ValueError(f"expected maps [N, h, w], got {[*maps.shape]}")
        if (logits is None) != (labels is None) or (logits is not None and logits.ndim != 2):
            raise ValueError("expected logits [N, Y] with the labels of the maps, or neither")
        lengths = [count if part is None else len(part) for part in (logits, labels, boxes, sizes, indices)]
        if set(lengths) != {count}:
            raise ValueError(f"{count} maps, but logits, labels, boxes, sizes and indices are {lengths}")
        pixels = np.asarray(sizes)
        if pixels.shape != (count, 2) or pixels.min() < 1:
            raise ValueError("expected sizes [N, 2] of at least a pixel")
        # Copies: threads read them while the caller may already be filling its buffers with the next batch.
        gt_boxes_of = [np.array(gt_boxes, np.float32).reshape(-1, 4) for gt_boxes in boxes]
        exact = maps.dtype if maps.dtype == torch.float64 else torch.float32
        raws = maps.detach().to("cpu", exact, copy=True).numpy()
        self._ranks.append(None if logits is None or labels is None else label_ranks(logits, labels))
        self._indices.append(None if indices is None else np.asarray(indices, np.int64))
        self._boxed += [len(gt_boxes) > 0 for gt_boxes in gt_boxes_of]
        for raw, (width, height), gt_boxes in zip(raws, pixels.tolist(), gt_boxes_of, strict=True):
            self._room.acquire()
            verdict = self._pool.submit(self.protocol.verdict, raw, width, height, gt_boxes)
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

        Where `update` is given `indices`, the result does not depend on how they were shared out, and an image that a
        sampler gave to two ranks counts once.

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
        indices = [index for index in self._indices if index is not None]
        ranks = [rank for rank in self._ranks if rank is not None]
        for name, given in (("indices", indices), ("logits", ranks)):
            if len(given) not in (0, len(self._indices)):
                raise ValueError(f"give `{name}` in every update, or in none")
        return Scores(
            self.protocol.name,
            self.protocol.thresholds,
            np.concatenate(ranks) if ranks else None,
            np.array(self._boxed),
            np.stack([verdict.box for verdict in verdicts]),
            np.stack(contours) if contours else None,
            np.concatenate(indices) if indices else None,
        )


def label_ranks(logits: Tensor, labels: Tensor) -> NDArray[np.int64]:
    """Rank of each label among its image's predictions, 0 = first, int64 [N].

    Ties and NaN count against the label: a model that gives every class one score recognizes nothing.

    Args:
        logits: [N, Y]. labels: [N], on any device.
    """
    own = logits.gather(1, labels.to(logits.device)[:, None])
    ranks: NDArray[np.int64] = (torch.sum(~(logits < own), 1) - 1).cpu().numpy()
    return ranks
