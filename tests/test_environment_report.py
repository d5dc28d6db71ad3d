"""What `i2c-fast env` prints about machine and installation."""

import json
import os
import platform
from pathlib import Path

import pytest
import torch

import i2c_fast
from i2c_fast import environment as report
from i2c_fast.environment import environment


def test_versions_are_those_that_run() -> None:
    found = environment()
    assert found["python"] == platform.python_version()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_every_value_is_one_line_of_text() -> None:
    for name, value in environment().items():
        assert isinstance(value, str) and value, name
        assert len(value.splitlines()) == 1, name


def test_report_is_plain_json() -> None:
    assert json.loads(json.dumps(environment())).keys() >= {"i2c-fast", "python", "torch", "platform", "cpu", "gpu"}


def test_processor_cores_and_threads_are_named() -> None:
    cpu = environment()["cpu"]
    assert f"{len(os.sched_getaffinity(0))} cores" in cpu
    assert f"torch uses {torch.get_num_threads()} threads" in cpu


def test_package_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PACKAGES", ("torch", "no-such-package-anywhere"))
    assert environment()["no-such-package-anywhere"] == "not installed"


def test_without_a_gpu_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = environment()
    assert found["gpu"] == "none that torch can use"
    assert "cuda" not in found


def test_without_git_the_commit_is_unknown_and_nothing_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment()["commit"] in ("not a clone", "unknown (no git)")


@pytest.mark.skipif(not (Path(i2c_fast.__file__).parents[1] / ".git").exists(), reason="not a clone")
def test_commit_of_a_clone_is_named() -> None:
    assert environment()["commit"] != "not a clone"
