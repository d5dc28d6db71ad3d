"""The command line: what each command asks for, and which function answers."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from . import __version__
from .errors import UserError, printable

# torch reads it when it is imported. Where a rank dies, its store's clients would write what they did in C++.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

# No markup: names of files and images are printed, and are text.
console = Console(soft_wrap=True, markup=False, emoji=False)
PATH, SPLITS = click.Path(path_type=Path), click.Choice(["test", "val", "train"])

EMA = click.option("--ema/--no-ema", default=None, help="Take the EMA of the weights [default: if the run scored it].")


def _world(overrides: Sequence[str]) -> AbstractContextManager[Any]:
    """The ranks that torchrun started this process among, on the device that ``key=value`` asks for."""
    from .config import build_config
    from .world import open_world

    own = [override for override in overrides if override.startswith(("run.device=", "run.rank_timeout="))]
    run = build_config({}, "defaults", own).run
    return open_world(run.device, run.rank_timeout)


class Commands(click.Group):
    """A group whose `UserError` is one line and exit status 2, and whose interruption is no traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except UserError as error:
            click.echo(printable(f"i2c-fast: {error}"), err=True)
            sys.exit(2)
        except ImportError as error:
            if error.name != "triton":  # which I2C_FAST_BACKEND may ask for
                raise
            click.echo(f"i2c-fast: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("i2c-fast: interrupted", err=True)
            sys.exit(130)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="i2c-fast")
def main() -> None:
    """Weakly supervised object localization by Inter-Image Communication (I²C, ECCV 2020)."""


def all_keys() -> str:
    """Help text that lists every configuration key."""
    from .config import keys

    lines = (f"{name}={json.dumps(default)}  ({kind})  {text}" for name, kind, default, text in keys())
    return "\b\nKeys, with their defaults:\n  " + "\n  ".join(lines)


class KeysCommand(click.Command):
    """A command whose help ends with all configuration keys."""

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        self.epilog = all_keys()
        super().format_epilog(context, formatter)


@main.command(cls=KeysCommand)
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--output", "-o", type=PATH, help="Run folder [default: runs/RECIPE].")
@click.option(
    "--resume",
    is_flag=False,
    flag_value="required",
    default="never",
    type=click.Choice(["auto", "required", "never"]),
    help="Continue from the run folder's newest checkpoint; with auto, start if there is none.",
)
@click.option("--print-config", is_flag=True, help="Print the resolved configuration as TOML and stop.")
def train(recipe: str, overrides: tuple[str, ...], output: Path | None, resume: Any, print_config: bool) -> None:
    """Train RECIPE (a name from `i2c-fast recipes`, or a TOML file), changed by KEY=VALUE."""
    from .commands.tables import print_scores
    from .config import as_toml, build_config, load_recipe
    from .training import STOPPED_STATUS, RunStopped, start_run
    from .world import open_world

    chosen = load_recipe(recipe)
    config = build_config(chosen.values, f"recipe {chosen.name}", overrides)
    if print_config:
        click.echo(as_toml(config), nl=False)
        return
    run = output or Path("runs") / Path(recipe).stem
    with open_world(config.run.device, config.run.rank_timeout) as world:
        try:
            scores = start_run(config, run, console, resume, world)
        except RunStopped as stopped:
            if world.rank == 0:
                click.echo(f"i2c-fast: {stopped}", err=True)
            sys.exit(STOPPED_STATUS)
    if world.rank:
        return
    if scores is None:
        console.print(f"{run} was already complete", highlight=False)
    else:
        print_scores(console, {run.name: scores.summary()})


