"""Score a run again and keep, of each image, the little that tables, charts and galleries need."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from rich.console import Console
from torch import Tensor

from ..errors import UserError
from ..evaluation import Outcome, PaperProtocol, Scores, find_contours, outcome
from ..evaluation.boxes import EMPTY_BOX, Gray
from ..evaluation.failures import overlaps
from ..kernels import sample_pixels
from ..training import score_checkpoint
from ..training.logs import Meter
from .runs import Protocol, Run
from .training_log import TrainingLog, read_log


@dataclass(frozen=True)
class RunFacts:
    """What the page says of a run. Arrays are in the order of its validation split, n images.

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
        gray = gray_map(self.run.protocol, self.maps[image], width, height)
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
        # The op's own count is the training step's; the pixel it draws is not looked at.
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
    config, index = run.config, run.index
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
            size, gt_boxes = stored_size(run, i), index.boxes[i]
            found = judge_image(run.protocol, collector.maps[i], *size, gt_boxes, threshold)
            boxes[i] = found.box
            if len(gt_boxes):
                iou[i] = found.iou
                outcomes[i] = outcome(
                    found.framed_box,
                    found.framed_gt_boxes,
                    right_class=bool(right_class[i]),
                    right_box=bool(scores.hits[i, best]),
                )

        with (
            Meter(console, "boxes", len(index)) as meter,
            ThreadPoolExecutor(max(1, config.data.workers)) as pool,
        ):
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


class Judged(NamedTuple):
    """A predicted box and ground-truth boxes, in the frame they were judged in and in the stored image."""

    framed_box: NDArray[np.float64]  # [4]
    framed_gt_boxes: NDArray[np.float64]  # [B, 4]
    iou: float  # the highest, in that frame; NaN without a ground-truth box
    box: NDArray[np.float64]  # [4] in pixels of the stored image, inclusive


def judge_image(
    protocol: Protocol,
    raw: NDArray[np.float32],
    width: int,
    height: int,
    gt_boxes: NDArray[np.float32],
    threshold: int,
) -> Judged:
    """Box of a raw map at one threshold of the protocol's grid, and how it lies among the ground-truth boxes.

    `PaperProtocol` judges in the stored image. `WsolEvaluationProtocol` judges in a square of 224 pixels, whatever the
    image's aspect; its box is scaled back for drawing, each inclusive bound to the far edge of what its pixel covers.
    """
    if isinstance(protocol, PaperProtocol):
        framed = protocol.box(protocol.gray(raw, width, height), threshold).astype(np.float64)
        framed_gt_boxes, box = gt_boxes.astype(np.float64), framed
    else:
        contours = find_contours(protocol.gray(raw))
        framed = protocol.boxes(contours)[np.searchsorted(protocol.thresholds, threshold)].astype(np.float64)
        framed_gt_boxes = protocol.scale_gt_boxes(gt_boxes, width, height)
        scale = np.array([width, height]) / protocol.side
        box = np.concatenate([framed[:2] * scale, (framed[2:] + 1) * scale - 1])
    iou = float(overlaps(framed, framed_gt_boxes)[0].max()) if len(gt_boxes) else float("nan")
    return Judged(framed, framed_gt_boxes, iou, box)


def gray_map(protocol: Protocol, raw: NDArray[np.float32], width: int, height: int) -> Gray:
    """The map a protocol thresholds: of the stored image's size, or 224 x 224."""
    return protocol.gray(raw, width, height) if isinstance(protocol, PaperProtocol) else protocol.gray(raw)


def stored_size(run: Run, image: int) -> tuple[int, int]:
    """Width and height of a stored image, from the file's first bytes.

    Annotated sizes are not asked: they may be wrong, and the protocols judge in the pixels there are.
    """
    try:
        with Pillow.open(run.index.file(image)) as opened:
            width, height = opened.size
    except (OSError, Pillow.DecompressionBombError) as error:
        raise UserError(f"validation image {run.index.file(image)} is unreadable ({error})") from None
    return width, height
