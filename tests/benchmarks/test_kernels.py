"""The kernels' benchmark refuses what it must not time. A run of it: `tests/kernels/interpret/test_benchmark.py`."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.candidates import Candidate, Subject
from benchmarks.sizes import TINY, TINY_UNUSUAL, Size
from benchmarks.verdicts import Verdict

pytest.importorskip("triton")


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
