"""Measure every op and the whole objective against plain PyTorch, after checking that each result is right.

    python benchmarks/kernels.py                           all ops, all sizes
    python benchmarks/kernels.py --quick --op objective    one size of one op

Results go to ``benchmarks/results/kernels_<gpu>.json``, with what became of the promises in `bars`. A run of some ops
keeps what the file holds of the others, if it is of the same machine, versions and commit: where time is short, measure
op by op. Without a GPU the kernels run through Triton's interpreter on tiny inputs, to show that results agree, and no
time is measured.
"""

import datetime
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

# Started as a script, its own folder heads the path, where this file would be found as `kernels`.
ROOT = Path(__file__).resolve().parents[1]
sys.path[0:1] = [str(ROOT)] if sys.path[0] == str(ROOT / "benchmarks") else [sys.path[0]]

import torch  # noqa: E402

if not torch.cuda.is_available():
    os.environ.setdefault("I2C_FAST_BACKEND", "interpret")  # read when the kernels are imported

from rich.console import Console  # noqa: E402

from benchmarks.bars import judge  # noqa: E402
from benchmarks.candidates import HAS_GRAPHS, NAMES, Candidate, Subject, sizes_of, subject  # noqa: E402
from benchmarks.floors import ceilings, copy_us, linear_us, read_us  # noqa: E402
from benchmarks.sizes import SIZES, TINY, TINY_UNUSUAL, UNUSUAL, Size, describe  # noqa: E402
from benchmarks.steps.bars import describe as describe_bar  # noqa: E402
from benchmarks.summary import plot, table  # noqa: E402
from benchmarks.timing import back_to_back, count_kernels, count_synchronizations, measure, peak_memory  # noqa: E402
from benchmarks.verdicts import worst  # noqa: E402
from i2c_fast.environment import environment  # noqa: E402
from i2c_fast.files import write_json  # noqa: E402
from i2c_fast.kernels._triton import BACKEND, runs_triton  # noqa: E402

console = Console(width=None if sys.stdout.isatty() else 160, soft_wrap=False)
Row = dict[str, Any]


def checked(make: Callable[[], Candidate]) -> tuple[Candidate | None, Row]:
    """The candidate if its results are right, and what there is to say of them."""
    try:
        candidate = make()
        verdicts = candidate.check()
    except Exception as problem:  # whatever a provider raises is what the reader has to be told
        return None, {"status": f"failed: {type(problem).__name__}: {str(problem).partition(chr(10))[0]}"}
    name = worst(verdicts)
    error, allowed = verdicts[name]
    if all(verdict.right for verdict in verdicts.values()):
        results = {name: verdict._asdict() for name, verdict in verdicts.items()}
        return candidate, {"status": "ok", "error": error, "allowed": allowed, "of": name, "results": results}
    return None, {"status": f"wrong: {name} has an error of {error:.2g}, allowed {allowed:.2g}"}


def earlier_rows(output: Path, machine: dict[str, Any], chosen: tuple[str, ...]) -> list[Row]:
    """What a results file of the same machine, versions and commit holds of other ops than `chosen`."""
    if not output.exists():
        return []
    report = json.loads(output.read_text())
    # Where the file itself is tracked, writing it is what makes the clone dirty.
    then, now = ({**one, "commit": one["commit"].removesuffix("-dirty")} for one in (report["environment"], machine))
    return [row for row in report["rows"] if row["op"] not in chosen] if then == now else []


def floors_of(measured: Subject, size: Size) -> dict[str, dict[str, float]]:
    """Of each phase, µs that reading or copying its bytes takes, to which the time of its products is added."""
    products = linear_us(*measured.linear, size.torch_dtype) if measured.linear else {}
    return {
        phase: {"read_us": read_us(bytes_), "copy_us": copy_us(bytes_), "linear_us": products.get(phase, 0.0)}
        for phase, bytes_ in measured.bytes.items()
        if bytes_
    }


