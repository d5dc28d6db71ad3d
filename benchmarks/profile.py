"""Where a training step's time goes, kernel by kernel.

    python benchmarks/profile.py                                           our I²C step, ResNet50, N 80
    python benchmarks/profile.py --provider eager+amp --backbone vgg16 --trace runs/vgg16.json.gz

Runs a few steps under torch.profiler, writes a Chrome trace (chrome://tracing, ui.perfetto.dev; gzip) and lists the
costliest kernels. Beside those of convolutions and products stands their floor, FLOPs over the measured rate of a bf16
product; of others no floor is known here. Without a GPU it lists torch's CPU operators of a toy step; their times are
fractions of the step.
"""

# ruff: noqa: E402

import sys
from pathlib import Path

# Started as a script, its own folder heads the path, where the standard library's `profile` would be this file.
ROOT = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(ROOT)] if sys.path[0] == str(ROOT / "benchmarks") else [sys.path[0]]

import datetime
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.floors import ceilings
from benchmarks.steps.providers import PROVIDERS
from benchmarks.steps.setting import Setting, synthetic_batch
from benchmarks.train_step import TOY
from i2c_fast.environment import environment
from i2c_fast.errors import UserError
from i2c_fast.files import write_json

Row = dict[str, Any]
WARMUP = 6
console = Console(width=None if sys.stdout.isatty() else 160, soft_wrap=False)


@dataclass
class Cost:
    """All calls of one kernel in the profiled steps."""

    calls: int = 0
    us: float = 0.0
    flops: float = 0.0


def flops_of(event: Any) -> float:
    """FLOPs of an operator: the profiler's, or of a convolution's backward two products as large as the forward."""
    if event.name == "aten::convolution_backward" and len(event.input_shapes) > 2:
        gradient, _, weight = event.input_shapes[:3]
        return 4.0 * prod(gradient) * prod(weight[1:])
    # Of sums and products element by element the profiler counts each element; no floor follows from that.
    return float(event.flops or 0) if event.name in ("aten::conv2d", "aten::mm", "aten::addmm", "aten::bmm") else 0.0


def kernels_of(event: Any) -> Iterator[Any]:
    """Kernels launched by an operator and by those it called."""
    yield from event.kernels
    for child in event.cpu_children:
        yield from kernels_of(child)


def costs_on_gpu(events: Any) -> dict[str, Cost]:
    """By kernel. An operator's FLOPs count for the longest of the kernels that it launched."""
    found: dict[str, Cost] = {}
    for event in events:
        # Ranges that code names for the profiler appear beside the kernels in them.
        if event.device_type == torch.autograd.DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            cost = found.setdefault(event.name, Cost())
            cost.calls += 1
            cost.us += event.time_range.elapsed_us()
    for event in events:
        launched = list(kernels_of(event)) if flops_of(event) else []
        if launched:
            longest = max(launched, key=lambda kernel: kernel.duration)
            found.setdefault(longest.name, Cost()).flops += flops_of(event)
    return found


def costs_on_cpu(events: Any) -> dict[str, Cost]:
    """By operator, its own time without that of the operators it calls."""
    found: dict[str, Cost] = {}
    for event in events:
        cost = found.setdefault(event.name, Cost())
        cost.calls += 1
        cost.us += event.self_cpu_time_total
        cost.flops += flops_of(event)
    return found


def rows_of(costs: dict[str, Cost], steps: int, rate: float | None, top: int) -> list[Row]:
    """The costliest first; µs and floor are those of a step, and None without a GPU (`rate` None)."""
    whole = sum(cost.us for cost in costs.values())
    ordered = sorted(costs.items(), key=lambda item: -item[1].us)[:top]
    return [
        {
            "name": name,
            "calls": cost.calls / steps,
            "share": cost.us / whole,
            "us": cost.us / steps if rate else None,
            "floor_us": cost.flops / rate * 1e6 / steps if rate and cost.flops else None,
        }
        for name, cost in ordered
    ]


def table(title: str, rows: list[Row]) -> Table:
    out = Table(title=title, title_justify="left")
    for heading in ("kernel", "calls", "share", "µs", "floor µs", "of floor"):
        out.add_column(heading, justify="left" if heading == "kernel" else "right", overflow="ellipsis", no_wrap=True)
    for row in rows:
        us = "not measured" if row["us"] is None else f"{row['us']:.1f}"
        known = row["floor_us"] is not None
        floor = (f"{row['floor_us']:.1f}", f"{row['floor_us'] / row['us']:.0%}") if known else ("none known", "")
        out.add_row(row["name"][:80], f"{row['calls']:g}", f"{row['share']:.1%}", us, *floor)
    return out


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=__doc__)
@click.option("--provider", type=click.Choice(list(PROVIDERS)), default="ours i2c", show_default=True)
@click.option("--backbone", help="[default: resnet50]")
@click.option("--batch", type=click.IntRange(min=2), help="N.  [default: 80]")
@click.option("--size", type=int, help="Side of the images in pixels.  [default: 224]")
@click.option("--steps", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--top", type=click.IntRange(min=1), default=25, show_default=True, help="Kernels to list.")
@click.option("--trace", type=click.Path(path_type=Path), help="[default: a new temporary file, .json.gz]")
@click.option("--output", type=click.Path(path_type=Path), help="[default: benchmarks/results/profile_<gpu>.json]")
def main(
    provider: str, backbone: str | None, batch: int | None, size: int | None, steps: int, top: int,
    trace: Path | None, output: Path | None,
) -> None:  # fmt: skip
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    usual = Setting() if on_gpu else TOY
    setting = replace(
        usual, backbone=backbone or usual.backbone, images=batch or usual.images, image_size=size or usual.image_size
    )
    gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower() if on_gpu else "none"
    output = output or ROOT / "benchmarks" / "results" / f"profile_{gpu}.json"
    trace = trace or Path(tempfile.mkdtemp()) / "trace.json.gz"
    if not trace.name.endswith(".json.gz"):
        raise click.BadParameter(f"--trace {trace}: the name must end with .json.gz")
    trace.parent.mkdir(parents=True, exist_ok=True)
    limits = ceilings() if on_gpu else None
    try:
        trainer = PROVIDERS[provider](setting, device)
    except UserError as error:
        raise click.ClickException(str(error)) from None
    trainer.set_flags()
    given = trainer.prepare(synthetic_batch(setting, device))
    for _ in range(WARMUP):
        trainer.step(given)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, record_shapes=True, with_flops=True) as profiler:
        for _ in range(steps):
            trainer.step(given)
        if on_gpu:
            torch.cuda.synchronize()
    profiler.export_chrome_trace(str(trace))
    costs = (costs_on_gpu if on_gpu else costs_on_cpu)(profiler.events())
    rows = rows_of(costs, steps, limits["matmul_bf16_TFLOP_per_s"] * 1e12 if limits else None, top)
    report: Row = {
        "command": " ".join(["python", "benchmarks/profile.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "measured": "times of the GPU above" if on_gpu else "CPU operators of a toy step; times not measured",
        "ceilings": limits,
        "setting": {**setting.facts(), "provider": provider, "steps": steps},
        "kernels": rows,
    }
    write_json(output, report)
    console.print(table(f"{provider}: {setting.backbone}, N {setting.images}, {setting.image_size} px, a step", rows))
    console.print(f"{report['measured']}; trace in {trace}; written to {output}", soft_wrap=True)


if __name__ == "__main__":
    main()
