"""`i2c-fast` on several ranks: how tests start them, and the program of each.

Python's start and torch's import are most of a small run's time. So one set of ranks runs many command lines, and ranks
that torchrun does not start fork from a server that has imported the package.
"""

import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from i2c_fast.cli import main
from i2c_fast.data import TrainBatch
from i2c_fast.data.generated import write_generated
from i2c_fast.methods import Setup
from i2c_fast.training import load_checkpoint, run, stage
from i2c_fast.training.loop import Trainer
from i2c_fast.training.step import TrainStep

from .. import tiny  # noqa: F401  registers it
from ..processes import server

# Two stages of five steps on `write_set`, which any number of ranks trains alike.
SMALL = (
    "data.image_size=32", "data.short_side=36", "data.workers=0", "data.loader=opencv",
    "model.backbone=tiny", "model.weights=none", "model.dropout=0", "model.bn=frozen",
    "batch.classes=4", "batch.images=2", "stage0.method=cam", "stage0.epochs=1", "stage0.lr=0.01",
    "stage1.method=i2c", "stage1.epochs=1", "stage1.lr=0.01", "optim.head_factor=1", "optim.head_bias_factor=1",
    "eval.threshold_step=16", "eval.batch=4", "eval.every=0", "run.device=cpu", "run.deterministic=true",
    "run.log_every=2", "run.precision=fp64", "run.rank_timeout=60",
)  # fmt: skip

HANGS = 600  # seconds that no job takes: a rank then tells where it stands, and ends


@dataclass
class Job:
    """A command line by its name, and what goes wrong meanwhile.

    In `arguments`, ``{rank}`` stands for the rank. `fault` is a signal that `rank` sends itself before its step number
    `step`, unless it was started anew; ``nan``, the values of its images at that step; ``local means``, on all ranks;
    or ``other code``.
    """

    name: str
    arguments: Sequence[str | Path]
    fault: str = ""
    rank: int = 1
    step: int = 0


def train_job(folder: Path, name: str, data: Path, *changes: str, fault: tuple[str, int, int] = ("", 1, 0)) -> Job:
    """`i2c-fast train` of `SMALL`, changed, with its run in ``folder/name``; `changes` may hold options too.

    The last of several ``-o`` counts.
    """
    recipe = folder / "empty.toml"
    recipe.write_text("")
    return Job(name, ["train", recipe, f"data.root={data}", *SMALL, "-o", folder / name, *changes], *fault)


def write_set(root: Path) -> Path:
    """Five classes of eight training images; neither 2 nor 3 divides the 25 validation images, nor their 7 batches."""
    write_generated(root, seed=0, classes=5, train_images=8, val_images=5, size=32)
    return root


@dataclass
class Ended:
    """How each rank left a job; None where it did not come to its end."""

    codes: list[int | None]
    errors: list[str]

    @property
    def told(self) -> list[str]:
        """Lines of all ranks' stderr."""
        return "".join(self.errors).splitlines()


def ended(folder: Path, name: str, ranks: int) -> Ended:
    """What the ranks left of a job."""
    codes = [folder / f"{name}.{rank}.code" for rank in range(ranks)]
    errors = [folder / f"{name}.{rank}.err" for rank in range(ranks)]
    return Ended(
        [int(code.read_text()) if code.exists() else None for code in codes],
        [error.read_text() if error.exists() else "" for error in errors],
    )


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Weights, bank, counters, momentum and EMA of a run's newest checkpoint, or of a file a rank kept."""
    state = load_checkpoint(path) if path.is_dir() else torch.load(path)
    momentum = state["train_step"]["optimizer"]["state"]
    return {
        **state["model"],
        **state["method"],
        **{f"momentum.{number}": entry["momentum_buffer"] for number, entry in momentum.items()},
        **({f"ema.{name}": value for name, value in state["ema"]["weights"].items()} if state["ema"] else {}),
    }


def lines(path: Path) -> list[dict[str, Any]]:
    """A run's log, or a file like it."""
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def difference(first: Path, second: Path) -> float:
    """Largest of tensors and logged values, relative to the largest of the tensor or to the value."""
    one, other = tensors_of(first), tensors_of(second)
    assert one.keys() == other.keys()
    pairs = [(tensor.double(), other[name].double()) for name, tensor in one.items()]
    found = [float((a - b).abs().max() / a.abs().max().clamp(min=1e-300)) for a, b in pairs]
    steps, others = lines(first), lines(second)
    assert [line["step"] for line in steps] == [line["step"] for line in others]
    for line, counterpart in zip(steps, others, strict=True):
        assert line.keys() == counterpart.keys()
        found += [abs(value - counterpart[key]) / max(abs(value), 1e-300) for key, value in numbers(line)]
    return max(found)


