#!/usr/bin/env python3
"""Scale on paper: what ranks exchange in a step of I²C, how long that takes, and what storage has to deliver.

    python benchmarks/scaling.py                          three backbones, 8 to 1,024 ranks
    python benchmarks/scaling.py --network 400 --mfu 0.35

Nothing here is measured. Bytes come from the code: the models' parameters, `kernels._pairs.new_rows`, the rule of
`ranks.RankExchange`. Times follow from them by speeds that are options. With R ranks of G on a node, n = R/G nodes, a
message of S bytes, v and w the speed inside a node (of a GPU) and between nodes (of a node), l and m the latency of a
hop there:

    ring          all-reduce 2(R − 1)·(S/(R·u) + h)       all-gather of S bytes a rank (R − 1)·(S/u + h)
                  with u, h = v, l on one node; else the slower of both speeds and m
    hierarchical  all-reduce 2(G − 1)·(S/(G·v) + l) + 2(n − 1)·(S/(n·w) + m)
                  all-gather (n − 1)·(G·S/w + m) + (G − 1)·(n·S/v + l)

A ring crosses each node's border once, and NCCL has one for each adapter, so a ring may use all of w. Buckets of
gradients go one after the other. Without overlap they wait for the end of backward; with it, at best, only the last
bucket does, and what takes longer than backward. The objective's exchange stands between forward and backward, that of
the terms after backward. Objects (stop requests, unreadable images) go by gloo over TCP, in two rings of R − 1 hops,
every ``run.log_every`` steps. What ``model.bn=sync`` would add stands apart: means and variances of each layer are
gathered going forward, and two sums of each reduced going backward.
"""

# ruff: noqa: E402

import sys
from pathlib import Path

# Started as a script, its own folder heads the path, where the standard library's `profile` would be `profile.py`.
ROOT = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(ROOT)] if sys.path[0] == str(ROOT / "benchmarks") else [sys.path[0]]

import pickle
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import click
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.steps.measure import flops
from i2c_fast.environment import environment
from i2c_fast.files import write_json
from i2c_fast.kernels._pairs import new_rows
from i2c_fast.models import build_localizer

BACKBONES = ("resnet50", "vgg16", "inception_v3")
RANKS = (8, 16, 32, 64, 128, 256, 512, 1024)
TRAINING_IMAGES = 1_281_167  # of ILSVRC
FP32 = 4
# DistributedDataParallel's: a small bucket first, so that the exchange begins early.
FIRST_BUCKET, BUCKET = 1 << 20, 25 << 20
TERMS = 6  # that `methods.i2c` returns
WORTH = 0.8  # of the speed that as many GPUs without any exchange would have
Row = dict[str, Any]
Way = Literal["ring", "hierarchical"]
WAYS: tuple[Way, ...] = ("ring", "hierarchical")
CHANGES: dict[str, dict[str, Any]] = {
    "as above": {},
    "run.log_every=100": {"log_every": 100},
    "… and 4 micro-batches, each as large": {"log_every": 100, "micro_batches": 4},
    "… and a network of 400 GB/s": {"log_every": 100, "micro_batches": 4, "network": 400e9},
}


@dataclass(frozen=True)
class Machine:
    """Speeds in bytes a second one way, latencies in seconds a hop, and what a step computes with."""

    gpus: int = 8  # G
    nvlink: float = 450e9  # v
    network: float = 50e9  # w
    nvlink_latency: float = 3e-6  # l
    network_latency: float = 10e-6  # m
    host_latency: float = 50e-6  # of a hop of gloo
    attained: float = 0.8  # fraction of both speeds
    matmul: float = 790e12  # FLOP/s
    mfu: float = 0.45
    jpeg_bytes: float = 108e3
    log_every: int = 10
    micro_batches: int = 1


@dataclass(frozen=True)
class Model:
    """What counts of a backbone with its head."""

    name: str
    sizes: tuple[int, ...]  # elements of each parameter, in the order of registration
    row: int  # elements of a row of the objective's exchange
    classes: int  # Y
    flops: float  # of an image, forward and backward
    norms: tuple[int, ...]  # channels of each BatchNorm

    @property
    def parameters(self) -> int:
        return sum(self.sizes)


