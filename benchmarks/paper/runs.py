"""Do the runs of an experiment one after the other: a start for each seed, and from it every row."""

import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from rich.console import Console
from torch import Tensor

from benchmarks.paper.plan import Row
from i2c_fast.config import Config, as_dict, build_config, load_recipe
from i2c_fast.data import ImageIndex
from i2c_fast.errors import UserError
from i2c_fast.evaluation import LocalizationMetric, PaperProtocol, Scores, ScoringProtocol, WsolEvaluationProtocol
from i2c_fast.evaluation.metric import label_ranks
from i2c_fast.files import write_bytes
from i2c_fast.training import checkpoints_of, open_split, score_checkpoint, start_run
from i2c_fast.training.run import FREE_ON_RESUME

PROTOCOLS: tuple[ScoringProtocol, ...] = (PaperProtocol(), WsolEvaluationProtocol())
RESULT = "result.npz"  # in a run's folder, once it is done
BRANCH_SEED = 1000  # added for rows, so that they draw other batches than their start did


@dataclass(frozen=True)
class Setting:
    """What is chosen on the command line."""

    data: Path
    output: Path
    seeds: tuple[int, ...] = (0,)
    budget: float = 1.0  # of the recipe's steps
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluated:
    """A run's maps of its validation images, and the verdicts on them by both protocols."""

    folder: Path
    maps: NDArray[np.float32]  # [n, h, w] raw, of the labels
    ranks: NDArray[np.int64]  # [n] of the labels among the predictions
    scores: dict[str, Scores]  # by protocol


class Runs:
    """Trains and evaluates what is not there yet, and tells how much time the rest will take.

    Args:
        setting: of all of them.
        rows: in the order they are done in, each with every seed.
    """

    def __init__(self, setting: Setting, rows: tuple[Row, ...], console: Console) -> None:
        self.setting, self.rows, self.console = setting, rows, console
        self.steps_done, self.seconds = 0.0, 0.0  # of the runs of this process
        seeds = setting.seeds
        self.todo = {self._folder(row, seed): self.config(row, seed) for seed in seeds for row in rows}
        self.indexes: dict[str, ImageIndex] = {}
        self.todo |= {self._start_folder(row, seed): self._start_config(row, seed) for seed in seeds for row in rows}
        self.todo = {folder: config for folder, config in self.todo.items() if not (folder / RESULT).is_file()}

    def evaluated(self, row: Row, seed: int) -> Evaluated:
        """The run of a row from its seed's start; both are done first if they are not there."""
        return self._run(self._folder(row, seed), self.from_start(row, seed), self.index(row))

    def from_start(self, row: Row, seed: int) -> Config:
        """The configuration of a row's run from its seed's start, which is done first if it is not there."""
        return self.config(row, seed, f"model.init={checkpoints_of(self.start(row, seed).folder)[-1]}")

    def start(self, row: Row, seed: int) -> Evaluated:
        """Stage 0 of a row's recipe."""
        return self._run(self._start_folder(row, seed), self._start_config(row, seed), self.index(row))

    def done(self, row: Row, seed: int, start: bool = False) -> Evaluated | None:
        """A row's run, or its start's, if it is there."""
        folder = self._start_folder(row, seed) if start else self._folder(row, seed)
        if not (folder / RESULT).is_file():
            return None
        return _load(folder, self._start_config(row, seed) if start else self.config(row, seed), self.index(row))

    def index(self, row: Row) -> ImageIndex:
        """The validation images of a row."""
        if row.recipe not in self.indexes:
            self.indexes[row.recipe] = open_split(self.config(row, self.setting.seeds[0]).data, "val")
        return self.indexes[row.recipe]

    def config(self, row: Row, seed: int, *keys: str) -> Config:
        """Stage 1 alone, as the row changes it."""
        return self._build(row, f"run.seed={BRANCH_SEED + seed}", "stage0.epochs=0", *row.keys, *keys)

    def _start_config(self, row: Row, seed: int) -> Config:
        return self._build(row, f"run.seed={seed}", "stage1.epochs=0")

    def _build(self, row: Row, *keys: str) -> Config:
        setting = self.setting
        recipe = load_recipe(row.recipe)
        given = recipe.values.get("data", {})
        # The crop is as large a part of the image as in the recipe.
        short = row.size * given.get("short_side", 256) // given.get("image_size", 224)
        size = (f"data.image_size={row.size}", f"data.short_side={short}") if row.size else ()
        own = (f"data.root={setting.data}", f"batch.epoch_fraction={setting.budget}", "run.keep_checkpoints=1")
        return build_config(recipe.values, f"recipe {recipe.name}", (*own, *size, *setting.overrides, *keys))

    def _start_folder(self, row: Row, seed: int) -> Path:
        return self._recipe_folder(row) / f"start-seed{seed}"

    def _folder(self, row: Row, seed: int) -> Path:
        return self._recipe_folder(row) / f"{row.name}-seed{seed}"

    def _recipe_folder(self, row: Row) -> Path:
        name = Path(row.recipe).stem
        return self.setting.output / (f"{name}-{row.size}" if row.size else name)

    def _run(self, folder: Path, config: Config, index: ImageIndex) -> Evaluated:
        if folder in self.todo:
            self.console.print(f"{folder.name} ({len(self.todo)} runs to do{self._time_left()})", highlight=False)
            began = time.monotonic()
            seen = Maps(index)
            if start_run(config, folder, self.console, "auto", observe=seen) is None:
                score_checkpoint(folder, [f"data.root={config.data.root}"], self.console, observe=seen)
            seen.save(folder / RESULT)
            self.seconds += time.monotonic() - began
            self.steps_done += _length(self.todo.pop(folder))
        return _load(folder, config, index)

    def _time_left(self) -> str:
        if not self.steps_done:
            return ""
        left = self.seconds / self.steps_done * sum(map(_length, self.todo.values()))
        return f", about {left / 60:.0f} minutes" if left > 90 else f", about {left:.0f} seconds"


