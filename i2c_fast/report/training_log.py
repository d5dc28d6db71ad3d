"""A run's ``log.jsonl``, read leniently and drawn as few points however long it is."""

import json
from array import array
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..files import MIB, open_regular

POINTS = 160  # of a curve; a phone shows no more
MAX_SERIES = 64  # more names are no log of ours
LARGEST = 16 * 1024 * MIB  # of a log: some 50 million steps
EVALUATED = ("cls_top1", "loc_top1", "gt_known")

Numbers = NDArray[np.float64]


class Curve(NamedTuple):
    """Means of equally many consecutive steps, and what they were taken over."""

    x: Numbers  # [m] mean step
    y: Numbers  # [m] mean value
    low: Numbers  # [m] 10th percentile
    high: Numbers  # [m] 90th percentile


@dataclass(frozen=True)
class TrainingLog:
    """What can be read of a log, ordered by step."""

    steps: Numbers  # [s]
    series: dict[str, Numbers]  # whatever was logged, each [s]; NaN where nothing was
    stage_start: tuple[float, str] | None  # first step of the last stage, where another came before it, and name
    skipped: int  # steps that were not finite and changed nothing
    evaluations: dict[str, tuple[Numbers, Numbers]]  # `EVALUATED`: steps, errors in %
    protocols: frozenset[str]  # by which those were judged
    unread: int  # lines that are no log entries

    @property
    def bin(self) -> int:
        """Consecutive steps that become one point of a curve."""
        return max(1, -(-len(self.steps) // POINTS))

    def curve(self, name: str) -> Curve:
        """A series as at most `POINTS` points; bins in which nothing was logged are left out."""
        rows = []
        values = self.series.get(name, np.zeros(0))
        for start in range(0, len(values), self.bin):
            part = slice(start, start + self.bin)
            known = np.isfinite(values[part])
            if known.any():
                found = values[part][known]
                rows.append([self.steps[part][known].mean(), found.mean(), *np.percentile(found, [10, 90])])
        return Curve(*np.array(rows, np.float64).reshape(-1, 4).T)


def read_log(path: Path) -> TrainingLog:
    """Read a log line by line. What is no entry, as the line a killed process was writing, is counted and passed over.

    Of a step that was logged twice the last entry counts. A file that is missing or unreadable is an empty log.
    """
    columns: dict[str, array[float]] = {"step": array("d"), "stage": array("d")}
    stages: dict[str, float] = {}  # numbers of those met so far
    evaluations: dict[float, dict[str, float]] = {}
    protocols, unread = set(), 0
    with suppress(OSError), open_regular(path, LARGEST) as file:
        for line in iter(lambda: file.readline(MIB), b""):
            entry = _entry(line)
            if entry is None:
                unread += bool(line.strip())
            elif entry["kind"] == "evaluation":
                scores = entry.get("scores")
                scores = scores if isinstance(scores, dict) else {}
                evaluations[_number(entry["step"])] = {name: _error(scores.get(name)) for name in EVALUATED}
                protocols.add(str(scores.get("protocol")))
            else:
                title = f"{entry.get('stage')}: {entry.get('method')}"
                _append(columns, {**entry, "stage": stages.setdefault(title, len(stages))})
    # Of equal steps `unique` finds the first, so it looks from the end.
    steps, from_end = np.unique(np.array(columns.pop("step"))[::-1], return_index=True)
    series = {name: np.array(column)[::-1][from_end] for name, column in columns.items()}
    stage, skipped = series.pop("stage"), series.pop("skipped", np.zeros(0))
    starts = np.flatnonzero(np.diff(stage)) + 1
    stage_start = (float(steps[starts[-1]]), list(stages)[int(stage[starts[-1]])]) if len(starts) else None
    at = sorted(evaluations)
    errors = {name: np.array([evaluations[step][name] for step in at]) for name in EVALUATED}
    known = {name: (np.array(at)[np.isfinite(found)], found[np.isfinite(found)]) for name, found in errors.items()}
    return TrainingLog(steps, series, stage_start, int(np.nansum(skipped > 0)), known, frozenset(protocols), unread)


def _append(columns: dict[str, "array[float]"], entry: dict[str, Any]) -> None:
    """Add a row: what is a number, or null for one that was not finite; NaN where the entry lacks a column."""
    rows = len(columns["step"])
    for name, value in entry.items():
        if name not in columns and len(columns) < MAX_SERIES and (value is None or np.isfinite(_number(value))):
            columns[name] = array("d", [np.nan]) * rows
    for name, column in columns.items():
        column.append(_number(entry.get(name)))


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.get("kind") not in ("train", "evaluation"):
        return None
    return entry if np.isfinite(_number(entry.get("step"))) else None


def _number(value: Any) -> float:
    """The value as a float; NaN where it is none, or too large for one."""
    with suppress(OverflowError):
        if type(value) in (int, float):
            return float(value)
    return float("nan")


def _error(found: Any) -> float:
    return _number(found.get("error") if isinstance(found, dict) else found)
