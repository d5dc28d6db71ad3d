"""Host time of a step of the objective, forward and backward, with stubbed launches. Needs no GPU.

    python benchmarks/host_time.py                     kept kernels against Triton's binder
    python benchmarks/host_time.py --before 1a2b3c4    and against another commit

Tensors are small and lie on the CPU, kernels are compiled for sm_90, and what Triton hands to the driver ends there:
the rest is what the host does, in seconds of the process: Python, binder, allocations, autograd. Processes take turns,
and only ratios within one run mean something. Beside it: whether one workspace for all outputs, cut into views, would
cost less than an allocation each. Results go to ``benchmarks/results/host_time.json``.
"""

import datetime
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "benchmarks" / "results" / "host_time.json"
COUNTED = "I2C_FAST_COUNTED_SOURCES"  # names the clone that a process of another commit measures
if sys.path[0] == str(ROOT / "benchmarks"):  # started as a script, its own folder heads the path
    sys.path[0] = os.environ.get(COUNTED, str(ROOT))
KEPT, BINDER, BEFORE = "kept kernels", "Triton's binder", "before"
BLOCKS, STEPS = 100, 10


def stub(launched: list[tuple[Any, ...]] | None = None) -> Any:
    """A driver that runs nothing, and notes in a list what it was to launch: programs, binary, arguments."""
    from benchmarks.codegen import _Target

    class Utilities:
        def load_binary(self, name: str, binary: bytes, *_: Any) -> tuple[Any, ...]:
            return "module", binary, 0, 0, 1024

        def get_device_properties(self, _: int) -> dict[str, int]:
            return {"max_shared_mem": 227 << 10}

    def run(x: int, y: int, z: int, stream: int, binary: bytes, metadata: Any, _: object, *arguments: Any) -> None:
        if launched is not None:
            launched.append(((x, y, z), stream, binary, metadata, *arguments))

    class Driver(_Target):
        utils = Utilities()

        def launcher_cls(self, *_: Any) -> Callable[..., None]:
            return run

    return Driver(90)


def step_us(binder: bool) -> float:
    """Microseconds of a step, in the block of steps that was disturbed least."""
    import importlib
    import pkgutil

    import torch
    import triton

    from benchmarks.objective import fused, make_batch
    from benchmarks.sizes import Size
    from i2c_fast import kernels

    for name in (f"{kernels.__name__}.{module.name}" for module in pkgutil.iter_modules(kernels.__path__)):
        module: Any = importlib.import_module(name)
        if hasattr(module, "runs_triton"):
            module.runs_triton = lambda _: True
        if binder and hasattr(module, "KEEPS"):
            module.KEEPS = False
    triton.runtime.driver.set_active(stub())
    torch.manual_seed(0)
    size, device = Size(8, 20, 3, 64, 7, 7, 64), torch.device("cpu")
    batch, bank = make_batch(size, device)
    step = fused(size, device, in_place=True)
    for _ in range(20):
        step(batch, bank)
    blocks = []
    for _ in range(BLOCKS):
        began = time.process_time()
        for _ in range(STEPS):
            step(batch, bank)
        blocks.append((time.process_time() - began) / STEPS * 1e6)
    return min(blocks)


def workspace_ratio() -> float:
    """Time to cut the objective's nine outputs out of one tensor, over the time to allocate each of them."""
    import torch

    images, channels, chunks, wide = 80, 2048, 8, torch.int64
    scalars = [((), torch.float32), ((), wide)] * 2
    outputs = [*scalars, *[((images,), wide)] * 2, *[((images, channels), torch.float32)] * 2]
    outputs.append(((images, chunks), torch.float32))
    ends, end = [], 0
    for shape, dtype in outputs:
        ends.append((end, end + dtype.itemsize * torch.Size(shape).numel()))
        end = -(-ends[-1][1] // 16) * 16  # kernels read what 16 divides in fewer instructions

    def allocate() -> object:
        return [torch.empty(shape, dtype=dtype) for shape, dtype in outputs]

    def cut() -> object:
        workspace = torch.empty(end, dtype=torch.uint8)
        parts = zip(outputs, ends, strict=True)
        return [workspace[first:last].view(dtype).view(shape) for (shape, dtype), (first, last) in parts]

    least = {allocate: float("inf"), cut: float("inf")}
    for _ in range(10 * BLOCKS):
        for call in least:
            began = time.process_time()
            for _ in range(STEPS):
                call()
            least[call] = min(least[call], time.process_time() - began)
    return least[cut] / least[allocate]


def in_process(name: str, sources: Path) -> float:
    """`step_us` in a process of its own, on the sources of a clone."""
    environment = os.environ | {COUNTED: str(sources), "PYTHONPATH": str(sources)}
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", name]
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--before", "commit", help="A commit to compare with.")
@click.option("--turns", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=OUTPUT, show_default=True)
@click.option("--worker", hidden=True)
def main(commit: str | None, turns: int, output: Path, worker: str | None) -> None:
    """Measure in turns; print ratios."""
    if worker is not None:
        click.echo(step_us(worker == BINDER))
        return
    from i2c_fast.environment import environment
    from i2c_fast.files import write_json

    with tempfile.TemporaryDirectory() as folder:
        sources = {KEPT: ROOT, BINDER: ROOT}
        if commit is not None:
            archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=True)
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
            sources[BEFORE] = Path(folder)
        found: dict[str, list[float]] = {name: [] for name in sources}
        for _ in range(turns):
            for name, where in sources.items():
                found[name].append(in_process(name, where))
    # The least of all turns: what disturbs a process only adds to its time.
    ratios = {name: min(times) / min(found[KEPT]) for name, times in found.items() if name != KEPT}
    write_json(output, {
        "command": " ".join(["python", "benchmarks/host_time.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "environment": environment(), "before": commit, "times_the_host_time_of_kept_kernels": ratios, "step_us": found,
        "workspace_over_allocations": (workspace := workspace_ratio()),
    })  # fmt: skip
    for name, ratio in ratios.items():
        click.echo(f"{name}: {ratio:.2f} times the host time of {KEPT}")
    click.echo(f"one workspace: {workspace:.2f} times the time of nine allocations")
    click.echo(f"written to {output}")


if __name__ == "__main__":
    main()
