"""Find and name the runs of a report, and check that they can be compared, before any image is scored."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..config import Config, build_config
from ..data import ImageIndex
from ..errors import UserError
from ..evaluation import ScoringProtocol, named_protocol
from ..files import MIB, read_regular
from ..methods import METHODS, Method
from ..training import open_split
from ..training.checkpoint import find_checkpoint

MAX_RUNS = 6  # as many line styles as can be told apart, and pictures as fit in a page


@dataclass(frozen=True)
class Run:
    """A checkpoint to report on, and the files beside it."""

    name: str  # the shortest end of its path that tells it from the other runs
    folder: Path  # where log.jsonl and environment.json may lie
    checkpoint: Path
    step: int  # optimizer steps behind the checkpoint
    stage: str  # of the last of them
    config: Config  # the checkpoint's, with the overrides
    index: ImageIndex  # its validation split
    environment: dict[str, str]  # of the machine that trained it; empty where that is not known

    @property
    def objective(self) -> tuple[str, str]:
        """What its last stage minimizes, and the options that matter."""
        return self._method.describe(self.config.options_of(self.stage))

    @property
    def map_threshold(self) -> float:
        """δ: the fraction of a map's range above which pixels are counted."""
        return self._method.map_threshold(self.config.options_of(self.stage))

    @property
    def _method(self) -> type[Method]:
        return METHODS[self.config.stages[self.stage].method]

    @property
    def protocol(self) -> ScoringProtocol:
        """By which it is scored."""
        return named_protocol(self.config.eval.protocol, self.config.eval.threshold_step)


def open_runs(paths: Sequence[Path], overrides: Sequence[str], console: Console) -> list[Run]:
    """Find the newest checkpoint and the validation split of each run.

    Args:
        paths: run folders, or checkpoint files in them.
        overrides: ``key=value`` for the configurations of all.

    Raises:
        UserError: a run that is not there, has no readable checkpoint or whose data is gone; one given twice; runs of
            different classes, validation images, boxes or protocols; more than `MAX_RUNS`.
    """
    if len(paths) > MAX_RUNS:
        raise UserError(f"{len(paths)} runs are more than the {MAX_RUNS} that fit in a page; report on fewer")
    names = _names(paths)
    runs = [_open(path, name, overrides, console) for path, name in zip(paths, names, strict=True)]
    for position, run in enumerate(runs):
        for other in runs[:position]:
            if run.checkpoint.resolve() == other.checkpoint.resolve():
                raise UserError(f"{paths[position]} is given twice (both are {other.checkpoint}); name each run once")
        _check_comparable(runs[0], run)
    return runs


def _names(paths: Sequence[Path]) -> list[str]:
    whole = [path.absolute() for path in paths]
    parts = [(path.with_suffix("") if os.path.isfile(path) else path).parts for path in whole]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _open(path: Path, name: str, overrides: Sequence[str], console: Console) -> Run:
    if not os.path.exists(path):  # unlike Path.exists, does not raise for names that are too long
        raise UserError(f"run {path} does not exist; give a run folder, or a checkpoint file in one")
    checkpoint, state = find_checkpoint(
        path, lambda text: console.print(f"warning: {text}", highlight=False, markup=False)
    )
    config = build_config(state["config"], f"the checkpoint of {name}", overrides)
    if config.data.root and not Path(os.path.expanduser(config.data.root)).is_dir():
        raise UserError(
            f"run {path}: data.root={config.data.root} is not a folder; say where its data lies with data.root=FOLDER"
        )
    folder = path if path.is_dir() else path.absolute().parent.parent
    index = open_split(config.data, "val")
    return Run(name, folder, checkpoint, state["step"], state["stage"], config, index, _environment(folder))


def _environment(folder: Path) -> dict[str, str]:
    file = folder / "environment.json"
    try:
        found: Any = json.loads(read_regular(file, MIB))
        written = datetime.fromtimestamp(file.stat().st_mtime, UTC).date().isoformat()
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {"date": written, **{str(key): str(value) for key, value in found.items()}}


def _check_comparable(first: Run, other: Run) -> None:
    a, b = first.index, other.index
    if a.classes != b.classes:
        raise UserError(
            f"{first.name} knows {len(a.classes)} classes ({a.classes[0]} …), {other.name} {len(b.classes)} "
            f"({b.classes[0]} …); runs of different classes do not compare, report on each alone"
        )
    if a.fingerprint() != b.fingerprint() or not all(map(np.array_equal, a.boxes, b.boxes)):
        raise UserError(
            f"{first.name} validates on {len(a)} images of {a.root}, {other.name} on others ({len(b)} of {b.root}) or "
            "with other boxes; give data.root=FOLDER for all to score the same"
        )
    for key in ("protocol", "threshold_step"):
        mine, theirs = getattr(first.config.eval, key), getattr(other.config.eval, key)
        if mine != theirs:
            raise UserError(
                f"{first.name} is scored with eval.{key}={mine}, {other.name} with {theirs}; give eval.{key}={mine} "
                "for all"
            )
