"""The kernels' benchmark on a machine without a GPU: it checks results, and times nothing."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.kernels import main


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def run(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["--quick", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_without_a_gpu_results_are_checked_and_times_are_not_measured(tmp_path: Path) -> None:
    printed = run("--op", "objective", "--op", "label_cam", "--output", str(tmp_path / "out.json"))
    report = json.loads((tmp_path / "out.json").read_text())
    assert {row["op"] for row in report["rows"]} == {"objective", "label_cam"}
    assert {"loops", "eager", "compile", "plain tap", "fused"} <= {row["provider"] for row in report["rows"]}
    assert all(row["status"] == "ok" and row["error"] < 1e-5 and not row["phases"] for row in report["rows"])
    assert all(row["results"][row["of"]]["error"] == row["error"] <= row["allowed"] for row in report["rows"])
    assert report["bars"] and all(bar["kept"] is None for bar in report["bars"])
    assert "not measured" in report["measured"] and "not measured" in printed
    assert {"torch", "triton", "gpu", "commit"} <= set(report["environment"])


def test_a_run_of_other_ops_keeps_what_the_file_holds(tmp_path: Path) -> None:
    out = tmp_path / "out.json"

    def ops_after(op: str) -> set[str]:
        run("--op", op, "--output", str(out))
        return {row["op"] for row in json.loads(out.read_text())["rows"]}

    assert ops_after("normalize_cam") == {"normalize_cam"}
    assert ops_after("update_centers") == {"normalize_cam", "update_centers"}
    report = json.loads(out.read_text())
    report["environment"]["triton"] = "another"
    out.write_text(json.dumps(report))
    assert ops_after("normalize_cam") == {"normalize_cam"}


def test_a_picture_of_nothing_is_refused_in_words(tmp_path: Path) -> None:
    out, picture = str(tmp_path / "out.json"), str(tmp_path / "out.png")
    assert "no picture" in run("--op", "update_centers", "--output", out, "--plot", picture)
