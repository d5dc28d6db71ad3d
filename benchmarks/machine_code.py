"""What the kernels' machine code takes of a multiprocessor, before and after a change. Needs no GPU.

    python -m benchmarks.machine_code                    all kernels of the usual batch, for sm_80, sm_90 and sm_100
    python -m benchmarks.machine_code --op pooled_head   one op; the other ops' rows of this commit stay

Each commit's rows are kept in ``benchmarks/results/machine_code.json``, and the table shows them one under the other.
Instructions are counted once, however often a loop runs them, so that a figure of code with loops is no time.
"""

import datetime
import json
import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from i2c_fast.environment import environment
from i2c_fast.files import write_json

from . import candidates
from .codegen import ARCHITECTURES, all_launches, resources_of
from .sizes import BASE

OUTPUT = Path(__file__).parent / "results" / "machine_code.json"
FIELDS = ("registers", "instructions", "shared", "stack", "local")
Row = dict[str, Any]


def rows_of(name: str, threads: int) -> list[Row]:
    """One row for each kernel of an op, forward and backward, at the usual size."""
    rows: dict[tuple[str, str], Row] = {}
    launches = all_launches((name,), (BASE,))
    for architecture in ARCHITECTURES:
        for one in resources_of(launches, architecture, threads):
            row = rows.setdefault((one.kernel, one.constants), {"kernel": one.kernel, "configuration": one.constants})
            row[f"sm_{architecture}"] = {field: getattr(one, field) for field in FIELDS}
    return list(rows.values())


def table(runs: list[Row], name: str) -> Table:
    """A line for each kernel and commit; numbers of the three architectures with a slash between."""
    out = Table(title=f"{name}: {' / '.join(f'sm_{a}' for a in ARCHITECTURES)}", title_justify="left")
    for heading in ("kernel", "commit", "configuration", *FIELDS):
        out.add_column(heading, justify="right" if heading in FIELDS else "left", overflow="fold")
    lines = [(row["kernel"], run, row) for run in runs for row in run["ops"].get(name, ())]
    for kernel, run, row in sorted(lines, key=lambda line: line[0]):
        numbers = (" / ".join(str(row[f"sm_{a}"][field]) for a in ARCHITECTURES) for field in FIELDS)
        out.add_row(kernel, run["environment"]["commit"], row["configuration"], *numbers)
    return out


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--op", "chosen", multiple=True, type=click.Choice(candidates.NAMES), help="Only this op; repeatable.")
@click.option("--threads", type=click.IntRange(min=1), default=os.cpu_count(), show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=OUTPUT, show_default=True)
def main(chosen: tuple[str, ...], threads: int, output: Path) -> None:
    """Compile, count, and show what earlier commits took."""
    machine = environment()
    runs: list[Row] = json.loads(output.read_text()) if output.exists() else []
    # Writing the file is what makes the clone dirty.
    machine["commit"] = machine["commit"].removesuffix("-dirty")
    mine = next((run for run in runs if run["environment"] == machine), None)
    if mine is None:
        mine = {"environment": machine, "ops": {}}
        runs.append(mine)
    mine["date"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    console = Console(width=None if sys.stdout.isatty() else 160)
    for name in chosen or candidates.NAMES:
        mine["ops"][name] = rows_of(name, threads)
        write_json(output, runs)
        console.print(table(runs, name))
    console.print(f"written to {output}")


if __name__ == "__main__":
    main()
