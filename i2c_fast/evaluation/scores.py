"""Classification and localization errors of a split, at every threshold and at the best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .protocols import CONTOUR_IOUS

# Each localization metric, with how many of the first predictions may hold the label (0: the label is given).
LOCALIZATION_METRICS = {"gt_known": 0, "loc_top1": 1, "loc_top5": 5}


@dataclass(frozen=True)
class Scores:
    """Verdicts on each image; all errors are computed from them.

    Top-1 and Top-5 Loc ask for a right box from the map of a class that is the label and among the first predictions.
    Only the label's map can be right, so an image is right in Top-1 Loc if it is right in Gt-known and in Top-1 Cls.
    """

    protocol: str
    thresholds: NDArray[np.int64]  # [T] gray levels
    ranks: NDArray[np.int64] | None  # [n] rank of the label among the predictions, 0 = first; None: not known
    boxed: NDArray[np.bool_]  # [n] images with a ground-truth box
    hits: NDArray[np.bool_]  # [n, T] box from the label's map right; False without a ground-truth box
    contour_hits: NDArray[np.bool_] | None = None  # [n, 3, T] any contour's box right at CONTOUR_IOUS, if judged
    indices: NDArray[np.int64] | None = None  # [n] in the split, all different; None: not known
    pxap: float | None = None  # pixel average precision of the whole split in per cent, where it has masks

    @staticmethod
    def merge(shards: "Sequence[Scores]", repeats: bool = False) -> "Scores":
        """Scores of all images of several shards, as if they had been scored together.

        Images come in the order of their indices in the split, whatever the order of the shards and the images in them;
        where no shard knows the indices, shards follow each other.

        Args:
            repeats: an image may be in several shards, as samplers pad them to equal lengths; it counts once.

        Raises:
            ValueError: shards of different protocols or thresholds, some with indices or ranks and some without, or,
                without `repeats`, an image that came twice.
        """
        first = shards[0]
        for shard in shards[1:]:
            first._check_comparable(shard)
        indices = joined([one.indices for one in shards], "some shards know the indices of their images, others do not")
        ranks = joined([one.ranks for one in shards], "some shards know the ranks of their labels, others do not")
        contour_hits = joined([one.contour_hits for one in shards], "some shards judge all contours, others do not")
        order: NDArray[np.intp] | slice = slice(None)
        if indices is not None:
            order = np.argsort(indices, kind="stable")
            again = np.append(False, np.diff(indices[order]) == 0)
            if again.any() and not repeats:
                repeated = indices[order][again][0]
                raise ValueError(f"image {repeated} was scored more than once; shards must not overlap")
            order = order[~again]
            indices = indices[order]
        ranks = None if ranks is None else ranks[order]
        contour_hits = None if contour_hits is None else contour_hits[order]
        boxed = np.concatenate([shard.boxed for shard in shards])[order]
        hits = np.concatenate([shard.hits for shard in shards])[order]
        return Scores(first.protocol, first.thresholds, ranks, boxed, hits, contour_hits, indices)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The localization metrics that can be given: without ranks those that need no predictions."""
        return tuple(metric for metric, top in LOCALIZATION_METRICS.items() if top == 0 or self.ranks is not None)

    def recognized(self, top: int) -> NDArray[np.bool_]:
        """Whether each image's label is among its first `top` predictions, [n].

        Raises:
            ValueError: the ranks are not known.
        """
        if self.ranks is None:
            raise ValueError("these scores know no predictions, only boxes")
        return self.ranks < top

    def classification_error(self, top: int) -> float:
        """Percentage of images whose label is not among the first `top` predictions."""
        return 100 * float((~self.recognized(top)).mean())

    def right(self, metric: str) -> NDArray[np.bool_]:
        """Verdicts [m, T] of a localization metric on the images with a ground-truth box."""
        top = LOCALIZATION_METRICS[metric]
        hits = self.hits[self.boxed]
        return hits if top == 0 else hits & self.recognized(top)[self.boxed, None]

    def localization_errors(self, metric: str) -> NDArray[np.float64]:
        """Error in per cent at each threshold, [T]."""
        return 100 * (1 - self.right(metric).mean(0))

    def contour_accuracies(self) -> NDArray[np.float64]:
        """Accuracy in per cent of any contour's box at each of CONTOUR_IOUS and each threshold, [3, T].

        Raises:
            ValueError: the protocol does not judge them.
        """
        if self.contour_hits is None:
            raise ValueError(f"the protocol {self.protocol!r} does not judge all contours")
        judged = self.contour_hits[self.boxed]
        return 100 * judged.sum(0) / len(judged)

    def best_index(self, metric: str) -> int:
        """Index in `thresholds` of the lowest error on this split; of equal ones the middle one, the most robust."""
        return best_index(-self.localization_errors(metric))

    def best_threshold(self, metric: str) -> int:
        """The gray level at `best_index`."""
        return int(self.thresholds[self.best_index(metric)])

    def summary(self, thresholds_from: "Scores | None" = None, chosen_on: str = "another split") -> dict[str, Any]:
        """All errors in per cent, ready for JSON.

        Each localization metric is given at its own best threshold and at Gt-known's; without ranks Gt-known is the
        only one, and there are no classification errors. Masks give PxAP instead. The protocol wsolevaluation adds its
        MaxBoxAcc, and MaxBoxAccV2 with the accuracy at each IoU's own best threshold; these are accuracies.

        Args:
            thresholds_from: scores of another split, by the same protocol, whose best thresholds are taken. Without,
                thresholds are chosen on this split, as is usual in the field.
            chosen_on: name of that other split.

        Raises:
            ValueError: `thresholds_from` are of another protocol or grid, or have no boxes or ranks.
        """
        chooser = self if thresholds_from is None else thresholds_from
        self._check_comparable(chooser)
        result: dict[str, Any] = {
            "protocol": self.protocol,
            "images": len(self.boxed),
            "images_with_boxes": int(self.boxed.sum()),
        }
        if self.ranks is not None:
            result |= {f"cls_top{top}": self.classification_error(top) for top in (1, 5)}
        if self.pxap is not None:
            result["pxap"] = self.pxap
        if not self.boxed.any():
            return result
        if not chooser.boxed.any():
            raise ValueError("the split to choose thresholds on has no boxes")
        if thresholds_from is not None:
            result["thresholds_chosen_on"] = chosen_on
        common = chooser.best_index("gt_known")
        for metric in self.metrics:
            errors, own = self.localization_errors(metric), chooser.best_index(metric)
            result[metric] = {
                "error": float(errors[own]),
                "threshold": int(self.thresholds[own]),
                "error_at_gt_known_threshold": float(errors[common]),
            }
        if self.contour_hits is not None:
            result["max_box_acc"] = 100 * float(self.right("gt_known")[:, common].sum()) / int(self.boxed.sum())
            result["max_box_acc_v2"] = self._max_box_acc_v2(chooser)
        return result

    def _max_box_acc_v2(self, chooser: "Scores") -> dict[str, Any]:
        accuracies, chosen = self.contour_accuracies(), [best_index(curve) for curve in chooser.contour_accuracies()]
        at = {
            f"iou_{100 * iou:.0f}": {"accuracy": float(curve[best]), "threshold": int(self.thresholds[best])}
            for iou, curve, best in zip(CONTOUR_IOUS, accuracies, chosen, strict=True)
        }
        return {"accuracy": sum(entry["accuracy"] for entry in at.values()) / len(at), **at}

    def _check_comparable(self, other: "Scores") -> None:
        if self.protocol != other.protocol or not np.array_equal(self.thresholds, other.thresholds):
            raise ValueError(f"scores by {self.protocol!r} and {other.protocol!r}, or of other thresholds, do not mix")