def _length(config: Config) -> float:
    """Length of a run, evaluation counted as a third of what is taken of an epoch."""
    return (sum(stage.epochs for stage in config.stages.values()) + 1 / 3) * config.batch.epoch_fraction


def _facts(config: Config) -> dict[str, Any]:
    """What a finished run has to have in common with what is asked for: all that shaped its training."""
    left_out = {stage for stage, one in config.stages.items() if not one.epochs}
    left_out |= set(config.methods) - {stage.method for stage in config.stages.values() if stage.epochs}
    return {
        f"{section}.{key}": value
        for section, entries in as_dict(config).items()
        for key, value in entries.items()
        if section not in left_out and f"{section}.{key}" not in (*FREE_ON_RESUME, "run.precision")
    }


class Maps:
    """A `BatchObserver` that keeps the maps of a split, and scores them by both protocols."""

    def __init__(self, index: ImageIndex) -> None:
        self.index = index
        self.maps: dict[int, NDArray[np.float32]] = {}
        self.ranks = np.zeros(len(index), np.int64)

    def __call__(self, indices: Tensor, maps: Tensor, scores: Tensor) -> None:
        chosen = indices.cpu().numpy()
        for i, raw in zip(chosen.tolist(), maps.float().cpu().numpy().copy(), strict=True):
            self.maps[i] = raw
        self.ranks[chosen] = label_ranks(scores.cpu(), torch.from_numpy(self.index.labels[chosen]))

    def save(self, path: Path) -> None:
        """Write maps, ranks of the labels and verdicts."""
        maps = np.stack([self.maps[i] for i in range(len(self.index))])
        arrays: dict[str, Any] = {"maps": maps, "ranks": self.ranks}
        sizes = stored_sizes(self.index)
        for protocol in PROTOCOLS:
            metric = LocalizationMetric(protocol, check=False)
            metric.update(maps, None, None, self.index.boxes, sizes, ranks=self.ranks)
            found = metric.scores()
            arrays[protocol.name] = found.hits
            if found.contour_hits is not None:
                arrays["contours"] = found.contour_hits
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_bytes(path, buffer.getbuffer())


def stored_sizes(index: ImageIndex) -> NDArray[np.int64]:
    """Width and height of each stored image, [n, 2]; annotated ones may be wrong."""
    sizes = np.empty((len(index), 2), np.int64)
    for i in range(len(index)):
        with Pillow.open(index.file(i)) as opened:
            sizes[i] = opened.size
    return sizes


def _load(folder: Path, config: Config, index: ImageIndex) -> Evaluated:
    trained = load_recipe(str(folder / "config.toml")).values
    then, now = _facts(build_config(trained, str(folder / "config.toml"))), _facts(config)
    for key in {**then, **now}:
        if then.get(key) != now.get(key):
            raise UserError(f"{folder} was run with {key}={then.get(key)}, not {now.get(key)}; give another --output")
    with np.load(folder / RESULT, allow_pickle=False) as arrays:
        boxed = np.array([len(boxes) > 0 for boxes in index.boxes])
        scores = {
            protocol.name: Scores(
                protocol.name, protocol.thresholds, arrays["ranks"], boxed, arrays[protocol.name],
                arrays["contours"] if protocol.name == "wsolevaluation" else None, np.arange(len(index)),
            )
            for protocol in PROTOCOLS
        }  # fmt: skip
        return Evaluated(folder, arrays["maps"], arrays["ranks"], scores)
