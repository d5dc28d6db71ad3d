"""Differences between the errors of two models, or of two lists of models, on the same images, with their intervals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scores import Scores

DRAWS = 50  # resamples that are counted at once; they are [DRAWS, n] numbers

OneOrMore = Scores | Sequence[Scores]


def paired_difference(
    first: OneOrMore,
    second: OneOrMore,
    metric: str,
    resamples: int = 2000,
    seed: int = 0,
    thresholds_from: tuple[Scores, Scores] | None = None,
) -> dict[str, Any]:
    """Error of `second` minus error of `first` in per cent, with its 95 % interval.

    All must have scored the same images. The interval is a percentile bootstrap over images; each resample chooses
    each side's best threshold anew, as the reported errors do. With a list of scores for each side, one for each
    training seed, errors are means over seeds, and each resample draws seeds as well as images. Such an interval is
    narrow where seeds are few: of three, one resample in nine has a single seed.

    Args:
        first, second: scores, or lists of equal length whose entries belong together.
        metric: a localization metric, ``cls_top1``, or ``max_box_acc_v2`` (its error is 100 minus that accuracy).
        thresholds_from: scores of the two on another split, whose best thresholds are taken throughout.

    Returns:
        ``difference`` and ``interval_95`` (its two ends).

    Raises:
        ValueError: numbers of images or of seeds that do not pair.
    """
    sides = [[one] if isinstance(one, Scores) else list(one) for one in (first, second)]
    choosers = [None, None] if thresholds_from is None else list(thresholds_from)
    verdicts = [
        [_verdicts(scores, metric, chooser) for scores in side] for side, chooser in zip(sides, choosers, strict=True)
    ]
    if len(sides[0]) != len(sides[1]) or not sides[0]:
        raise ValueError(f"scores of {len(sides[0])} and {len(sides[1])} seeds cannot be paired")
    counts = [len(matrices[0]) for side in verdicts for matrices in side]
    count = counts[0]
    if len(set(counts)) > 1 or not count:
        raise ValueError(f"scores of {' and '.join(map(str, counts))} images cannot be paired")
    # Of equally many images of each, the mean over seeds is that of the accuracies.
    accuracies = np.array([[_accuracies(np.ones((1, count)), one)[0] for one in side] for side in verdicts])
    rng, weights = np.random.default_rng(seed), np.full(count, 1 / count)
    resampled = np.empty((2, resamples, len(sides[0])))
    for start in range(0, resamples, DRAWS):
        draws = rng.multinomial(count, weights, size=min(DRAWS, resamples - start))
        for side, per_seed in enumerate(verdicts):
            for number, one in enumerate(per_seed):
                resampled[side, start : start + len(draws), number] = _accuracies(draws, one)
    seeds = np.random.default_rng([seed, 1]).integers(len(sides[0]), size=(resamples, len(sides[0])))
    differences = np.take_along_axis(resampled[0] - resampled[1], seeds, 1).mean(1)
    low, high = np.percentile(differences, [2.5, 97.5])
    difference = accuracies[0].mean() - accuracies[1].mean()
    return {"difference": float(difference), "interval_95": [float(low), float(high)]}


def paired_differences(
    first: Scores, second: Scores, thresholds_from: tuple[Scores, Scores] | None = None
) -> dict[str, dict[str, Any]]:
    """`paired_difference` of Top-1 classification, Top-1 and Gt-known localization, where there are ranks and boxes."""
    ranked, boxed = first.ranks is not None and second.ranks is not None, first.boxed.any()
    needs = {"cls_top1": ranked, "loc_top1": ranked and boxed, "gt_known": boxed}
    chosen = [metric for metric, given in needs.items() if given]
    return {metric: paired_difference(first, second, metric, thresholds_from=thresholds_from) for metric in chosen}


def _verdicts(scores: Scores, metric: str, chooser: Scores | None) -> list[NDArray[np.float32]]:
    """Matrices [n, T]; the metric's accuracy is the mean over them of the highest accuracy over thresholds."""
    if metric == "cls_top1":
        return [scores.recognized(1)[:, None].astype(np.float32)]
    if metric == "max_box_acc_v2":
        if scores.contour_hits is None:
            raise ValueError(f"the protocol {scores.protocol!r} has no MaxBoxAccV2")
        return list(scores.contour_hits[scores.boxed].swapaxes(0, 1).astype(np.float32))
    right = scores.right(metric).astype(np.float32)
    return [right if chooser is None else right[:, [chooser.best_index(metric)]]]


def _accuracies(draws: NDArray[np.number], verdicts: list[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Accuracy in per cent of each draw [R, n] (how often it has each image): [R]."""
    counts = draws.astype(np.float32)  # whole numbers, and so are their sums
    highest = [(counts @ matrix).max(1).astype(np.float64) for matrix in verdicts]
    return np.asarray(100 * np.mean(highest, 0) / draws.sum(1))
