"""``i2c-fast evaluate``: score a checkpoint, alone or against another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..data import Split
from ..evaluation import PaperProtocol, centered_box_error, paired_differences, require_empty
from ..training import score_checkpoint
from ..world import ALONE, World

# What --threshold-from calls the splits to choose thresholds by.
THRESHOLD_SPLITS: dict[str, Split] = {"train": "boxed_train", "val": "fullsup"}


def evaluate_checkpoint(
    checkpoint: Path,
    overrides: Sequence[str],
    console: Console,
    against: Path | None = None,
    threshold_from: str | None = None,
    maps: Path | None = None,
    world: World = ALONE,
) -> dict[str, Any]:
    """Score a checkpoint on its validation split.

    Args:
        checkpoint: a file, or a run folder, whose newest one is taken. overrides: ``key=value``.
        against: another checkpoint, to compare with image by image.
        threshold_from: a key of `THRESHOLD_SPLITS`, the split to choose thresholds on; None: the scored split.
        maps: an empty folder in which to save the checkpoint's maps.
        world: the ranks that score it together; all get the results.

    Returns:
        ``errors`` of each checkpoint by its path; where there are boxes ``centered_box_gt_known_error``, what they are
        to be read against; with `against` the paired ``differences``.

    Raises:
        UserError: a checkpoint, data set, split or folder that does not fit.
    """
    with world.together():
        if maps is not None and world.rank == 0:
            require_empty(maps, "--maps")

    def score(path: Path, split: Split) -> Any:
        return score_checkpoint(path, overrides, console, split, maps=maps if path is checkpoint else None, world=world)

    paths = [checkpoint] if against is None else [against, checkpoint]
    thresholds_from = [score(path, THRESHOLD_SPLITS[threshold_from])[0] for path in paths] if threshold_from else []
    scores, indexes = zip(*(score(path, "val") for path in paths), strict=True)
    summaries = [
        found.summary(thresholds_from[i] if thresholds_from else None, threshold_from or "")
        for i, found in enumerate(scores)
    ]
    results: dict[str, Any] = {"errors": dict(zip(map(str, paths), summaries, strict=True))}
    if scores[-1].boxed.any():
        results["centered_box_gt_known_error"] = centered_box_error(indexes[-1], PaperProtocol())
    if against is not None:
        pair = (thresholds_from[0], thresholds_from[1]) if thresholds_from else None
        results["differences"] = paired_differences(scores[0], scores[1], pair)
    return results
