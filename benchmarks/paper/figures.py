"""Pictures of the paper's Figures 3, 4 and 5, made from runs that are done."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.paper.results import DELTA, HEADINGS
from benchmarks.paper.runs import Evaluated, Maps
from i2c_fast.config import Config, build_config
from i2c_fast.data import ImageIndex, read_image
from i2c_fast.data.images import Image
from i2c_fast.evaluation import PaperProtocol, evaluate
from i2c_fast.report.overlay import contact_sheet, draw_overlay, save_picture
from i2c_fast.runtime import open_runtime
from i2c_fast.training import load_checkpoint, open_split, restore_predictor
from i2c_fast.training.loading import loading_of, settle_loader

SIDE = 150  # pixels of a picture in a sheet
OF_EACH = 4  # images that one run localizes and the other does not
TRAINING_IMAGES = 500  # at most, for Fig. 4
BINS = 32  # of the histogram
NO_PICTURE = "no picture: matplotlib is not installed (pip install matplotlib, or this clone with -e .[bench])"
MAGENTA = (255, 0, 255)
METRICS = ("cls_top1", "loc_top1", "gt_known")


def draw_fig3(path: Path, first: Evaluated, second: Evaluated, names: Sequence[str], index: ImageIndex) -> str:
    """Maps and boxes of two runs on the same images: as many that only the first localizes as only the second does.

    Returns:
        What is shown, in a line.
    """
    both = (first, second)
    best = [run.scores["paper"].best_threshold("gt_known") for run in both]
    right = [run.scores["paper"].hits[:, threshold] for run, threshold in zip(both, best, strict=True)]
    only = [np.flatnonzero(right[i] & ~right[1 - i]) for i in (0, 1)]
    chosen = np.concatenate([images[:OF_EACH] for images in only])
    if not len(chosen):
        chosen = np.arange(min(len(index), 2 * OF_EACH))
    images = [read_image(index.file(i)) for i in chosen]
    rows = []
    for run, threshold in zip(both, best, strict=True):
        pictures = []
        for i, image in zip(chosen, images, strict=True):
            gray = PaperProtocol().gray_map(run.maps[i], image.shape[1], image.shape[0])
            box = PaperProtocol().box_at(gray, threshold)
            pictures.append(_square(draw_overlay(image, gray, box.tolist(), index.boxes[i], SIDE)))
        rows.append(pictures)
    note = (
        f"{len(only[0])} of {len(index)} images are localized by {names[0]} alone, {len(only[1])} by {names[1]} alone; "
        f"the first {OF_EACH} of each. Predicted boxes green, ground truth red."
    )
    save_picture(path, contact_sheet(rows, list(names), note))
    return note


def _square(picture: Image) -> Image:
    return np.asarray(cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def training_maps(folder: Path, config: Config) -> tuple[NDArray[np.float32], ImageIndex]:
    """Raw maps of evenly spaced training images by a run's newest checkpoint, and these images."""
    state = load_checkpoint(folder)
    runtime = open_runtime(config.run.device, config.run.precision, threads=config.run.threads)
    config = settle_loader(build_config(state["config"], "the checkpoint"), runtime.device, lambda _: None)
    whole = open_split(config.data, "train")
    chosen = np.unique(np.linspace(0, len(whole) - 1, min(len(whole), TRAINING_IMAGES)).round().astype(int))
    index = replace(
        whole, paths=tuple(whole.paths[i] for i in chosen), labels=whole.labels[chosen],
        boxes=tuple(whole.boxes[i] for i in chosen), sizes=None,
    )  # fmt: skip
    seen = Maps(index)
    evaluate(
        runtime.move(restore_predictor(state)), index, runtime, PaperProtocol(255), image_size=config.data.image_size,
        batch_size=config.eval.batch, workers=config.data.workers, resize=config.data.resize,
        loading=loading_of(config.data, runtime.device), observe=seen,
    )  # fmt: skip
    return np.stack([seen.maps[i] for i in range(len(index))]), index


