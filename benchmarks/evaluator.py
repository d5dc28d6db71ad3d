#!/usr/bin/env python3
"""One call a map against a loop over thresholds with OpenCV, as the field's standard evaluator has it.

Both start from the same raw maps and end with the same verdicts at all thresholds, 1000 (our default) or 100 (that of
the evaluator's command line), which is checked before anything is timed. The rows of a contest take turns in each
round; times are medians over rounds, ratios medians of the ratios of each round. The loop is given the best of it: it
computes all overlaps of a map at once, which the evaluator does not.

Only ratios within one run mean something: they hold for the machine in the file, whatever else it had to do.
"""

# ruff: noqa: E402

import os
import sys
from pathlib import Path

# Started as a script, its own folder heads the path, where the standard library's `profile` would be `profile.py`.
ROOT = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(ROOT)] if sys.path[0] == str(ROOT / "benchmarks") else [sys.path[0]]

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any

import click
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from i2c_fast.config import build_config
from i2c_fast.data import EvalBatches
from i2c_fast.environment import environment
from i2c_fast.errors import UserError
from i2c_fast.evaluation import CONTOUR_IOUS, PaperProtocol, WsolEvaluationProtocol, intersection_over_union
from i2c_fast.files import write_json
from i2c_fast.training import load_checkpoint, restore_predictor
from i2c_fast.training.run import open_split

Verdicts = NDArray[np.bool_]
PAPER = PaperProtocol()
CORES = min(4, os.cpu_count() or 1)
ONE, MANY = "ours, 1 core", f"ours, {CORES} cores"
LOOP, LOOP_DISTINCT = "loop over all thresholds, 1 core", "loop over the different masks, 1 core"

# What the repository promises of every contest, by its thresholds: the loop's time is at least so many times ours.
BARS = {1000: 10, 100: 5}


@dataclass(frozen=True)
class Sample:
    """A map to judge."""

    raw: NDArray[np.float32]
    size: tuple[int, int]  # of its image
    gt_boxes: NDArray[np.float32]  # [B, 4]


@dataclass(frozen=True)
class Contest:
    """Two ways to the same verdicts on the same maps."""

    metric: str  # paper, MaxBoxAcc or MaxBoxAccV2
    maps: str  # what kind
    samples: list[Sample]
    thresholds: int = 1000

    @cached_property
    def standard(self) -> WsolEvaluationProtocol:
        """With as many thresholds."""
        return WsolEvaluationProtocol(1 / self.thresholds)

    def ours(self, sample: Sample) -> Verdicts:
        """Verdicts at all thresholds. wsolevaluation's come with both box metrics, whichever is asked for."""
        standard = self.standard
        protocol = PAPER if self.metric == "paper" else standard
        verdict = protocol.verdict(sample.raw, *sample.size, sample.gt_boxes)
        found = verdict.contours if self.metric == "MaxBoxAccV2" else verdict.box
        assert found is not None
        return standard.expand(found)  # whose grid is 0…254 at 1000 thresholds, as the paper protocol's

    def loop(self, sample: Sample, distinct: bool) -> Verdicts:
        """The same, mask by mask; `distinct` takes each different mask once."""
        paper = self.metric == "paper"
        protocol = PAPER if paper else self.standard
        gray, gt_boxes = protocol.gray_map(sample.raw, *sample.size), protocol.to_map(sample.gt_boxes, *sample.size)
        levels = [int(t * (255 if paper else gray.max())) for t in self.standard.fractions]
        different = sorted(set(levels))
        found = [self._boxes(gray, level) for level in (different if distinct else levels)]
        starts = np.cumsum([0, *map(len, found[:-1])])
        overlaps = np.maximum.reduceat(intersection_over_union(np.concatenate(found), gt_boxes).max(1), starts)
        if distinct:
            overlaps = overlaps[np.searchsorted(different, levels)]
        if paper:
            return overlaps > 0.5
        return overlaps >= (np.array(CONTOUR_IOUS)[:, None] if self.metric == "MaxBoxAccV2" else 0.5)

    def _boxes(self, gray: NDArray[np.uint8], level: int) -> NDArray[np.int32]:
        _, mask = cv2.threshold(gray, level, 255, cv2.THRESH_BINARY)
        if self.metric == "paper":
            _, _, regions, _ = cv2.connectedComponentsWithStatsWithAlgorithm(mask, 8, cv2.CV_32S, cv2.CCL_WU)
            x, y, w, h, _ = regions[1 + np.argmax(regions[1:, cv2.CC_STAT_AREA])] if len(regions) > 1 else [0] * 5
            return np.array([[x, y, x + w - 1, y + h - 1]], np.int32)
        contours = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        if not contours:
            return np.zeros((1, 4), np.int32)
        chosen = contours if self.metric == "MaxBoxAccV2" else [max(contours, key=cv2.contourArea)]
        boxes = [(x, y, min(x + w, 223), min(y + h, 223)) for x, y, w, h in map(cv2.boundingRect, chosen)]
        return np.array(boxes, np.int32)

    def check(self) -> None:
        """Compare the verdicts.

        Raises:
            RuntimeError: they are not equal.
        """
        for sample in self.samples:
            for distinct in (False, True):
                if not np.array_equal(self.ours(sample), self.loop(sample, distinct)):
                    raise RuntimeError(f"{self.metric}, {self.maps}, {self.thresholds}: the verdicts differ")


