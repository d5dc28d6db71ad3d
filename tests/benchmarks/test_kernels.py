"""The kernels' benchmark on a machine without a GPU: it checks results, and times nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.candidates import Candidate, Subject
from benchmarks.sizes import TINY, TINY_UNUSUAL, Size
from benchmarks.verdicts import Verdict

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "I2C_FAST_BACKEND"}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_without_a_gpu_results_are_checked_and_times_are_not_measured(tmp_path: Path) -> None:
    done = run("--quick", "--op", "objective", "--op", "label_cam", "--output", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert {row["op"] for row in report["rows"]} == {"objective", "label_cam"}
    assert {"loops", "eager", "compile", "plain tap", "fused"} <= {row["provider"] for row in report["rows"]}
    assert all(row["status"] == "ok" and row["error"] < 1e-5 and not row["phases"] for row in report["rows"])
    assert all(row["results"][row["of"]]["error"] == row["error"] <= row["allowed"] for row in report["rows"])
    assert report["bars"] and all(bar["kept"] is None for bar in report["bars"])
    assert "not measured" in report["measured"] and "not measured" in done.stdout
    assert {"torch", "triton", "gpu", "commit"} <= set(report["environment"])


def test_a_run_of_other_ops_keeps_what_the_file_holds(tmp_path: Path) -> None:
    out = tmp_path / "out.json"

    def ops_after(op: str) -> set[str]:
        done = run("--quick", "--op", op, "--output", str(out))
        assert done.returncode == 0, done.stdout + done.stderr
        return {row["op"] for row in json.loads(out.read_text())["rows"]}

    assert ops_after("normalize_cam") == {"normalize_cam"}
    assert ops_after("update_centers") == {"normalize_cam", "update_centers"}
    report = json.loads(out.read_text())
    report["environment"]["triton"] = "another"
    out.write_text(json.dumps(report))
    assert ops_after("normalize_cam") == {"normalize_cam"}


def test_a_picture_of_nothing_is_refused_in_words(tmp_path: Path) -> None:
    out, picture = str(tmp_path / "out.json"), str(tmp_path / "out.png")
    done = run("--quick", "--op", "update_centers", "--output", out, "--plot", picture)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no picture" in done.stdout


def test_a_provider_that_is_wrong_in_an_unusual_batch_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("I2C_FAST_BACKEND", "auto")  # the benchmark sets one where there is none
    from benchmarks import kernels

    def made(_: str, size: Size, __: torch.device) -> Subject:
        found = {"gc": Verdict(0.0, 1.0), "sc": Verdict(0.0 if size.batch == "paired" else 2.0, 1.0)}
        right = {"gc": Verdict(0.5, 1.0)}
        return Subject({"one": lambda: Candidate(lambda: found, {}), "other": lambda: Candidate(lambda: right, {})}, {})

    monkeypatch.setattr(kernels, "subject", made)
    wrong: dict[str, str] = {}
    cpu = torch.device("cpu")
    rows = [row for size in (TINY_UNUSUAL[0], TINY[0]) for row in kernels.run_subject("objective", size, cpu, 4, wrong)]
    one, other, later, good = (row["status"] for row in rows)
    assert one == "wrong: sc has an error of 2, allowed 1" and other == good == "ok"
    assert later.startswith("wrong: not here, but at") and "batch=unpaired" in later


def test_a_backend_that_runs_no_kernel_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("I2C_FAST_BACKEND", "auto")
    from benchmarks import kernels

    monkeypatch.setattr(kernels, "runs_triton", lambda tensor: False)
    done = CliRunner().invoke(kernels.main, ["--quick", "--output", str(tmp_path / "out.json")])
    assert done.exit_code == 1 and "runs no kernel" in done.output and "leave it unset" in done.output
