"""Runs killed, stopped and starved, as a user's machine does it: in processes of their own."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ..conftest import TINY
from .test_run import assert_same_run

STEPS = ("stage0.epochs=3", "stage1.epochs=3", "run.checkpoint_every=2", "run.keep_checkpoints=2")


def command(root: Path, run: Path, *extra: str) -> list[str]:
    recipe = run.parent / "empty.toml"
    recipe.write_text("")
    return [
        sys.executable, "-m", "i2c_fast.cli", "train", str(recipe), f"data.root={root}", *TINY, *STEPS, *extra,
        "--output", str(run),
    ]  # fmt: skip


def run_to_end(root: Path, run: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(root, run, *extra), capture_output=True, text=True, check=False)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():  # pytest's own limit ends it where the condition never holds
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


@pytest.fixture(scope="module")
def undisturbed(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("reference") / "run"
    result = run_to_end(tiny_set, run)
    assert result.returncode == 0, result.stderr
    return run


def logged_steps(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_text().count('"train"') if log.exists() else 0


@pytest.mark.parametrize("attempt", range(3))
def test_killed_at_a_random_step_then_resumed_equals_the_undisturbed_run(
    tiny_set: Path, undisturbed: Path, tmp_path: Path, attempt: int
) -> None:
    run, rng = tmp_path / "run", random.Random(attempt)
    process = subprocess.Popen(command(tiny_set, run), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    steps = rng.randrange(1, 18)
    wait_for(lambda: logged_steps(run) >= steps, process)
    time.sleep(rng.random() * 0.05)
    process.kill()
    process.communicate()
    result = run_to_end(tiny_set, run, "--resume", "auto")
    if result.returncode != 0:  # killed before the first checkpoint: the folder is in use, and nothing is lost
        assert "no checkpoint" in result.stderr or "not empty" in result.stderr
        shutil.rmtree(run)
        result = run_to_end(tiny_set, run)
    assert result.returncode == 0, result.stderr
    assert_same_run(undisturbed, run)


def test_killed_while_a_checkpoint_is_written_then_resumed_equals_the_undisturbed_run(
    tiny_set: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # The process kills itself half-way through writing its third checkpoint, as a power cut would.
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "import i2c_fast.training.checkpoint as checkpoint\n"
        "from i2c_fast.cli import main\n"
        "real, count = checkpoint.write_bytes, 0\n"
        "def torn(path, data):\n"
        "    global count\n"
        "    count += 1\n"
        "    if count < 3:\n"
        "        return real(path, data)\n"
        "    path.with_name(path.name + '.tmp').write_bytes(data[: len(data) // 2])\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoint.write_bytes = torn\n"
        "main()\n"
    )
    arguments = command(tiny_set, run)[3:]
    killed = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list((run / "checkpoints").glob("*.tmp"))
    result = run_to_end(tiny_set, run, "--resume")
    assert result.returncode == 0, result.stderr
    assert_same_run(undisturbed, run)
    assert not list((run / "checkpoints").glob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_exits(
    tiny_set: Path, undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(command(tiny_set, run), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: logged_steps(run) >= 5, process)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 75
    assert number.name in errors
    assert "Traceback" not in errors
    result = run_to_end(tiny_set, run, "--resume")
    assert result.returncode == 0, result.stderr
    assert_same_run(undisturbed, run)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a small disk needs root")
def test_a_full_disk_is_one_line_and_loses_nothing(tiny_set: Path, undisturbed: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    # Room for logs and one checkpoint of 34 MB, not for two.
    mount = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this sandbox allows no mounts")
    try:
        run = disk / "run"
        (disk / "empty.toml").write_text("")
        result = run_to_end(tiny_set, run)
        assert result.returncode == 2
        assert result.stderr.startswith("i2c-fast: cannot write")
        assert "No space left" in result.stderr
        assert result.stderr.count("\n") == 1
        assert not list(run.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=300m", str(disk)], check=True)
        again = run_to_end(tiny_set, run, "--resume")
        assert again.returncode == 0, again.stderr
        assert_same_run(undisturbed, run)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
