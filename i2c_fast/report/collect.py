"""Score a run again and keep what tables, charts and galleries need of each image."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from rich.console import Console
from torch import Tensor

from ..errors import UserError
from ..evaluation import Outcome, Scores, outcome
from ..evaluation.boxes import EMPTY_BOX, Gray, highest_overlaps
from ..kernels import sample_pixels
from ..training import score_checkpoint
from ..training.logs import Meter
from .runs import Run
from .training_log import TrainingLog, read_log


@dataclass(frozen=True)
class RunFacts:
    """Data of one run for the page. Arrays are in the order of its validation split, n images.

    The raw maps are the largest part: 3 KiB an image at 28 x 28, so 160 MB for 50,000 images; nothing grows with the
    number of classes or the size of the images.
    """

    run: Run
    scores: Scores
    summary: dict[str, Any]  # `Scores.summary`
    maps: list[NDArray[np.float32]]  # n raw maps [h, w] of the labels
    predicted: NDArray[np.int64]  # [n] first predicted class
    probability: NDArray[np.float64]  # [n] of that class
    label_probability: NDArray[np.float64]  # [n] of the label
    seed_pixels: NDArray[np.int64]  # [n] pixels of the map above δ (Fig. 4a)
    threshold: int | None  # gray level of all boxes: the one that serves Gt-known best; None: the data has no boxes
    boxes: NDArray[np.float64]  # [n, 4] predicted, in pixels of the stored image, inclusive; no box: x1 < x0
    iou: NDArray[np.float64]  # [n] with the nearest ground-truth box, by the protocol; NaN without a ground-truth box
    outcomes: list[Outcome | None]  # n; None without a ground-truth box
    log: TrainingLog

    @property
    def name(self) -> str:
        return self.run.name

    def heat(self, image: int, width: int, height: int) -> Gray:
        """Map of the image's label as the protocol thresholds it, laid over `width` x `height` pixels, uint8."""
        gray = self.run.protocol.gray_map(self.maps[image], width, height)
        return cv2.resize(gray, (width, height), interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)


class Collector:
    """A `BatchObserver` that keeps what `RunFacts` needs of each batch.

    Args:
        labels: of the split. threshold: δ.
        are_probabilities: scores are probabilities, as those of ten crops; else they are logits.
    """

    def __init__(self, labels: NDArray[np.int64], threshold: float, *, are_probabilities: bool) -> None:
        self.labels, self.threshold, self.are_probabilities = labels, threshold, are_probabilities
        images = len(labels)
        self.maps: list[NDArray[np.float32]] = [np.zeros((0, 0), np.float32)] * images
        self.predicted, self.seed_pixels = np.zeros(images, np.int64), np.zeros(images, np.int64)
        self.probability, self.label_probability = np.zeros(images), np.zeros(images)

    def __call__(self, indices: Tensor, maps: Tensor, scores: Tensor) -> None:
        chosen = indices.cpu().numpy()
        probabilities = scores if self.are_probabilities else scores.softmax(1)
        highest, predicted = probabilities.max(1)
        labels = torch.from_numpy(self.labels[chosen]).to(scores.device)
        # The training step counts with the same op; the pixel it draws is not used.
        seed = torch.zeros(2, dtype=torch.int64, device=maps.device)
        _, counts = sample_pixels(maps, 1, self.threshold, seed, choice="first")
        self.predicted[chosen], self.probability[chosen] = predicted.cpu(), highest.cpu()
        self.label_probability[chosen] = probabilities.gather(1, labels[:, None]).squeeze(1).cpu()
        self.seed_pixels[chosen] = counts.cpu()
        # A copy: the batch may be a view of something larger, and would keep it.
        for i, raw in zip(chosen.tolist(), maps.float().cpu().numpy().copy(), strict=True):
            self.maps[i] = raw


def collect(run: Run, console: Console, overrides: tuple[str, ...]) -> RunFacts:
    """Score a run's checkpoint on its validation split, and judge each image at the best threshold.

    Raises:
        UserError: whatever `score_checkpoint` raises.
    """
    config, index, protocol = run.config, run.index, run.protocol
    collector = Collector(index.labels, run.map_threshold, are_probabilities=config.eval.ten_crop)
    scores, _ = score_checkpoint(run.checkpoint, overrides, console, observe=collector)
    threshold = scores.best_threshold("gt_known") if scores.boxed.any() else None
    boxes = np.tile(np.array(EMPTY_BOX, np.float64), (len(index), 1))
    iou = np.full(len(index), np.nan)
    outcomes: list[Outcome | None] = [None] * len(index)
    if threshold is not None:
        best = int(np.searchsorted(scores.thresholds, threshold))
        right_class = scores.recognized(1)

        def judge(i: int) -> None:
            size = stored_size(run, i)
            box = protocol.box_at(protocol.gray_map(collector.maps[i], *size), threshold)
            boxes[i] = protocol.to_image(box, *size)
            if scores.boxed[i]:
                gt_boxes = protocol.to_map(index.boxes[i], *size)
                iou[i] = highest_overlaps(box[None], gt_boxes)[0]
                right_box = bool(scores.hits[i, best])
                outcomes[i] = outcome(box, gt_boxes, right_class=bool(right_class[i]), right_box=right_box)

        with Meter(console, "boxes", len(index)) as meter, ThreadPoolExecutor(max(1, config.data.workers)) as pool:
            for _ in pool.map(judge, range(len(index))):
                meter.advance(1, 1)
    return RunFacts(
        run,
        scores,
        scores.summary(),
        collector.maps,
        collector.predicted,
        collector.probability,
        collector.label_probability,
        collector.seed_pixels,
        threshold,
        boxes,
        iou,
        outcomes,
        read_log(run.folder / "log.jsonl"),
    )


def stored_size(run: Run, image: int) -> tuple[int, int]:
    """Width and height of a stored image, from the file's first bytes.

    Annotated sizes are not used: they may be wrong, and the protocols judge in the stored pixels.
    """
    try:
        with Pillow.open(run.index.file(image)) as opened:
            width, height = opened.size
    except (OSError, Pillow.DecompressionBombError) as error:
        raise UserError(f"validation image {run.index.file(image)} is unreadable ({error})") from None
    return width, height