@main.command(cls=KeysCommand)
@click.argument("checkpoint", type=PATH)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--against", type=PATH, help="Also score this checkpoint and compare with it.")
@click.option(
    "--threshold-from",
    type=click.Choice(["train", "val"]),
    help="Choose thresholds on the boxes of the training images, or of wsolevaluation's val lists beside its test.",
)
@click.option("--maps", type=PATH, help="Also save raw maps here, as IMAGE_PATH.npy.")
@click.option("--output", "-o", type=PATH, help="Also write the errors to this JSON file.")
def evaluate(checkpoint: Path, overrides: tuple[str, ...], output: Path | None, **options: Any) -> None:
    """Score CHECKPOINT (a file, or a run folder's newest) on its validation split, changed by KEY=VALUE."""
    from .commands.evaluate import evaluate_checkpoint
    from .commands.tables import print_centered_box, print_differences, print_scores
    from .environment import environment
    from .files import write_json

    with _world(overrides) as world:
        results = evaluate_checkpoint(checkpoint, overrides, console, **options, world=world)
    if world.rank:
        return
    print_scores(console, results["errors"])
    if "centered_box_gt_known_error" in results:
        print_centered_box(console, results["centered_box_gt_known_error"])
    if "differences" in results:
        print_differences(console, f"{checkpoint} minus {options['against']}", results["differences"])
    if output:
        write_json(output, {**results, "environment": environment()})


@main.command()
@click.argument("maps", type=PATH)
@click.option("--metadata", required=True, type=PATH, help="wsolevaluation's lists, test/ etc.")
@click.option("--split", type=SPLITS, help="[default: test, or val if there is none]")
@click.option("--protocol", type=click.Choice(["wsolevaluation", "paper"]), default="wsolevaluation", show_default=True)
@click.option("--interval", type=float, help="Of wsolevaluation's thresholds [default: .001; its command line: .01].")
@click.option("--resize", is_flag=True, help="Take raw maps of any size, such as 14 x 14, and resize them.")
@click.option("--threshold-from", type=SPLITS, help="Choose thresholds on this split [default: on the scored one].")
@click.option("--predictions", type=PATH, help="Lines image_id,class,class… for Top-1, Top-5.")
@click.option("--masks", type=PATH, help="Where the paths of masks start: gives PxAP.")
@click.option("--threads", type=click.IntRange(1, 1024), help="That read and judge maps [default: one a processor].")
@click.option("--output", "-o", type=PATH, help="Also write the errors to this JSON file.")
def score(maps: Path, metadata: Path, output: Path | None, **options: Any) -> None:
    """Score saved MAPS of any method: a folder of IMAGE_ID.npy or .npz, or one .npz of all; no images needed."""
    from .commands.score import score_saved_maps
    from .commands.tables import print_scores
    from .environment import environment
    from .files import write_json

    errors = {str(maps): score_saved_maps(maps, metadata, console, **options)}
    print_scores(console, errors)
    if output:
        write_json(output, {"errors": errors, "environment": environment()})


