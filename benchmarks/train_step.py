"""Measure whole training steps, ours and others', after checking that they compute the same gradient.

    python benchmarks/train_step.py                                     three backbones, N 10, 40, 80 and 160
    python benchmarks/train_step.py --backbone resnet50 --batch 80      one case
    python benchmarks/train_step.py --data FOLDER data.workers=8        from files: how long the step waits for images
    python benchmarks/train_step.py --host                              what the host does; needs no GPU

Results go to ``benchmarks/results/train_step_<gpu>.json``, with what became of the promises in `steps.bars`. A run of
some cases or providers keeps what the file holds of the others, if it is of the same machine and versions; ratios are
taken between rows of one run. Without a GPU a toy model trains on a toy batch, to show that gradients agree, and times
are ratios. ``key=value`` changes the configuration of our trainer.
"""

import datetime
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

# Started as a script, its own folder heads the path, where this file would be found as `train_step`.
ROOT = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(ROOT)] if sys.path[0] == str(ROOT / "benchmarks") else [sys.path[0]]

import torch  # noqa: E402
from rich.console import Console  # noqa: E402

from benchmarks.floors import ceilings  # noqa: E402
from benchmarks.steps.bars import describe, judge  # noqa: E402
from benchmarks.steps.files import run_files  # noqa: E402
from benchmarks.steps.host import host_table, measure_host  # noqa: E402
from benchmarks.steps.loader_results import loader_rate  # noqa: E402
from benchmarks.steps.providers import PROVIDERS  # noqa: E402
from benchmarks.steps.run import run_case  # noqa: E402
from benchmarks.steps.setting import Setting  # noqa: E402
from benchmarks.steps.summary import files_table, plot, shares_table, table  # noqa: E402
from i2c_fast.environment import environment  # noqa: E402
from i2c_fast.errors import UserError  # noqa: E402
from i2c_fast.files import write_json  # noqa: E402

console = Console(width=None if sys.stdout.isatty() else 160, soft_wrap=False)
Row = dict[str, Any]
BACKBONES, BATCHES = ("resnet50", "vgg16", "inception_v3"), (80, 10, 40, 160)
TOY = Setting("resnet18", 4, 32, 10, "fp32")


def earlier(output: Path, machine: dict[str, Any]) -> Row:
    """What a results file of the same machine and versions holds; rows name their commit."""
    if not output.exists():
        return {"rows": [], "host": []}
    report: Row = json.loads(output.read_text())
    then, now = ({**one, "commit": ""} for one in (report["environment"], machine))
    return report if then == now else {"rows": [], "host": []}


def key_of(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("backbone", "images", "image_size", "classes", "precision", "data", "provider"))


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
@click.option("--backbone", "backbones", multiple=True, help="May be repeated.  [default: the paper's three]")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(min=2), help="N; may be repeated.")
@click.option("--size", type=int, help="Side of the images in pixels.  [default: 224]")
@click.option("--classes", type=int, help="Y.  [default: 1000]")
@click.option("--precision", type=click.Choice(["bf16", "fp16", "tf32", "fp32"]), help="Of ours and the amp rows.")
@click.option("--provider", "chosen", multiple=True, type=click.Choice(list(PROVIDERS)), help="May be repeated.")
@click.option("--data", default="synthetic", show_default=True, help="Or a data set's folder.")
@click.option("--host", is_flag=True, help="Host time of a step whose kernels are stubbed.")
@click.option("--rounds", type=click.IntRange(min=2), default=10, show_default=True, help="Turns of each provider.")
@click.option("--steps", type=click.IntRange(min=1), default=5, show_default=True, help="Steps a turn.")
@click.option("--output", type=click.Path(path_type=Path), help="[default: benchmarks/results/train_step_<gpu>.json]")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Also draw images/s, as PNG.")
@click.argument("overrides", nargs=-1)
def main(
    backbones: tuple[str, ...], batches: tuple[int, ...], size: int | None, classes: int | None, precision: str | None,
    chosen: tuple[str, ...], data: str, host: bool, rounds: int, steps: int, output: Path | None,
    picture: Path | None, overrides: tuple[str, ...],
) -> None:  # fmt: skip
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    usual = Setting() if on_gpu or host else TOY
    usual = replace(
        usual, image_size=size or usual.image_size, classes=classes or usual.classes,
        precision=precision or usual.precision,
    )  # fmt: skip
    backbones = backbones or (BACKBONES if on_gpu or host else (TOY.backbone,))
    batches = batches or (BATCHES if on_gpu else (TOY.images,))
    if odd := [images for images in batches if images % 2 or images > 2 * usual.classes]:
        raise click.BadParameter(f"--batch {odd[0]}: a batch has two images of each of at most {usual.classes} classes")
    gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower() if on_gpu else "none"
    output = output or ROOT / "benchmarks" / "results" / f"train_step_{gpu}.json"
    machine, now = environment(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    kept = earlier(output, machine)
    limits = ceilings() if on_gpu and not host else kept.get("ceilings")
    report: Row = {
        "command": " ".join(["python", "benchmarks/train_step.py", *sys.argv[1:]]),
        "date": now,
        "environment": machine,
        "measured": "times of the GPU above" if on_gpu else "agreement and ratios; times not measured",
        "ceilings": limits,
        "bars": [],
        "rows": kept["rows"],
        "host": kept["host"],
    }
    try:
        for backbone in backbones:
            if host:
                rows = measure_host(backbone, rounds, steps)
                report["host"] = [row for row in report["host"] if row["backbone"] != backbone] + _dated(
                    rows, machine, now
                )
                console.print(host_table(backbone, rows))
                write_json(output, report)
                continue
            for images in batches:
                setting = replace(usual, backbone=backbone, images=images)
                title = f"{backbone}, N {images}, {setting.image_size} px, {setting.precision}"
                if data == "synthetic":
                    rate = limits["matmul_bf16_TFLOP_per_s"] * 1e12 if limits else None
                    rows = run_case(setting, chosen or tuple(PROVIDERS), device, rounds, steps, rate)
                    console.print(table(title, rows), shares_table(rows))
                else:
                    rows = run_files(setting, chosen or ("ours i2c",), device, data, rounds * steps, overrides)
                    console.print(files_table(f"{title}, from {data}", rows))
                rows = _dated(rows, machine, now)
                taken = {key_of(row) for row in rows}
                report["rows"] = [row for row in report["rows"] if key_of(row) not in taken] + rows
                report["bars"] = judge(report["rows"], loader_rate(_read(output.with_name(f"loader_{gpu}.json"))))
                write_json(output, report)
                for row in rows:
                    if row["status"] != "ok":
                        console.print(f"{row['provider']} was not measured: {row['status']}")
    except UserError as error:
        raise click.ClickException(str(error)) from None
    for bar in report["bars"]:
        console.print(describe(bar))
    console.print(f"{report['measured']}; written to {output}")
    if picture is not None:
        console.print(plot(report, picture))
    if any(row["status"].startswith(("failed", "wrong")) for row in report["rows"]):
        sys.exit(1)


def _read(path: Path) -> Row | None:
    return json.loads(path.read_text()) if path.exists() else None


def _dated(rows: list[Row], machine: dict[str, Any], now: str) -> list[Row]:
    return [{**row, "run": now, "commit": machine["commit"]} for row in rows]


if __name__ == "__main__":
    main()