def above_delta(maps: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The pixels from which seeds are drawn, [n, h, w]."""
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return np.asarray(maps > low + DELTA * (high - low))


def draw_fig4(path: Path, maps: NDArray[np.float32], index: ImageIndex) -> dict[str, Any]:
    """Fig. 4a as numbers, and where matplotlib is installed as a chart; 4b as a picture of pixels above δ, in magenta.

    Returns:
        The histogram of the pixels above δ, and some percentiles.
    """
    above = above_delta(maps)
    counts = above.sum((1, 2))
    pictures = []
    for i in np.linspace(0, len(index) - 1, min(len(index), 2 * OF_EACH)).astype(int):
        image = _square(read_image(index.file(i)))
        mask = cv2.resize(above[i].astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) > 0
        image[mask] = (0.4 * image[mask] + 0.6 * np.array(MAGENTA)).astype(np.uint8)
        pictures.append(image)
    title = f"Pixels above δ = {DELTA} of the label's map, on training images"
    save_picture(path, contact_sheet([pictures], [title], ""))
    pyplot = _pyplot()
    if pyplot is not None:
        figure, axis = pyplot.subplots(figsize=(5, 3), layout="constrained")
        axis.hist(counts, bins=BINS, color="#0072b2")
        axis.set_xlabel(f"pixels above δ, of {above[0].size}")
        axis.set_ylabel("training images")
        figure.savefig(path.with_stem(f"{path.stem}a"), dpi=110)
        pyplot.close(figure)
    edges = np.arange(0, above[0].size + 1, -(-above[0].size // BINS))
    edges = np.append(edges[edges < above[0].size], above[0].size + 1)
    return {
        "images": len(index), "map_pixels": int(above[0].size), "edges": edges.tolist(),
        "images_in_bin": np.histogram(counts, edges)[0].tolist(),
        "percentiles_10_50_90": np.percentile(counts, [10, 50, 90]).tolist(),
    }  # fmt: skip


def draw_differences(path: Path, results: dict[str, Any]) -> str:
    """Each row's difference from the baseline with its interval, gray where that includes 0; returns what was done."""
    pyplot = _pyplot()
    rows = [row for row in results["rows"] if row["minus_baseline"]]
    if pyplot is None or not rows:
        return NO_PICTURE if pyplot is None else "no picture: no row has a baseline"
    figure, axes = pyplot.subplots(
        1, 3, figsize=(9, 0.45 * len(rows) + 1.5), sharey=True, sharex=True, layout="constrained"
    )
    for axis, metric in zip(axes, METRICS, strict=True):
        for position, row in enumerate(rows):
            found = row["minus_baseline"][metric]
            low, high = found["interval_95"]
            color = "#d55e00" if low > 0 else "#0072b2" if high < 0 else "0.55"
            axis.plot([low, high], [position] * 2, color=color, linewidth=2)
            axis.plot(found["difference"], position, "o", color=color)
        axis.axvline(0, color="0.2", linewidth=0.8)
        axis.set_title(HEADINGS[metric], fontsize=10)
        axis.grid(axis="x", color="0.92")
    several = len({(row["recipe"], row["image_size"]) for row in rows}) > 1
    titles = [f"{row['title']}, {row['recipe']}" if several else row["title"] for row in rows]
    axes[0].set_yticks(range(len(rows)), titles)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    axes[1].set_xlabel("error minus plain’s, points of per cent, 95 % interval (left is better; gray includes 0)")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return f"drawn to {path}"


def _pyplot() -> Any:
    """matplotlib's, which draws to files; None where it is not installed."""
    try:
        import matplotlib  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot  # type: ignore[import-not-found,unused-ignore]

    return pyplot


def draw_fig5(path: Path, results: dict[str, Any]) -> str:
    """Errors over λ1 by each distance, λ2 and K, where matplotlib is installed; returns what was done."""
    pyplot = _pyplot()
    if pyplot is None:
        return NO_PICTURE
    panels = {"sc-l2-": "λ1, distance l2", "sc-squared_l2-": "λ1, distance squared_l2", "gc-": "λ2", "k-": "K"}
    rows = {row["name"]: row for row in results["rows"]}
    shown = {prefix: title for prefix, title in panels.items() if any(name.startswith(prefix) for name in rows)}
    if not shown:
        return "no picture: no run of a sweep is there"
    figure, axes = pyplot.subplots(1, len(shown), figsize=(3.4 * len(shown), 3.4), sharey=True, squeeze=False)
    for axis, (prefix, title) in zip(axes[0], shown.items(), strict=True):
        found = sorted((float(name.removeprefix(prefix)), row) for name, row in rows.items() if name.startswith(prefix))
        for metric, color in zip(METRICS, ("0.5", "#0072b2", "#d55e00"), strict=True):
            axis.plot(
                [x for x, _ in found], [row["errors"][metric]["mean"] for _, row in found], "o-", color=color,
                label=HEADINGS[metric],
            )  # fmt: skip
            if "cam" in rows:
                axis.axhline(rows["cam"]["errors"][metric]["mean"], color=color, linestyle=":")
        axis.set_xscale("log")
        axis.set_xlabel(title)
    axes[0, 0].set_ylabel("error, % (dotted: plain)")
    axes[0, -1].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return f"drawn to {path}"
