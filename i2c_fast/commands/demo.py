"""The demo: generate images, train plain and I²C for equal steps from one start, compare them on new images."""

import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console

from ..config import Config, build_config, load_recipe
from ..data import ImageIndex, read_image
from ..data.generated import write_generated
from ..data.images import Image
from ..environment import environment
from ..errors import UserError
from ..evaluation import PaperProtocol, Scores, centered_box_error, paired_differences, require_empty
from ..files import write_json
from ..report import contact_sheet, draw_overlay, save_picture
from ..training import checkpoints_of, score_checkpoint, start_run
from ..world import ALONE, World
from .predict import Predictor, open_predictor

TRAIN, TEST = "generated", "generated_test"  # folders of images
TRAIN_IMAGES, TEST_IMAGES = 100, 50  # a class
CLASSES = 10
PICTURES = 8  # on the contact sheet
NOTICE = "Generated images: they show that the method runs end to end and prove nothing about the paper."


# Keys that the demo sets itself, and what to give instead.
OWN_KEYS = {
    "data.root": "its images are generated",
    "run.seed": "give --seed",
    "run.threads": "give --threads",
    "model.init": "both branches start from its stage 0",
    "stage0.epochs": "both branches start from its stage 0",
    "stage1.method": "it compares cam with i2c",
    "stage1.epochs": "stage 0 is trained without it, and both branches for equally many steps",
}


def run_demo(
    output: Path | None,
    seed: int,
    threads: int,
    console: Console,
    overrides: Sequence[str] = (),
    world: World = ALONE,
) -> dict[str, Any] | None:
    """Run the demo in the folder `output` (default: runs/demo, or the next that is free).

    Both branches start from the weights of one stage 0 and see the same batches for equally many steps. Test images
    come from a seed that trained nothing.

    Args:
        overrides: ``key=value`` that change the recipe for both branches, but for `OWN_KEYS`.
        world: the ranks that train them together.

    Returns:
        What ``results.json`` holds (errors of both, their differences with 95 % intervals, the environment), and the
        folder; None on all ranks but the first.

    Raises:
        UserError: an override that does not fit, or `output` is a file, or a folder that is not empty.
    """
    for override in overrides:
        key = override.partition("=")[0]
        if key in OWN_KEYS:
            raise UserError(f"{override!r}: the demo sets {key} itself ({OWN_KEYS[key]})")
    _config(*overrides)  # refused before anything is written
    folder = output or free_folder(Path("runs/demo"))
    with world.together():
        if world.rank == 0:
            require_empty(folder, "--output")
            console.print(f"{NOTICE}\n1 of 4: generating images in {folder}", highlight=False)
            _generate(folder, seed)
    folder = world.gather(folder)[0]
    scores, test = _train_branches(folder, overrides, seed, threads, console, world)
    return _compare(folder, seed, scores, test) if world.rank == 0 else None


def _generate(folder: Path, seed: int) -> None:
    write_generated(folder / TRAIN, seed=2 * seed, classes=CLASSES, train_images=TRAIN_IMAGES, val_images=10)
    write_generated(folder / TEST, seed=2 * seed + 1, classes=CLASSES, train_images=1, val_images=TEST_IMAGES)


def _train_branches(
    folder: Path, overrides: Sequence[str], seed: int, threads: int, console: Console, world: World
) -> tuple[dict[str, Scores], ImageIndex]:
    """Scores of both on the test images, and these."""
    common = [*overrides, f"data.root={folder / TRAIN}", f"run.seed={seed}", f"run.threads={threads}"]
    if world.rank == 0:
        console.print("2 of 4: training the start of both branches", highlight=False)
    started = time.monotonic()
    start_run(_config(*common, "stage1.epochs=0"), folder / "stage0", console, world=world)
    stages = _config(*common).stages
    # I²C takes longer than plain training, by a part that a small model on few pixels makes visible.
    seconds = (time.monotonic() - started) * 2 * stages["stage1"].epochs / stages["stage0"].epochs
    start = f"model.init={checkpoints_of(folder / 'stage0')[-1]}"
    branches = {"plain": "stage1.method=cam", "i2c": "stage1.method=i2c"}
    scores: dict[str, Scores] = {}
    for number, (name, method) in enumerate(branches.items(), 3):
        if world.rank == 0:
            left = f" (both branches: about {seconds:.0f} s)" if name == "plain" else ""
            console.print(f"{number} of 4: training and scoring {name}{left}", highlight=False)
        start_run(_config(*common, start, "stage0.epochs=0", method), folder / name, console, world=world)
        scores[name], test = score_checkpoint(folder / name, [f"data.root={folder / TEST}"], console, world=world)
    return scores, test


def _compare(folder: Path, seed: int, scores: dict[str, Scores], test: ImageIndex) -> dict[str, Any]:
    """Write what both came to, in figures and pictures."""
    results = {
        "notice": NOTICE,
        "seed": seed,
        "centered_box_gt_known_error": centered_box_error(test, PaperProtocol()),
        "errors": {name: found.summary() for name, found in scores.items()},
        "i2c_minus_plain": paired_differences(scores["plain"], scores["i2c"]),
        "environment": environment(),
    }
    write_json(folder / "results.json", results)
    predictors = {
        name: open_predictor(folder / name, threshold=found.best_threshold("gt_known"))
        for name, found in scores.items()
    }
    save_picture(folder / "overlays.png", _pictures(predictors, test))
    return {"folder": str(folder), **results}


def free_folder(first: Path) -> Path:
    """`first`, or with -2, -3 … behind its name, whichever does not exist yet."""
    if not first.exists():
        return first
    others = (first.with_name(f"{first.name}-{number}") for number in count(2))
    return next(folder for folder in others if not folder.exists())


def _config(*overrides: str) -> Config:
    recipe = load_recipe("demo")
    return build_config(recipe.values, "recipe demo", overrides)


def _pictures(predictors: dict[str, Predictor], index: ImageIndex) -> Image:
    """The label's map and box of the same test images by each predictor, a row for each."""
    chosen = range(PICTURES)
    files = [index.file(i) for i in chosen]
    labels = [int(index.labels[i]) for i in chosen]
    rows = [[draw_overlay(read_image(files[i]), gt_boxes=index.boxes[i], side=150) for i in chosen]]
    for predictor in predictors.values():
        found = zip(chosen, predictor.files(files, labels), strict=True)
        rows.append([draw_overlay(one.image, one.gray, one.box, index.boxes[i], side=150) for i, one in found])
    names = ["ground-truth boxes (red)", *(f"{name}: label's map, predicted box (green)" for name in predictors)]
    return contact_sheet(rows, names, NOTICE)
