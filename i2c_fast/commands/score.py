"""``i2c-fast score``: saved maps of any method, scored and shown."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from ..data.layouts.wsolevaluation_lists import read_ids
from ..errors import UserError, printable
from ..evaluation import PaperProtocol, WsolEvaluationProtocol, score_maps, score_masks
from ..evaluation.saved_maps import open_maps
from ..evaluation.score_maps import split_folder
from ..training.logs import Meter

Result = TypeVar("Result")


def score_saved_maps(
    maps: Path,
    metadata: Path,
    console: Console,
    *,
    split: str | None,
    protocol: str,
    interval: float | None,
    resize: bool,
    threshold_from: str | None,
    predictions: Path | None,
    masks: Path | None,
    threads: int | None,
) -> dict[str, Any]:
    """Score maps by boxes or, with `masks`, by masks, and say how many maps were not asked for.

    Args:
        threshold_from: another split, on which the best thresholds are chosen; `maps` holds its maps too.
        protocol: its name. interval: between the thresholds of wsolevaluation; None: .001. Other arguments as
            `score_maps` and `score_masks`.

    Returns:
        ``Scores.summary`` or what `score_masks` returns, with the split and the interval between thresholds.

    Raises:
        UserError: options that do not fit together, and all that scoring raises.
    """
    scored = split_folder(metadata, split).name
    if threshold_from == scored:
        raise UserError(f"--threshold-from {scored} is the split that is scored; give another, or leave it out")
    standard = protocol == "wsolevaluation"
    if interval is not None and not standard:
        raise UserError("--interval is for --protocol wsolevaluation; leave one of them out")
    try:
        evaluator = WsolEvaluationProtocol() if interval is None else WsolEvaluationProtocol(interval)
    except ValueError as error:
        raise UserError(f"--interval: {error}") from None
    facts = {"split": scored, "interval": evaluator.interval} if standard else {"split": scored}
    if masks is not None and (threshold_from or predictions or not standard):
        raise UserError("--masks gives PxAP alone; leave --threshold-from, --predictions and --protocol out")
    listed = {image for name in {scored, threshold_from or scored} for image in read_ids(split_folder(metadata, name))}
    others = [image for image in open_maps(maps).images() if image not in listed]
    if others:
        first = printable(min(others))
        console.print(f"{len(others)} maps are of other images and not scored (one is {first})", highlight=False)

    def metered(name: str, score: Callable[..., Result]) -> Result:
        with Meter(console, f"scoring {name}", len(read_ids(split_folder(metadata, name)))) as meter:
            return score(
                split=name,
                resize=resize,
                threads=threads,
                progress=lambda images: meter.advance(images, images),
                warn=lambda text: console.print(f"{name}: {text}", highlight=False) if standard else None,
            )

    if masks is not None:
        return {**facts, **metered(scored, partial(score_masks, maps, metadata, masks, protocol=evaluator))}
    judge_by = evaluator if standard else PaperProtocol()
    judge = partial(score_maps, maps, metadata, protocol=judge_by, predictions=predictions)
    if threshold_from is None:
        return {**facts, **metered(scored, judge).summary()}
    chooser = metered(threshold_from, judge)
    return {**facts, **metered(scored, judge).summary(chooser, threshold_from)}