def numbers(line: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in line.items():
        if isinstance(value, int | float):
            yield key, value


# Starting


@contextmanager
def agent_store() -> Iterator[dict[str, str]]:
    """What torchrun's agent offers its ranks, for their environment: a store that they do not hold themselves."""
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    yield {
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"
    }  # fmt: skip
    del store


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@contextmanager
def forked(folder: Path, jobs: Sequence[Job], ranks: int, *environments: dict[str, str]) -> Iterator[list[BaseProcess]]:
    """Ranks that do `jobs`, killed when the block is left; by default rank 0 holds their store.

    Args:
        environments: beside what torchrun sets, of each rank or of all.
    """
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs], default=str))
    context = server()
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    common |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    each = environments if len(environments) == ranks else environments * ranks or ({},) * ranks
    processes: list[BaseProcess] = [
        context.Process(target=do_jobs, args=(folder, common | {"RANK": str(n), "LOCAL_RANK": str(n)} | each[n]))
        for n in range(ranks)
    ]
    try:
        for process in processes:
            process.start()
        yield processes
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def run_forked(folder: Path, jobs: Sequence[Job], ranks: int, *environments: dict[str, str]) -> None:
    """Until all ranks have ended by themselves, with the store of an agent."""
    with agent_store() as agent, forked(folder, jobs, ranks, *(environments or (agent,))) as processes:
        for process in processes:
            process.join()


@contextmanager
def torchrun(folder: Path, jobs: Sequence[Job], options: Sequence[str], prefix: Sequence[str] = ()) -> Iterator[Any]:
    """A `torchrun` that starts the ranks; it and they are killed when the block is left."""
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs], default=str))
    command = [*prefix, sys.executable, "-m", "torch.distributed.run", *options, "-m", __name__, str(folder)]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    with (folder / "torchrun.log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # it ends its ranks, which have sessions of their own
            try:
                process.wait(40)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


# In a rank


@dataclass
class Watch:
    """Makes a job's fault happen, and keeps what each rank came to beside its run."""

    job: Job
    rank: int
    calls: int = field(default=0)

    def over(self, patch: pytest.MonkeyPatch) -> None:
        step, train, average = TrainStep.__call__, Trainer.train, TrainStep.average_statistics

        def faulty_step(train_step: TrainStep, batch: TrainBatch) -> Tensor:
            due, self.calls = self.job.rank == self.rank and self.calls == self.job.step, self.calls + 1
            if due and self.job.fault == "nan":
                batch = batch._replace(images=torch.full(batch.images.shape, torch.nan, dtype=torch.float64))
            elif due and self.job.fault.startswith("SIG") and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
                os.kill(os.getpid(), signal.Signals[self.job.fault])
            return step(train_step, batch)

        def kept(train_step: TrainStep) -> None:
            self.own = {name: tensor.clone() for name, tensor in train_step.method.model.state_dict().items()}
            average(train_step)

        def watched(trainer: Trainer) -> Any:
            scores = train(trainer)
            found = {"own": self.own, "seed": torch.initial_seed()}
            torch.save(trainer.state() | found, f"{trainer.run}.{self.rank}.pt")
            return scores

        patch.setattr(TrainStep, "__call__", faulty_step)
        patch.setattr(TrainStep, "average_statistics", kept)
        patch.setattr(Trainer, "train", watched)
        if self.job.fault == "local means":
            patch.setattr(stage, "Setup", lambda seed, parts, group: Setup(seed, parts))
        if self.job.fault == "other code" and self.rank == self.job.rank:
            patch.setattr(run, "__file__", str(Path(__file__).parent / "training" / "run.py"))


def do_jobs(folder: Path, environment: dict[str, str]) -> None:
    """The program of a rank: the jobs of a folder one after the other."""
    os.environ.update(environment)
    os.environ.setdefault("TORCHELASTIC_RESTART_COUNT", "0")
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    for entry in json.loads((folder / "jobs.json").read_text()):
        job = Job(**entry)
        # Of the file, so that what libraries write is seen as well.
        for name, descriptor in (("out", 1), ("err", 2)):
            with (folder / f"{job.name}.{rank}.{name}").open("a") as file:
                os.dup2(file.fileno(), descriptor)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        code = _do(job, rank)
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.flush()
        sys.stderr.flush()
        (folder / f"{job.name}.{rank}.code").write_text(str(code))
    sys.exit(code)


def _do(job: Job, rank: int) -> int:
    with pytest.MonkeyPatch.context() as patch:
        Watch(job, rank).over(patch)
        try:
            main([str(argument).replace("{rank}", str(rank)) for argument in job.arguments])
        except SystemExit as end:
            return int(end.code or 0)
        except BaseException:
            traceback.print_exc()
            return 1
    return 0


if __name__ == "__main__":
    do_jobs(Path(sys.argv[1]), {})