def read_model(name: str, classes: int, k: int = 3, image_size: int = 224) -> Model:
    """Facts of the real model, without its memory."""
    with torch.device("meta"):
        model = build_localizer(name, classes)
    row = new_rows(torch.empty(0, device="meta"), 1, model.feature_dim, k, "squared_l2").shape[1]
    norms = tuple(module.num_features for module in model.modules() if isinstance(module, _BatchNorm))
    sizes = tuple(parameter.numel() for parameter in model.parameters())
    return Model(name, sizes, row, classes, flops(model, 1, image_size), norms)


def buckets(sizes: Iterable[int]) -> list[int]:
    """Bytes of each bucket of fp32 gradients, in the order in which backward fills them."""
    found, limit = [0], FIRST_BUCKET
    for size in reversed(tuple(sizes)):
        if found[-1] >= limit:
            found.append(0)
            limit = BUCKET
        found[-1] += size * FP32
    return found


def exchanged_rows(model: Model, ranks: int, images: int) -> tuple[str, int, int]:
    """What the objective exchanges, see `ranks.RankExchange`.

    Returns:
        "rows" of all images, gathered, or a "table" of all classes, reduced; bytes that a rank gives, and ends up with.
    """
    own = images * model.row * FP32
    if ranks * images <= model.classes:
        return "rows", own, ranks * own
    table = (model.classes + 2) * model.row * FP32
    return "table", table, table


def all_reduce(size: float, ranks: int, machine: Machine, way: Way) -> float:
    """Seconds, by the formulas above."""
    on_node, nodes, v, w = _layout(ranks, machine)
    if way == "ring":
        speed, latency = (v, machine.nvlink_latency) if nodes == 1 else (min(v, w), machine.network_latency)
        return 2 * (ranks - 1) * (size / (ranks * speed) + latency)
    inside = 2 * (on_node - 1) * (size / (on_node * v) + machine.nvlink_latency)
    return inside + 2 * (nodes - 1) * (size / (nodes * w) + machine.network_latency)


def all_gather(size: float, ranks: int, machine: Machine, way: Way) -> float:
    """Seconds, by the formulas above; `size` is what one rank gives."""
    on_node, nodes, v, w = _layout(ranks, machine)
    if way == "ring":
        speed, latency = (v, machine.nvlink_latency) if nodes == 1 else (min(v, w), machine.network_latency)
        return (ranks - 1) * (size / speed + latency)
    between = (nodes - 1) * (on_node * size / w + machine.network_latency)
    return between + (on_node - 1) * (nodes * size / v + machine.nvlink_latency)


def _layout(ranks: int, machine: Machine) -> tuple[int, int, float, float]:
    """Ranks on a node, nodes, and the speeds attained; all nodes hold equally many ranks."""
    on_node = max(count for count in range(1, machine.gpus + 1) if ranks % count == 0)
    return on_node, ranks // on_node, machine.nvlink * machine.attained, machine.network * machine.attained


