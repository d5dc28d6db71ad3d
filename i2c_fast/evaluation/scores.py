"""Classification and localization errors of a split, at every threshold and at the best."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Each localization metric, with how many of the first predictions may hold the label (0: the label is given).
LOCALIZATION_METRICS = {"gt_known": 0, "loc_top1": 1, "loc_top5": 5}


@dataclass(frozen=True)
class Scores:
    """Verdicts on each image, from which all errors follow.

    Top-1 and Top-5 Loc ask for a right box from the map of a class that is the label and among the first predictions.
    As only the label can be right, its map is the only one that matters: they are Gt-known and a right class.
    """

    protocol: str
    thresholds: NDArray[np.int64]  # [T] grey levels
    ranks: NDArray[np.int64]  # [n] place of the label among the predictions, 0 = first
    boxed: NDArray[np.bool_]  # [n] images with a true box
    hits: NDArray[np.bool_]  # [n, T] box from the label's map right; False without a true box

    def classification_error(self, top: int) -> float:
        """Share of images, in per cent, whose label is not among the first `top` predictions."""
        return 100 * float((self.ranks >= top).mean())

    def right(self, metric: str) -> NDArray[np.bool_]:
        """Verdicts [m, T] of a localization metric on the images with a true box."""
        top = LOCALIZATION_METRICS[metric]
        hits = self.hits[self.boxed]
        return hits if top == 0 else hits & (self.ranks[self.boxed] < top)[:, None]

    def localization_errors(self, metric: str) -> NDArray[np.float64]:
        """Error in per cent at each threshold, [T]."""
        errors: NDArray[np.float64] = 100 * (1 - self.right(metric).mean(0))
        return errors

    def best_threshold(self, metric: str) -> int:
        """The grey level that serves this split best (of equals the middle one, which is the most robust)."""
        errors = self.localization_errors(metric)
        best = np.flatnonzero(errors == errors.min())
        return int(self.thresholds[best[(len(best) - 1) // 2]])

    def summary(self) -> dict[str, Any]:
        """All errors in per cent, ready for JSON.

        Each localization metric is given at its own best threshold and at Gt-known's. Both thresholds are chosen on
        this very split, as the field reports it.
        """
        result: dict[str, Any] = {
            "protocol": self.protocol,
            "images": len(self.ranks),
            "images_with_boxes": int(self.boxed.sum()),
            "cls_top1": self.classification_error(1),
            "cls_top5": self.classification_error(5),
        }
        if not self.boxed.any():
            return result
        common = int(np.flatnonzero(self.thresholds == self.best_threshold("gt_known"))[0])
        for metric in LOCALIZATION_METRICS:
            errors = self.localization_errors(metric)
            result[metric] = {
                "error": float(errors.min()),
                "threshold": self.best_threshold(metric),
                "error_at_gt_known_threshold": float(errors[common]),
            }
        return result


def headline(summary: dict[str, Any]) -> str:
    """The main errors of a `Scores.summary` on one line."""
    parts = [f"cls top-1 {summary['cls_top1']:.2f}", f"top-5 {summary['cls_top5']:.2f}"]
    for metric, name in (("loc_top1", "loc top-1"), ("loc_top5", "top-5"), ("gt_known", "gt-known")):
        if metric in summary:
            parts.append(f"{name} {summary[metric]['error']:.2f}")
    return "error %: " + "  ".join(parts)


def paired_difference(
    first: Scores, second: Scores, metric: str, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Error of `second` minus error of `first` in per cent, with its 95 % interval.

    Both must have scored the same images. The interval is a percentile bootstrap over images; each resample chooses
    each side's best threshold anew, as the reported errors do. ``metric`` is a localization metric or ``cls_top1``.

    Returns:
        ``difference`` and ``interval_95`` (its two ends).
    """
    if metric == "cls_top1":
        right = [(scores.ranks < 1)[:, None] for scores in (first, second)]
    else:
        right = [scores.right(metric) for scores in (first, second)]
    count = len(right[0])
    if count != len(right[1]) or not count:
        raise ValueError(f"scores of {count} and {len(right[1])} images cannot be paired")
    a, b = (verdicts.astype(np.float32) for verdicts in right)
    rng, weights = np.random.default_rng(seed), np.full(count, 1 / count)
    resampled = []
    for _ in range(resamples):
        draw = rng.multinomial(count, weights).astype(np.float32)
        resampled.append(100 * (float((draw @ a).max()) - float((draw @ b).max())) / count)
    low, high = np.percentile(resampled, [2.5, 97.5])
    difference = 100 * (right[0].mean(0).max() - right[1].mean(0).max())
    return {"difference": float(difference), "interval_95": [float(low), float(high)]}


def paired_differences(first: Scores, second: Scores) -> dict[str, dict[str, Any]]:
    """`paired_difference` of Top-1 classification and, where there are boxes, of Top-1 and Gt-known localization."""
    metrics = ("cls_top1", "loc_top1", "gt_known") if first.boxed.any() else ("cls_top1",)
    return {metric: paired_difference(first, second, metric) for metric in metrics}
