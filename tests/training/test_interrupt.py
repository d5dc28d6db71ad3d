"""Runs killed, stopped and starved, as a user's machine does it: in processes of their own."""

import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from torch import Tensor

from i2c_fast.data import TrainBatch
from i2c_fast.training import checkpoint
from i2c_fast.training.step import TrainStep

from ..conftest import TINY
from ..processes import Command
from .test_run import assert_same_run

STEPS = ("stage0.epochs=3", "stage1.epochs=3", "run.checkpoint_every=2", "run.keep_checkpoints=2")  # 24 steps


def start(root: Path, run: Path, *extra: str, fault: Callable[[], object] | None = None) -> Command:
    """`i2c-fast train`, with `fault` called in its process."""
    recipe = run.parent / "empty.toml"
    recipe.write_text("")
    arguments = ["train", str(recipe), f"data.root={root}", *TINY, *STEPS, *extra, "--output", str(run)]
    return Command(run.parent, arguments, fault)


def before_step(number: int, do: Callable[[], object]) -> None:
    """Make the process `do` something before a step, counted from 1."""
    step, count = TrainStep.__call__, 0

    def watched(train_step: TrainStep, batch: TrainBatch) -> Tensor:
        nonlocal count
        count += 1
        if count == number:
            do()
        return step(train_step, batch)

    TrainStep.__call__ = watched  # type: ignore[method-assign]


def send(number: signal.Signals) -> None:
    """The process sends itself a signal."""
    os.kill(os.getpid(), number)


def die_in(seconds: float) -> None:
    """The process goes on for so long."""
    threading.Timer(seconds, send, [signal.SIGKILL]).start()


def run_to_end(root: Path, run: Path, *extra: str) -> tuple[int, str]:
    """Exit status, and what stderr holds."""
    command = start(root, run, *extra)
    return command.wait(), command.stderr


@pytest.fixture(scope="module")
def undisturbed(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("reference") / "run"
    status, errors = run_to_end(tiny_set, run)
    assert status == 0, errors
    return run


@pytest.mark.parametrize("attempt", range(3))
def test_killed_at_a_random_step_then_resumed_equals_the_undisturbed_run(
    tiny_set: Path, undisturbed: Path, tmp_path: Path, attempt: int
) -> None:
    run, rng = tmp_path / "run", random.Random(attempt)
    fault = partial(before_step, rng.randrange(1, 24), partial(die_in, rng.random() * 0.05))
    assert start(tiny_set, run, fault=fault).wait() == -signal.SIGKILL
    status, errors = run_to_end(tiny_set, run, "--resume", "auto")
    if status:  # killed before the first checkpoint: the folder is in use, and nothing is lost
        assert "no checkpoint" in errors or "not empty" in errors
        shutil.rmtree(run)
        status, errors = run_to_end(tiny_set, run)
    assert status == 0, errors
    assert_same_run(undisturbed, run)


def _die_half_way_through_the_third_checkpoint() -> None:
    """As a power cut would."""
    real, count = checkpoint.write_bytes, 0

    def torn(path: Path, data: bytes) -> None:
        nonlocal count
        count += 1
        if count < 3:
            return real(path, data)
        path.with_name(path.name + ".tmp").write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.write_bytes = torn  # type: ignore[assignment]


def test_killed_while_a_checkpoint_is_written_then_resumed_equals_the_undisturbed_run(
    tiny_set: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert start(tiny_set, run, fault=_die_half_way_through_the_third_checkpoint).wait() == -signal.SIGKILL
    assert list((run / "checkpoints").glob("*.tmp"))
    status, errors = run_to_end(tiny_set, run, "--resume")
    assert status == 0, errors
    assert_same_run(undisturbed, run)
    assert not list((run / "checkpoints").glob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_exits(
    tiny_set: Path, undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    command = start(tiny_set, run, fault=partial(before_step, 6, partial(send, number)))
    assert command.wait() == 75
    assert number.name in command.stderr
    assert "Traceback" not in command.stderr
    status, errors = run_to_end(tiny_set, run, "--resume")
    assert status == 0, errors
    assert_same_run(undisturbed, run)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a small disk needs root")
def test_a_full_disk_is_one_line_and_loses_nothing(tiny_set: Path, undisturbed: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    # Less than the run with its last two checkpoints takes, and a third is written before the first one goes.
    room = (
        sum(path.stat().st_size for path in undisturbed.rglob("*"))
        - checkpoint.find_checkpoint(undisturbed)[0].stat().st_size
    )
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this sandbox allows no mounts")
    try:
        run = disk / "run"
        status, errors = run_to_end(tiny_set, run)
        assert status == 2
        assert errors.startswith("i2c-fast: cannot write")
        assert "No space left" in errors
        assert errors.count("\n") == 1
        assert not list(run.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
        status, errors = run_to_end(tiny_set, run, "--resume")
        assert status == 0, errors
        assert_same_run(undisturbed, run)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