def run_subject(name: str, size: Size, device: torch.device, repeats: int, wrong: dict[str, str]) -> list[Row]:
    """One row a provider: checked, then timed together with the others if the batch is a usual one.

    `wrong` names providers that failed in an unusual batch before, which are not timed, and is added to.
    """
    measured = subject(name, size, device)
    rows: dict[str, Row] = {}
    right: dict[str, Candidate] = {}
    for provider, make in measured.candidates.items():
        candidate, result = checked(make)
        if candidate is None and size.batch != "paired":
            wrong.setdefault(provider, size.changes())
        elif candidate is not None and provider in wrong:
            result = {"status": f"wrong: not here, but at {wrong[provider]}"}
        rows[provider] = {
            "op": name, "size": describe(size), "changes": size.changes(), "provider": provider, **result,
            "bytes": measured.bytes, "phases": {},
        }  # fmt: skip
        if candidate is not None and provider not in wrong:
            right[provider] = candidate
    if device.type != "cuda" or size.batch != "paired":
        return list(rows.values())

    floors = floors_of(measured, size)
    for phase, floor in floors.items():
        calls = {provider: one.phases[phase] for provider, one in right.items() if phase in one.phases}
        steady = back_to_back(calls)
        for provider, times in measure(calls, repeats).items():
            rows[provider]["phases"][phase] = {
                **times._asdict(),
                "back_to_back_us": steady.get(provider),
                "GB_per_s": measured.bytes[phase] / times.median_us / 1e3,
                "fraction_of_read": (floor["read_us"] + floor["linear_us"]) / times.median_us,
                "fraction_of_copy": (floor["copy_us"] + floor["linear_us"]) / times.median_us,
            }  # fmt: skip
    for provider, candidate in right.items():
        whole = candidate.phases.get("full", candidate.phases.get("forward"))
        assert whole is not None

        def call(whole: Any = whole) -> object:
            return whole.call(whole.prepare())

        rows[provider] |= {
            "kernels": count_kernels(call),
            "synchronizations": count_synchronizations(call),
            "floors": floors,
            # What a graph needs is taken when it is captured.
            "peak_memory": None if any(graph in provider for graph in HAS_GRAPHS) else peak_memory(call),
        }
    return list(rows.values())


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="The usual batch alone: N 80, 2048×28×28, K 3, bf16, channels last.")
@click.option("--op", "chosen", multiple=True, type=click.Choice(NAMES), help="Only this op; may be repeated.")
@click.option("--repeats", type=click.IntRange(min=4), default=50, show_default=True, help="Timed calls of each.")
@click.option("--output", type=click.Path(path_type=Path), help="[default: benchmarks/results/kernels_<gpu>.json]")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Also draw the usual batch, as PNG.")
def main(quick: bool, chosen: tuple[str, ...], repeats: int, output: Path | None, picture: Path | None) -> None:
    """Check, then time, the kernels."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32, in the baselines too
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    if not runs_triton(torch.empty(0, device=device)):
        raise click.ClickException(f"I2C_FAST_BACKEND={BACKEND} runs no kernel on {device.type}; leave it unset")
    unusual, usual = (UNUSUAL, SIZES) if on_gpu else (TINY_UNUSUAL, TINY)
    sizes = usual[:1] if quick else (*unusual, *usual)
    gpu = re.sub(r"\W+", "-", torch.cuda.get_device_name()).strip("-").lower() if on_gpu else "none"
    output = output or ROOT / "benchmarks" / "results" / f"kernels_{gpu}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    chosen, machine = chosen or NAMES, environment()
    report: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/kernels.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": machine,
        "measured": "times of the GPU above" if on_gpu else "results only, in the interpreter; times not measured",
        "ceilings": ceilings() if on_gpu else None,
        "bars": [],
        "rows": earlier_rows(output, machine, chosen),
    }
    for name in chosen:
        wrong: dict[str, str] = {}
        for size in sizes_of(name, sizes):
            rows = run_subject(name, size, device, repeats, wrong)
            report["rows"] += rows
            console.print(table(f"{name}, {size.changes()}", rows))
            for row in rows:
                if row["status"] != "ok":
                    console.print(f"{row['provider']} was not timed: {row['status']}")
            report["bars"] = judge(report["rows"])
            write_json(output, report)
    for bar in report["bars"]:
        console.print(describe_bar(bar))
    console.print(f"{report['measured']}; written to {output}")
    if picture is not None:
        console.print(plot(report, picture))
    if any(row["status"] != "ok" for row in report["rows"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