# Names → what is timed, and how many images it judges.
Rows = dict[str, tuple[Callable[[], object], int]]


def judge_all(contest: Contest, samples: list[Sample], pool: ThreadPoolExecutor | None = None) -> list[Verdicts]:
    """Our verdicts."""
    return list((map if pool is None else pool.map)(contest.ours, samples))


def loop_all(contest: Contest, distinct: bool) -> list[Verdicts]:
    """The loop's."""
    return [contest.loop(sample, distinct) for sample in contest.samples]


def made_up(cells: int, side: int, sigma: float, size: tuple[int, int], count: int) -> list[Sample]:
    """Noise of `cells` squared, blurred, enlarged to `side` squared; with a ground-truth box somewhere."""
    found = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        raw = rng.random((cells, cells), np.float32)
        if sigma:
            raw = cv2.GaussianBlur(raw, (0, 0), sigma).astype(np.float32)
        enlarged = cv2.resize(raw, (side, side), interpolation=cv2.INTER_CUBIC)
        corners = np.floor(np.sort(rng.random((1, 2, 2)), axis=1) * size)
        found.append(Sample(np.asarray(enlarged, np.float32), size, corners.reshape(1, 4).astype(np.float32)))
    return found


def real(checkpoint: Path, root: str | None, count: int) -> list[Sample]:
    """Maps of the labels' classes of the first validation images, by a trained model."""
    state = load_checkpoint(checkpoint)
    config = build_config(state["config"], "the checkpoint", [f"data.root={root}"] if root else [])
    index = open_split(config.data, "val")
    model = restore_predictor(state).eval()
    step = max(1, len(index) // count)  # images are sorted by class
    batches = EvalBatches(index, config.data.image_size, 1)
    found = []
    for i in range(0, step * count, step):
        batch = batches[i]
        with torch.inference_mode():
            raw = model.class_maps(batch.images, batch.labels).maps[0].numpy()
        width, height = batch.sizes[0].tolist()
        found.append(Sample(raw, (width, height), index.boxes[i]))
    return found


def take_turns(rows: Rows, rounds: int) -> dict[str, list[float]]:
    """Milliseconds an image of each row in each round."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(rounds):
        for name in list(rows)[:: 1 if number % 2 else -1]:
            work, images = rows[name]
            start = time.perf_counter()
            work()
            times[name].append(1000 * (time.perf_counter() - start) / images)
    return times


def run_contest(contest: Contest, rounds: int, repeats: int) -> dict[str, Any]:
    """Compare, warm up, time."""
    contest.check()
    with ThreadPoolExecutor(CORES) as pool:
        many = contest.samples * repeats
        rows: Rows = {
            ONE: (partial(judge_all, contest, many), len(many)),
            MANY: (partial(judge_all, contest, many, pool), len(many)),
            LOOP_DISTINCT: (partial(loop_all, contest, True), len(contest.samples)),
            LOOP: (partial(loop_all, contest, False), len(contest.samples)),
        }
        rows[MANY][0]()
        times = take_turns(rows, rounds)
    ratios = {
        f"{one} / {other}": float(np.median(np.divide(times[one], times[other])))
        for one in (LOOP, LOOP_DISTINCT)
        for other in (ONE, MANY)
    }
    return {
        "metric": contest.metric,
        "maps": contest.maps,
        "thresholds": contest.thresholds,
        "images": len(contest.samples),
        "image_size": sorted({sample.size for sample in contest.samples})[:3],
        "ms_per_image": {
            name: {"median": float(np.median(t)), "least": min(t), "most": max(t)} for name, t in times.items()
        },
        "ratios": ratios,
    }


def growth(rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Our time with images, cores and map size; the loop's beside it where the size of the map is what grows."""
    samples = made_up(28, 28, 1.5, (500, 375), 16)
    contest = Contest("MaxBoxAccV2", "", samples)
    by_images: Rows = {}
    for images in (16, 64, 256):
        by_images[str(images)] = (partial(judge_all, contest, samples * (images // 16)), images)
    by_cores: Rows = {}
    for cores in range(1, CORES + 1):
        pool = ThreadPoolExecutor(cores)
        by_cores[str(cores)] = (partial(judge_all, contest, samples * 8, pool), len(samples) * 8)
    by_size: Rows = {}
    for side in (112, 224, 448, 896):
        sized = Contest("paper", "", made_up(28, 28, 1.5, (side, side), 2))
        sized.check()
        by_size[f"{side} {ONE}"] = (partial(judge_all, sized, sized.samples * 4), 8)
        by_size[f"{side} {LOOP_DISTINCT}"] = (partial(loop_all, sized, True), 2)
    return {
        name: [{name: key, "ms_per_image": float(np.median(times))} for key, times in take_turns(rows, rounds).items()]
        for name, rows in (("images", by_images), ("cores", by_cores), ("side", by_size))
    }


def contests(images: int, checkpoint: Path | None, root: str | None) -> list[Contest]:
    """All of them, on each kind of map: three metrics at 1000 thresholds, the standard evaluator's two at 100."""
    size, few = (500, 375), max(1, images // 4)
    kinds = {
        "smooth 14 x 14": made_up(14, 14, 1.5, size, images),
        "smooth 28 x 28": made_up(28, 28, 1.5, size, images),
        "rough 28 x 28": made_up(28, 28, 0, size, few),
        "white noise 224 x 224": made_up(224, 224, 0, (224, 224), few),
    }
    if checkpoint is not None:
        kinds["real"] = real(checkpoint, root, images)
    standard = ("MaxBoxAcc", "MaxBoxAccV2")
    judged = [*((metric, 1000) for metric in ("paper", *standard)), *((metric, 100) for metric in standard)]
    return [Contest(metric, kind, kinds[kind], thresholds) for kind in kinds for metric, thresholds in judged]


def chosen_by(only: tuple[str, ...], found: list[Contest]) -> list[Contest]:
    """The contests whose metric and kind of map are named, where any is."""
    metrics, kinds = ({getattr(one, part) for one in found} for part in ("metric", "maps"))
    wanted = [named & set(only) or named for named in (metrics, kinds)]
    return [one for one in found if one.metric in wanted[0] and one.maps in wanted[1]]


def judge(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Whether the promise is kept in each contest."""
    found = []
    for result in results:
        name, least = f"{LOOP} / {ONE}", BARS[result["thresholds"]]
        row = {key: result[key] for key in ("metric", "maps", "thresholds")} | {"ratio": name, "at_least": least}
        found.append({**row, "measured": result["ratios"][name], "kept": result["ratios"][name] >= least})
    return found


@click.command()
@click.option("--images", default=8, show_default=True, help="Maps of each kind (a quarter of it of rough ones).")
@click.option("--rounds", default=5, show_default=True, help="Rounds in which the rows take turns.")
@click.option("--repeats", default=32, show_default=True, help="How often we judge the maps that the loop judges once.")
@click.option("--only", multiple=True, help="A metric or kind of map to take, as 'smooth 28 x 28'; may be repeated.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A run, for real maps of its validation images.")
@click.option("--data", help="The data set's folder, if it is not where the run found it.")
@click.option("--output", type=click.Path(path_type=Path), default=Path(__file__).parent / "results/evaluator.json")
def main(
    images: int,
    rounds: int,
    repeats: int,
    only: tuple[str, ...],
    checkpoint: Path | None,
    data: str | None,
    output: Path,
) -> None:
    """Time the evaluator against loops over thresholds."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    console = Console()
    try:
        chosen = chosen_by(only, contests(images, checkpoint, data))
    except UserError as error:
        raise click.ClickException(str(error)) from None
    results = []
    table = Table(
        "metric",
        "maps",
        "thresholds",
        *(f"{row}, ms" for row in (ONE, MANY, LOOP_DISTINCT, LOOP)),
        "loop / ours",
        box=None,
    )
    for contest in chosen:
        result = run_contest(contest, rounds, repeats)
        results.append(result)
        medians = [f"{result['ms_per_image'][row]['median']:.2f}" for row in (ONE, MANY, LOOP_DISTINCT, LOOP)]
        ratio = " and ".join(f"{result['ratios'][f'{LOOP} / {row}']:.0f}" for row in (ONE, MANY))
        table.add_row(contest.metric, contest.maps, str(contest.thresholds), *medians, ratio)
        console.print(
            f"{contest.metric}, {contest.maps}, {contest.thresholds} thresholds: equal verdicts; loop / ours {ratio}",
            highlight=False,
        )
    bars = judge(results)
    settings = {
        "images": images,
        "rounds": rounds,
        "repeats": repeats,
        "only": only,
        "real_maps": checkpoint is not None,
    }
    write_json(
        output,
        {
            "benchmark": "evaluator",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "environment": environment(),
            "settings": settings,
            "contests": results,
            "growth": {} if only else growth(rounds),
            "bars": bars,
        },
    )
    console.print(table)
    for bar in bars:
        if not bar["kept"]:
            console.print(f"missed: {bar}", highlight=False)


if __name__ == "__main__":
    main()
