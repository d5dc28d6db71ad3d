"""Make the charts: accuracy over thresholds, training curves, and Fig. 4a."""

from collections.abc import Sequence

import numpy as np

from ..evaluation import CONTOUR_IOUS, LOCALIZATION_METRICS
from ..evaluation.scores import best_index
from ..methods import METHODS
from .charts import Chart, Series, histogram, line_chart
from .collect import RunFacts

METRIC_NAMES = {"gt_known": "Gt-known", "loc_top1": "Top-1 Loc", "loc_top5": "Top-5 Loc", "cls_top1": "Top-1 Cls"}
LETTERS = "ABCDEF"  # names of runs beside their lines
BINS = 40
TITLES = {  # of what every method logs
    "loss": "Loss",
    "ce": "Cross-entropy",
    "accuracy": "Training accuracy, %",
    "lr": "Learning rate of body weights",
}
PERCENT = frozenset({"accuracy"})  # fractions, drawn in per cent


def letter(position: int, facts: Sequence[RunFacts]) -> str:
    """Name of a run inside charts; empty where there is one run."""
    return f"{LETTERS[position]} " if len(facts) > 1 else ""


def threshold_charts(facts: Sequence[RunFacts], baseline: float | None) -> list[Chart]:
    """Accuracy over gray levels: the localization metrics, and where it is judged any contour's box at each IoU."""
    if facts[0].threshold is None:
        return []
    level = None if baseline is None else (100 - baseline, f"centered box {100 - baseline:.1f}")
    charts = []
    for metric in LOCALIZATION_METRICS:
        curves = [100 - run.scores.localization_errors(metric) for run in facts]
        title = f"{METRIC_NAMES[metric]} accuracy, %"
        charts.append(_accuracy_chart(facts, title, curves, level if metric == "gt_known" else None))
    if facts[0].scores.contour_hits is not None:
        accuracies = [run.scores.contour_accuracies() for run in facts]
        charts += [
            _accuracy_chart(facts, f"MaxBoxAccV2 accuracy at IoU {iou:g}, %", [found[row] for found in accuracies])
            for row, iou in enumerate(CONTOUR_IOUS)
        ]
    return charts


def _accuracy_chart(
    facts: Sequence[RunFacts],
    title: str,
    curves: Sequence[np.ndarray],
    level: tuple[float, str] | None = None,
) -> Chart:
    series, words = [], []
    for position, (run, curve) in enumerate(zip(facts, curves, strict=True)):
        best = best_index(curve)
        levels = run.scores.thresholds
        series.append(
            Series(position, levels.astype(np.float64), curve, f"{letter(position, facts)}{curve[best]:.1f}", best)
        )
        words.append(f"{run.name} is best with {curve[best]:.1f} % at gray level {levels[best]}")
    alt = f"{title.removesuffix(', %')} over thresholds: {'; '.join(words)}."
    return line_chart(title, series, "threshold, gray level", alt=alt, x_range=(0, 255), level=level)


def training_charts(facts: Sequence[RunFacts]) -> list[Chart]:
    """The course of training: every logged series that has values, and the errors of evaluations on the way."""
    starts = [run.log.stage_start for run in facts if run.log.stage_start is not None]
    titles = TITLES | {term: title for method in METHODS.values() for term, title in method.titles.items()}
    charts = []
    for name in dict.fromkeys([*titles, *(name for run in facts for name in run.log.series)]):
        title = titles.get(name, name)
        series = _curves(name, facts, 100 if name in PERCENT else 1)
        words = [f"{run.name} ends at {s.y[-1]:.3g}" for run, s in zip(facts, series, strict=True) if len(s.y)]
        if words:
            alt, top = f"{title} over steps: {'; '.join(words)}.", 100 if name in PERCENT else None
            charts.append(line_chart(title, series, "step", alt=alt, top=top, start=min(starts, default=None)))
    return charts + _evaluation_charts(facts)


def _curves(name: str, facts: Sequence[RunFacts], factor: float = 1) -> list[Series]:
    """A logged series of each run, times `factor`, with its band."""
    found = [(i, run.log.curve(name), letter(i, facts).strip()) for i, run in enumerate(facts)]
    return [Series(i, c.x, factor * c.y, label, None, factor * c.low, factor * c.high) for i, c, label in found]


def _evaluation_charts(facts: Sequence[RunFacts]) -> list[Chart]:
    charts = []
    for name in ("cls_top1", "loc_top1", "gt_known"):
        found = [run.log.evaluations[name] for run in facts]
        series = [
            Series(position, x, y, f"{letter(position, facts)}{y[-1]:.1f}" if len(y) else "", dots=True)
            for position, (x, y) in enumerate(found)
        ]
        words = [f"{run.name} ends at {y[-1]:.1f} %" for run, (_, y) in zip(facts, found, strict=True) if len(y)]
        if words:
            title = f"{METRIC_NAMES[name]} error on validation images, %"
            alt = f"{title.removesuffix(', %')} over steps: {'; '.join(words)}."
            ends = 0.0, max(float(x.max()) for x, _ in found if len(x))
            charts.append(line_chart(title, series, "step", alt=alt, x_range=ends, least_span=10))
    return charts


def pixel_charts(facts: Sequence[RunFacts]) -> list[Chart]:
    """Fig. 4a: how many pixels of an image's map lie above δ."""
    corners, stairs, width = histogram([run.seed_pixels for run in facts], BINS)
    series, words = [], []
    for position, (run, heights) in enumerate(zip(facts, stairs, strict=True)):
        low, middle, high = np.percentile(run.seed_pixels, [10, 50, 90])
        mark = int(heights.argmax())
        series.append(Series(position, corners, heights, letter(position, facts).strip(), mark))
        words.append(f"{run.name}: median {middle:.0f}, 10th to 90th percentile {low:.0f} to {high:.0f}")
    bins = "one pixel" if width == 1 else f"{width} pixels"
    alt = f"Histogram of the number of map pixels above the threshold. {'; '.join(words)}."
    note = f"Bins of {bins}. {'; '.join(words)}."
    return [line_chart("Validation images, %", series, "pixels above δ", alt=alt, note=note, filled=True)]
