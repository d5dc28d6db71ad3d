"""Choose the images to show, by fixed rules and a fixed seed."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from ..data import UnreadableImageError, read_image
from ..data.images import Image
from ..evaluation import FAILURES, Outcome
from ..evaluation.boxes import Gray
from .collect import RunFacts
from .overlay import draw_overlay

SEED = 0
SIDE = 440  # longer side of a picture in the page, pixels
QUALITY = 75  # of WebP; with SIDE some 15 KB a picture
RANDOM, DIFFERENT, OF_A_RUN = 12, 9, 6  # images of a gallery; these numbers fill rows


@dataclass(frozen=True)
class View:
    """One run's map and box over an image."""

    key: str  # unique in the page
    run: int
    data: str  # the picture as a data URI
    width: int  # of the stored image, in whose pixels the boxes are
    height: int
    box: list[float]  # x0, y0, x1, y1, inclusive; no box: x1 < x0
    gt_boxes: list[list[float]]
    name: str
    path: str
    label: str  # its class
    predicted: str
    probability: float
    right_class: bool
    iou: float | None  # None without a ground-truth box
    outcome: str | None


@dataclass(frozen=True)
class Gallery:
    """Images shown for one reason; each as one view, or as one for each run side by side."""

    key: str
    title: str
    note: str
    images: list[list[View]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # why an image could not be shown


def common_galleries(facts: Sequence[RunFacts]) -> list[Gallery]:
    """Galleries of the same images by every run: some drawn at random, and those where several runs differ most."""
    first = facts[0]
    count = len(first.maps)
    drawn = np.sort(np.random.default_rng(SEED).choice(count, min(RANDOM, count), replace=False))
    note = f"{len(drawn)} of all {count:,} images, drawn with seed {SEED}."
    galleries = [_gallery(facts, "random", "Random", note, drawn)]
    if len(facts) > 1:
        boxed = first.threshold is not None
        values = np.array([run.iou if boxed else run.label_probability for run in facts])
        spread = np.nan_to_num(values.max(0) - values.min(0), nan=0.0)
        order = np.argsort(-spread, kind="stable")[:DIFFERENT]
        chosen = order[spread[order] > 0]
        what = "IoU" if boxed else "probability of the label"
        note = f"The images with the largest difference of {what} between the runs."
        note = note if len(chosen) else f"The runs have the same {what} on every image."
        galleries.append(_gallery(facts, "different", "Where the runs differ most", note, chosen))
    return galleries


def run_galleries(facts: RunFacts, position: int) -> list[Gallery]:
    """Galleries of one run, the `position`-th of the page: best, worst, and each kind of failure.

    Without ground-truth boxes, only images of wrong class can be told from others.
    """
    if facts.threshold is None:
        wrong = np.flatnonzero(~facts.scores.recognized(1))
        return [_sampled(facts, f"wrong-class-{position}", "Wrong class", wrong, position)]
    known = np.flatnonzero(np.isfinite(facts.iou))
    surest = -np.nan_to_num(facts.label_probability)
    right = known[facts.scores.recognized(1)[known]]
    best = right[np.lexsort((surest[right], -facts.iou[right]))][:OF_A_RUN]
    worst = known[np.lexsort((surest[known], facts.iou[known]))][:OF_A_RUN]
    best_note = "Highest IoU where the class is right." if len(best) else "No class is right."
    worst_note = "Lowest IoU; of equal ones those with the highest probability of the label."
    galleries = [
        _gallery((facts,), f"best-{position}", "Best", best_note, best, position),
        _gallery((facts,), f"worst-{position}", "Worst", worst_note, worst, position),
    ]
    for kind in FAILURES:
        members = np.array([i for i, found in enumerate(facts.outcomes) if found is kind], np.int64)
        key = f"{kind.value.replace(' ', '-')}-{position}"
        galleries.append(_sampled(facts, key, kind.value.capitalize(), members, position))
    return galleries


def _sampled(facts: RunFacts, key: str, title: str, members: NDArray[np.int64], position: int) -> Gallery:
    drawn = np.sort(np.random.default_rng(SEED).choice(members, min(OF_A_RUN, len(members)), replace=False))
    note = f"{len(drawn)} of {len(members):,}, drawn with seed {SEED}." if len(members) else "None."
    return _gallery((facts,), key, title, note, drawn, position)


def _gallery(
    facts: Sequence[RunFacts], key: str, title: str, note: str, chosen: NDArray[np.int64], position: int = 0
) -> Gallery:
    gallery = Gallery(key, title, note)
    for i in chosen.tolist():
        file = facts[0].run.index.file(i)
        try:
            image = read_image(file)
        except UnreadableImageError as error:
            gallery.left_out.append(f"{facts[0].run.index.paths[i]} {error.reason}")
            continue
        gallery.images.append([_view(run, position + n, i, image, key) for n, run in enumerate(facts)])
    return gallery


def _view(facts: RunFacts, run: int, i: int, image: Image, key: str) -> View:
    index = facts.run.index
    height, width = image.shape[:2]
    outcome = facts.outcomes[i]
    return View(
        f"{key}-{run}-{i}",
        run,
        _data_uri(image, facts.heat(i, width, height)),
        width,
        height,
        facts.boxes[i].tolist(),
        index.boxes[i].tolist(),
        PurePosixPath(index.paths[i]).name,
        index.paths[i],
        index.classes[index.labels[i]],
        index.classes[facts.predicted[i]],
        float(facts.probability[i]),
        bool(facts.scores.recognized(1)[i]),
        float(facts.iou[i]) if len(index.boxes[i]) else None,
        None if outcome is None or outcome is Outcome.RIGHT else outcome.value,
    )


def _data_uri(image: Image, heat: Gray) -> str:
    """The image under its heat map, no larger than `SIDE`, as a WebP data URI. The boxes are drawn by the page: they
    stay sharp at any size, and one of them is dashed."""
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    gray = cv2.resize(heat, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    picture = cv2.cvtColor(draw_overlay(small, gray), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
    return f"data:image/webp;base64,{base64.b64encode(data.tobytes()).decode()}"
