"""Make the rows of the tables: errors, differences, failures, and facts about the runs."""

import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

from ..config import Config, as_dict
from ..evaluation import CONTOUR_IOUS, FAILURES, paired_differences
from .collect import RunFacts
from .figures import METRIC_NAMES

UNKNOWN = "not known"


class Cell(NamedTuple):
    """A figure of one run."""

    text: str
    note: str = ""  # in smaller letters beside it
    best: bool = False  # of several runs
    fraction: float = 0.0  # length of its bar, 0…1


class Row(NamedTuple):
    """A line of a table, a cell for each run."""

    name: str
    cells: list[Cell]
    term: str = ""  # what the literature calls it


def error_groups(facts: Sequence[RunFacts]) -> dict[str, list[Row]]:
    """All errors of all runs, best ones marked, under the heading of each group."""
    found = [run.summary for run in facts]
    lower = "error %, lower is better"
    classification = [_row("Top-1", found, "cls_top1"), _row("Top-5", found, "cls_top5")]
    groups = {f"Classification: {lower}": classification}
    if "pxap" in found[0]:
        row = _row("PxAP", found, "pxap", higher_is_better=True)
        groups["Pixels of the objects’ masks: accuracy %, higher is better"] = [row]
    if facts[0].threshold is None:
        return groups
    names = {"loc_top1": "Top-1 Loc", "loc_top5": "Top-5 Loc", "gt_known": "Gt-known"}
    own = [_row(name, found, f"{metric}.error", f"{metric}.threshold") for metric, name in names.items()]
    error = "error_at_gt_known_threshold"
    common = [_row(name, found, f"{metric}.{error}", "gt_known.threshold") for metric, name in names.items()]
    groups[f"Localization, each metric at its own best threshold: {lower}"] = own
    groups[f"Localization, all at Gt-known’s best threshold: {lower}"] = common
    if "max_box_acc_v2" in found[0]:
        rows = [
            _row("MaxBoxAcc", found, "max_box_acc", "gt_known.threshold", higher_is_better=True),
            _row("MaxBoxAccV2, mean of the three below", found, "max_box_acc_v2.accuracy", higher_is_better=True),
        ]
        for iou in CONTOUR_IOUS:
            name, at = f"any contour, IoU ≥ {iou:g}", f"max_box_acc_v2.iou_{100 * iou:.0f}"
            rows.append(_row(name, found, f"{at}.accuracy", f"{at}.threshold", higher_is_better=True))
        groups["Standard evaluator: accuracy %, higher is better"] = rows
    return groups


def _row(
    name: str, found: Sequence[dict[str, Any]], figure: str, threshold: str = "", *, higher_is_better: bool = False
) -> Row:
    """A row of summaries' figures, given as the path of keys to it, with the threshold each is taken at."""

    def look_up(summary: dict[str, Any], path: str) -> Any:
        return reduce(lambda entry, key: entry[key], path.split("."), summary)

    # Figures that print alike count as equal.
    texts = [f"{look_up(summary, figure):.2f}" for summary in found]
    best = (max if higher_is_better else min)(texts, key=float)
    marked = [len(set(texts)) > 1 and text == best for text in texts]
    notes = [f"at {look_up(summary, threshold)}" if threshold else "" for summary in found]
    return Row(name, [Cell(*entry) for entry in zip(texts, notes, marked, strict=True)])


def best_runs(facts: Sequence[RunFacts]) -> list[Row]:
    """The three main errors, or that of classification and PxAP."""
    rows = {row.name: row for group in list(error_groups(facts).values())[:2] for row in group}
    names = {"Gt-known": "Gt-known error", "Top-1 Loc": "Top-1 Loc error", "PxAP": "PxAP", "Top-1": "Top-1 Cls error"}
    return [rows[name]._replace(name=title) for name, title in names.items() if name in rows]


class Difference(NamedTuple):
    """An error minus that of the first run, with the ends of its interval; all in points of per cent."""

    name: str
    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


class Comparison(NamedTuple):
    """A run against the first one."""

    run: int
    rows: list[Difference]
    reach: float  # the largest distance from 0 of any end, for drawing


def difference_tables(facts: Sequence[RunFacts]) -> list[Comparison]:
    """Each further run against the first, image by image."""
    comparisons = []
    for position, run in enumerate(facts[1:], 1):
        found = paired_differences(facts[0].scores, run.scores)
        rows = [Difference(METRIC_NAMES[key], row["difference"], *row["interval_95"]) for key, row in found.items()]
        reach = max([0.5, *(max(-row.low, row.high) for row in rows)])
        comparisons.append(Comparison(position, rows, reach))
    return comparisons


def failure_rows(facts: Sequence[RunFacts]) -> list[Row]:
    """Number of images of each kind of failure, and its fraction of all failures of the run."""
    counts = [Counter(run.outcomes) for run in facts]
    totals = [sum(count[kind] for kind in FAILURES) for count in counts]
    rows = []
    for kind, (term, _) in FAILURES.items():
        parts = [(count[kind], count[kind] / max(1, total)) for count, total in zip(counts, totals, strict=True)]
        cells = [Cell(f"{images:,}", f"{100 * part:.1f} %", fraction=part) for images, part in parts]
        rows.append(Row(kind.value, cells, term))
    boxed = int(facts[0].scores.boxed.sum())
    cells = [Cell(f"{total:,}", f"{100 * total / boxed:.1f} % of images") for total in totals] if boxed else []
    return [*rows, Row("all failures", cells)]


def about_rows(facts: Sequence[RunFacts]) -> list[Row]:
    """What was trained, where and by what."""

    def known(name: str) -> list[Cell]:
        return [Cell(run.run.environment.get(name, UNKNOWN)) for run in facts]

    configs = [run.run.config for run in facts]
    machines = [Cell(_machine(run.run.environment)) for run in facts]
    return [
        Row("Checkpoint", [Cell(str(run.run.checkpoint), f"after {run.run.step:,} steps") for run in facts]),
        Row("Model", [Cell(f"{c.model.backbone}, {c.data.image_size} px", _start(c)) for c in configs]),
        Row("Objective", [Cell(*run.run.objective) for run in facts]),
        Row("Trained on", machines),
        Row("Commit", known("commit")),
        Row("Date of training", known("date")),
        Row("PyTorch", known("torch")),
    ]


def _machine(environment: dict[str, str]) -> str:
    # `environment` names CUDA's version only where torch had a GPU to use.
    parts = [environment.get(key, UNKNOWN) for key in (("gpu", "cpu") if "cuda" in environment else ("cpu",))]
    return "; ".join(parts)


def _start(config: Config) -> str:
    if config.model.init:
        return f"started from {config.model.init}"
    return "from scratch" if config.model.weights == "none" else f"started from {config.model.weights} weights"


def setting_rows(facts: Sequence[RunFacts]) -> list[Row]:
    """Configuration keys in which the runs differ."""

    def settings() -> Iterator[tuple[str, list[str]]]:
        sections = [as_dict(run.run.config) for run in facts]
        for section, entries in reduce(operator.or_, sections).items():
            for key in entries:
                yield f"{section}.{key}", [str(one.get(section, {}).get(key, "–")) for one in sections]

    return [Row(key, [Cell(text) for text in texts]) for key, texts in settings() if len(set(texts)) > 1]