def joined(parts: Sequence[NDArray[Any] | None], mixed: str) -> NDArray[Any] | None:
    """The arrays as one; None where each is None.

    Raises:
        ValueError: only some are None; `mixed` is the message.
    """
    given = [part for part in parts if part is not None]
    if len(given) not in (0, len(parts)):
        raise ValueError(mixed)
    return np.concatenate(given) if given else None


def best_index(accuracies: NDArray[np.float64]) -> int:
    """Index of the highest; of equal ones the middle one."""
    best = np.flatnonzero(accuracies == accuracies.max())
    return int(best[(len(best) - 1) // 2])


def headline(summary: dict[str, Any]) -> str:
    """The main errors of a `Scores.summary` on one line."""
    parts = []
    if "cls_top1" in summary:
        parts += [f"cls top-1 {summary['cls_top1']:.2f}", f"top-5 {summary['cls_top5']:.2f}"]
    for metric, name in (("loc_top1", "loc top-1"), ("loc_top5", "top-5"), ("gt_known", "gt-known")):
        if metric in summary:
            parts.append(f"{name} {summary[metric]['error']:.2f}")
    line = "error %: " + "  ".join(parts)
    if "max_box_acc_v2" in summary:
        line += f"  accuracy %: MaxBoxAccV2 {summary['max_box_acc_v2']['accuracy']:.2f}"
    if "pxap" in summary:
        line += f"  accuracy %: PxAP {summary['pxap']:.2f}"
    return line


def accuracies(summary: dict[str, Any]) -> str:
    """The standard evaluator's figures in a summary, and where thresholds are from, on one line that may be empty."""
    parts = []
    if "max_box_acc" in summary:
        v2 = summary["max_box_acc_v2"]
        at = ", ".join(f"{v2[f'iou_{100 * iou:.0f}']['accuracy']:.2f} at IoU {iou}" for iou in CONTOUR_IOUS)
        parts += [f"MaxBoxAcc {summary['max_box_acc']:.2f}", f"MaxBoxAccV2 {v2['accuracy']:.2f} ({at})"]
    if "pxap" in summary:
        parts.append(f"PxAP {summary['pxap']:.2f}")
    line = "accuracy %: " + "  ".join(parts) if parts else ""
    chosen = f"thresholds chosen on {summary['thresholds_chosen_on']}" if "thresholds_chosen_on" in summary else ""
    return "; ".join(part for part in (line, chosen) if part)