@main.command()
@click.argument("checkpoint", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("--output", "-o", type=PATH, default=Path("predictions"), show_default=True)
@click.option("--threshold", type=click.IntRange(0, 254), help="Gray level of the boxes [default: the checkpoint's].")
@click.option("--boxes", type=PATH, help="A data set's folder; its boxes are drawn red.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@EMA
def predict(
    checkpoint: Path,
    images: tuple[Path, ...],
    output: Path,
    threshold: int | None,
    boxes: Path | None,
    device: str,
    ema: bool | None,
) -> None:
    """Localize the objects in IMAGES (files or folders) with CHECKPOINT; writes boxes.json and overlays."""
    from .commands.predict import open_predictor, write_predictions

    predictor = open_predictor(checkpoint, device, threshold, ema, console.print)
    count = write_predictions(predictor, images, output, boxes, console)
    console.print(f"{count} images → {output / 'boxes.json'} and {output / 'overlays'}", highlight=False)


@main.command(cls=KeysCommand)
@click.argument("arguments", nargs=-1, required=True, metavar="RUN... [KEY=VALUE]...")
@click.option(
    "--output",
    "-o",
    type=PATH,
    default=Path("report.html"),
    show_default=True,
    help="The page; an old one is replaced.",
)
def report(arguments: tuple[str, ...], output: Path) -> None:
    """Write one HTML page on RUN (run folders or checkpoints): errors, charts, failures and pictures, side by side."""
    from .report.page import write_report

    # A folder may have an equals sign in its name.
    overrides = [text for text in arguments if "=" in text and not os.path.lexists(text)]
    runs = [Path(text) for text in arguments if text not in overrides]
    if not runs:
        raise UserError("no run given; name a run folder, or several to compare")
    size = write_report(runs, overrides, output, console)
    console.print(f"{output} ({size / 1e6:.1f} MB, needs no network)", highlight=False, markup=False)


class ExportCommand(click.Command):
    """A command whose help ends with the code that uses what it writes."""

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        from .commands.export import EXAMPLE

        indented = EXAMPLE.replace("\n", "\n  ")
        self.epilog = f"\b\nFrom a photo to a box, with neither torch nor i2c-fast:\n  {indented}"
        super().format_epilog(context, formatter)


@main.command(cls=ExportCommand)
@click.argument("checkpoint", type=PATH)
@click.option("--output", "-o", type=PATH, required=True, help="File to write: .onnx or .pt2.")
@EMA
def export(checkpoint: Path, output: Path, ema: bool | None) -> None:
    """Write CHECKPOINT's model (a file, or a run folder's newest) as ONNX or as a torch.export program.

    It takes uint8 RGB images [N, 3, S, S] of the checkpoint's image size, normalizes them, and gives `logits` [N, Y]
    and the raw `maps` [N, Y, S/8, S/8] of all classes. The file is kept only if it computes what the model computes.
    """
    from .commands.export import export_checkpoint

    found = export_checkpoint(checkpoint, output, ema)
    threshold = "no threshold of the paper protocol" if found.threshold is None else f"threshold {found.threshold}"
    console.print(
        f"{output}: {found.size / 1e6:.1f} MB, {threshold}; largest difference from the checkpoint's model, relative "
        f"to the largest value: logits {found.logits:.1e}, maps {found.maps:.1e}",
        highlight=False,
        markup=False,
    )


@main.command("validate-data", cls=KeysCommand)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--blacklist", type=PATH, help="Write the broken images here, for data.blacklist.")
@click.option("--output", "-o", type=PATH, help="Also write all findings to this JSON file.")
def validate_data(overrides: tuple[str, ...], blacklist: Path | None, output: Path | None) -> None:
    """Decode every image of data.root=FOLDER (and other data.* keys); list what is broken, odd or without a box."""
    from .commands.validate_data import validate_data_set
    from .config import build_config

    broken = validate_data_set(build_config({}, "defaults", overrides).data, blacklist, output, console)
    sys.exit(1 if broken else 0)


@main.command()
@click.option("--keys", "show_keys", is_flag=True, help="List every configuration key with type and default.")
def recipes(show_keys: bool) -> None:
    """List the recipes that come with the package."""
    from .config import keys, load_recipe, recipe_names

    if show_keys:
        table = Table("key", "type", "default", "meaning", box=None)
        for name, kind, default, text in keys():
            table.add_row(name, kind, json.dumps(default), text)
    else:
        table = Table("recipe", "what it is", box=None)
        for name in recipe_names():
            table.add_row(name, load_recipe(name).description)
    console.print(table)


@main.command()
def env() -> None:
    """Print versions and hardware, for reports and bug reports."""
    from .environment import environment

    for name, value in environment().items():
        click.echo(f"{name:24} {value}")


@main.command(cls=KeysCommand)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--output", "-o", type=PATH, help="Folder [default: runs/demo, or the next free].")
@click.option(
    "--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Of the generated set and run."
)
@click.option("--threads", type=click.IntRange(0, 1024), default=0, help="Processor threads [default: torch's choice].")
def demo(overrides: tuple[str, ...], output: Path | None, seed: int, threads: int) -> None:
    """Generate images, train plain and I²C from one start, compare them: the whole path in minutes on a CPU.

    KEY=VALUE changes what both train by, such as run.precision=bf16.
    """
    from .commands.demo import run_demo
    from .commands.tables import print_centered_box, print_differences, print_scores

    with _world(overrides) as world:
        results = run_demo(output, seed, threads, console, overrides, world)
    if results is None:
        return
    print_scores(console, results["errors"])
    print_differences(console, "I²C minus plain", results["i2c_minus_plain"])
    print_centered_box(console, results["centered_box_gt_known_error"])
    console.print(f"{results['notice']}\nPictures and figures: {results['folder']}", highlight=False)


if __name__ == "__main__":
    main()