def row_of(model: Model, ranks: int, images: int, machine: Machine) -> Row:
    """A step of `ranks` that take `images` each in every micro-batch."""
    parts, batch = machine.micro_batches, ranks * images * machine.micro_batches
    compute = parts * images * model.flops / (machine.matmul * machine.mfu)
    kind, given, held = exchanged_rows(model, ranks, images)
    of_bucket = buckets(model.sizes)
    message = len(pickle.dumps((None, [])))
    objects = 2 * (ranks - 1) * machine.host_latency / machine.log_every
    row: Row = {
        "backbone": model.name, "ranks": ranks, "nodes": _layout(ranks, machine)[1], "images_a_rank": parts * images,
        "images": batch, "steps_an_epoch": -(-TRAINING_IMAGES // batch), "compute_ms": compute * 1e3,
        "gradient_bytes": sum(of_bucket), "buckets": len(of_bucket), "objective": kind, "objective_bytes": held,
        "term_bytes": TERMS * FP32, "object_bytes": message, "objects_ms": objects * 1e3, "ways": {},
    }  # fmt: skip
    for way in WAYS:
        gradients = [all_reduce(size, ranks, machine, way) for size in of_bucket]
        objective = parts * (all_gather if kind == "rows" else all_reduce)(given, ranks, machine, way)
        terms = all_reduce(TERMS * FP32, ranks, machine, way)
        norms = [2 * channels * FP32 for channels in model.norms]
        synced = sum(f(size, ranks, machine, way) for size in norms for f in (all_gather, all_reduce))
        # Backward is two thirds of the work; only that of the last micro-batch has gradients to exchange.
        left = max(gradients[-1], sum(gradients) - compute / parts * 2 / 3)
        always = compute + objective + terms + objects
        row["ways"][way] = {
            "gradients_ms": sum(gradients) * 1e3, "objective_ms": objective * 1e3, "terms_ms": terms * 1e3,
            "bn_sync_ms": parts * synced * 1e3,
            "step_ms": (always + sum(gradients)) * 1e3, "efficiency": compute / (always + sum(gradients)),
            "overlapped_step_ms": (always + left) * 1e3, "overlapped_efficiency": compute / (always + left),
        }  # fmt: skip
    rate = batch / row["ways"]["hierarchical"]["overlapped_step_ms"] * 1e3
    row |= {"images_per_s": rate, "read_bytes_per_s": rate * machine.jpeg_bytes}
    return row


def stops_paying(rows: list[Row]) -> Row:
    """For each way of exchange: the first number of ranks whose efficiency is below `WORTH`; None if none is."""
    return {
        f"{way}{', overlapped' * (key != 'efficiency')}": next(
            (row["ranks"] for row in rows if row["ways"][way][key] < WORTH), None
        )
        for way in WAYS
        for key in ("efficiency", "overlapped_efficiency")
    }


def models_table(models: list[Model]) -> Table:
    """What is exchanged and kept, whatever the ranks."""
    table = Table("backbone", title="MB of a rank", title_justify="left", box=None)
    for heading in ("parameters", "gradients", "buckets", "momentum", "80 rows", "table", "bn=sync, each way"):
        table.add_column(heading, justify="right")
    for model in models:
        mega = [model.parameters, model.parameters * FP32, model.parameters * FP32]
        rows = [80 * model.row * FP32, exchanged_rows(model, 2, model.classes)[1]]
        parameters, gradients, momentum, of_images, of_classes = (f"{size / 1e6:.1f}" for size in (*mega, *rows))
        norms = f"{2 * sum(model.norms) * FP32 / 1e6:.2f} in {len(model.norms)}"
        table.add_row(
            model.name, f"{parameters} M", gradients, str(len(buckets(model.sizes))), momentum, of_images, of_classes,
            norms,
        )  # fmt: skip
    return table


def table_of(title: str, rows: list[Row]) -> Table:
    """One line a number of ranks."""
    table = Table(title=title, title_justify="left", box=None)
    for heading in (
        "ranks", "images", "steps/epoch", "compute ms", "objective MB", "ring ms", "efficiency", "overlapped",
        "hierarchical ms", "efficiency", "overlapped", "images/s", "GB/s", "a node",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for row in rows:
        cells = [str(row["ranks"]), f"{row['images']:,}", f"{row['steps_an_epoch']:,}", f"{row['compute_ms']:.1f}"]
        cells.append(f"{row['objective']} {row['objective_bytes'] / 1e6:.1f}")
        for way in WAYS:
            one = row["ways"][way]
            cells.append(f"{one['step_ms'] - row['compute_ms']:.1f}")
            cells += [f"{one[key]:.0%}" for key in ("efficiency", "overlapped_efficiency")]
        gigas = row["read_bytes_per_s"] / 1e9
        table.add_row(*cells, f"{row['images_per_s']:,.0f}", f"{gigas:.1f}", f"{gigas / row['nodes']:.2f}")
    return table


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--backbone", "backbones", multiple=True, help="May be repeated.  [default: the paper's three]")
@click.option(
    "--ranks", "numbers", multiple=True, type=click.IntRange(min=2), help="May be repeated.  [default: 8 … 1024]"
)
@click.option("--classes", default=1000, show_default=True, help="Y.")
@click.option("--slots", default=40, show_default=True, help="P of one rank, and of all ranks for strong scaling.")
@click.option("--gpus", default=8, show_default=True, help="Ranks on a node.")
@click.option("--nvlink", default=450.0, show_default=True, help="GB/s of a GPU to the others of its node, one way.")
@click.option("--network", default=50.0, show_default=True, help="GB/s of a node to others, one way.")
@click.option("--attained", default=0.8, show_default=True, help="Fraction of both that collectives attain.")
@click.option("--latency", default=10.0, show_default=True, help="µs of a hop between nodes.")
@click.option("--nvlink-latency", default=3.0, show_default=True, help="µs of a hop inside a node.")
@click.option("--host-latency", default=50.0, show_default=True, help="µs of a hop of gloo over TCP.")
@click.option("--mfu", default=0.45, show_default=True, help="Fraction of --matmul that a step attains.")
@click.option("--matmul", default=790.0, show_default=True, help="TFLOP/s of bf16 products.")
@click.option("--jpeg-kb", default=108.0, show_default=True, help="Mean size of a file; ILSVRC's 138 GB / 1.28 M.")
@click.option("--log-every", default=10, show_default=True, help="As run.log_every.")
@click.option("--micro-batches", default=1, show_default=True, help="Each of --slots a rank.")
@click.option("--output", type=click.Path(path_type=Path), default=ROOT / "benchmarks/results/scaling.json")
def main(
    backbones: tuple[str, ...], numbers: tuple[int, ...], classes: int, slots: int, gpus: int, nvlink: float,
    network: float, attained: float, latency: float, nvlink_latency: float, host_latency: float, mfu: float,
    matmul: float, jpeg_kb: float, log_every: int, micro_batches: int, output: Path,
) -> None:  # fmt: skip
    """Compute what a step exchanges and how it scales; nothing is measured.

    Weak scaling: each rank has P slots of 2 images, so the batch grows with the ranks. Strong scaling: they share P.
    """
    console = Console(width=None if sys.stdout.isatty() else 180)
    machine = Machine(
        gpus, nvlink * 1e9, network * 1e9, nvlink_latency / 1e6, latency / 1e6, host_latency / 1e6, attained,
        matmul * 1e12, mfu, jpeg_kb * 1e3, log_every, micro_batches,
    )  # fmt: skip
    models = [read_model(name, classes) for name in backbones or BACKBONES]
    report: Row = {
        "benchmark": "scaling",
        "measured": "nothing: computed from the code's numbers and the speeds below",
        "command": " ".join(["python", "benchmarks/scaling.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(),
        "machine": asdict(machine),
        "backbones": {},
    }
    console.print(models_table(models))
    for model in models:
        weak = [row_of(model, ranks, 2 * slots, machine) for ranks in numbers or RANKS]
        dividing = [ranks for ranks in range(1, slots + 1) if slots % ranks == 0]
        strong = [row_of(model, ranks, 2 * slots // ranks, machine) for ranks in dividing]
        changed = {
            text: row_of(model, weak[-1]["ranks"], 2 * slots, replace(machine, **fields))
            for text, fields in CHANGES.items()
        }
        report["backbones"][model.name] = {
            "parameters": model.parameters, "momentum_bytes": model.parameters * FP32,
            "GFLOP_an_image": model.flops / 1e9,
            "weak": weak, "weak_stops_paying": stops_paying(weak), "strong": strong,
            "strong_stops_paying": stops_paying(strong), "changes": changed,
        }  # fmt: skip
        console.print()
        console.print(table_of(f"{model.name}, weak scaling: {slots} slots of 2 images a rank", weak))
        console.print(table_of(f"{model.name}, strong scaling: {slots} slots of 2 images in all", strong))
        for name, rows in (("weak", weak), ("strong", strong)):
            found = "; ".join(f"{way} {ranks or 'at none'}" for way, ranks in stops_paying(rows).items())
            console.print(f"Below {WORTH:.0%} ({name}) at ranks: {found}", highlight=False)
        added = weak[-1]["ways"]["hierarchical"]["bn_sync_ms"]
        console.print(f"{weak[-1]['ranks']} ranks, hierarchical: model.bn=sync adds {added:.0f} ms", highlight=False)
        for text, row in changed.items():
            best = row["ways"]["hierarchical"]
            console.print(
                f"{row['ranks']} ranks, hierarchical, overlapped, {text}: {best['overlapped_efficiency']:.0%}",
                highlight=False,
            )
    write_json(output, report)
    console.print(f"computed, not measured; written to {output}")


if __name__ == "__main__":
    main()
