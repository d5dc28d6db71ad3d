"""scripts/slurm_train.sbatch, with stand-ins for Slurm's commands."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

SCRIPT = Path(__file__).parents[2] / "scripts" / "slurm_train.sbatch"

SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "$@" >>"$RECORD/scontrol"; fi
"""
# A run that is stopped by SIGUSR1, as ranks stop; or that ends by itself with STATUS.
SRUN = """#!/usr/bin/env bash
trap 'echo "SIGUSR1 after step 7" >"$RUN/stopped"; sleep 0.3; exit 1' USR1
printf '%s\\n' "$@" >"$RECORD/srun.part" && mv "$RECORD/srun.part" "$RECORD/srun"
if [ -n "${STATUS:-}" ]; then exit "$STATUS"; fi
while :; do sleep 0.1; done
"""


def start(tmp_path: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
    own = {"PATH": f"{commands}:{os.environ['PATH']}", "RECORD": str(tmp_path), "RUN": str(tmp_path / "run")}
    (tmp_path / "run").mkdir(exist_ok=True)
    return subprocess.Popen(
        [str(SCRIPT), *arguments], env={**os.environ, **job, **own, **more}, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def given(tmp_path: Path) -> list[str]:
    """What srun was called with."""
    while not (tmp_path / "srun").exists():
        time.sleep(0.05)
    return (tmp_path / "srun").read_text().splitlines()


def test_a_run_that_is_stopped_goes_back_to_the_queue(tmp_path: Path) -> None:
    job = start(tmp_path, str(tmp_path / "run"), "demo")
    given(tmp_path)
    job.send_signal(signal.SIGUSR1)
    output, _ = job.communicate()
    assert (tmp_path / "scontrol").read_text() == "requeue 123456\n"
    assert output == "SIGUSR1 after step 7; back to the queue\n"


@pytest.mark.parametrize("status", [0, 1])
def test_a_run_that_ends_or_fails_does_not(tmp_path: Path, status: int) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stopped").write_text("SIGUSR1 after step 3\n")  # in an earlier turn
    job = start(tmp_path, str(tmp_path / "run"), "demo", STATUS=str(status))
    job.communicate()
    assert job.returncode == status
    assert not (tmp_path / "scontrol").exists()


def test_torchrun_is_told_of_the_nodes_the_signal_and_the_run(tmp_path: Path) -> None:
    start(tmp_path, "RUN", "demo", "data.root=a b", STATUS="0").communicate()
    command = given(tmp_path)
    launcher = get_args_parser().parse_args(command[command.index("torchrun") + 1 :])
    assert (launcher.nnodes, launcher.nproc_per_node, launcher.rdzv_endpoint) == ("2", "gpu", "node7:23456")
    assert "SIGUSR1" in launcher.signals_to_handle and launcher.module and launcher.training_script == "i2c_fast"
    assert launcher.training_script_args == ["train", "--output", "RUN", "--resume=auto", "demo", "data.root=a b"]


def test_without_a_recipe_its_usage_is_told(tmp_path: Path) -> None:
    job = start(tmp_path, "RUN")
    assert job.communicate()[0].startswith("usage: sbatch") and job.returncode == 2
