"""The profile of a training step, and that its file's name hides no module of the standard library."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks.profile import Cost, costs_on_gpu, flops_of, main, rows_of

ROOT = Path(__file__).parents[2]


def test_a_toy_step_is_profiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trace, output = tmp_path / "traces" / "toy.json.gz", tmp_path / "out.json"
    done = CliRunner().invoke(main, ["--steps", "1", "--trace", str(trace), "--output", str(output)])
    assert done.exit_code == 0, done.output
    names = {event.get("name") for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]}
    assert {"aten::convolution_backward", "_InterImageLoss"} <= names
    report = json.loads(output.read_text())
    shares = [row["share"] for row in report["kernels"]]
    assert shares == sorted(shares, reverse=True) and 0.5 < sum(shares) <= 1
    assert "aten::convolution_backward" in {row["name"] for row in report["kernels"]}
    assert all(row["us"] is None for row in report["kernels"]) and "not measured" in report["measured"]


def event(name: str, us: float = 0.0, kernels: Any = (), flops: int = 0, shapes: Any = (), children: Any = ()) -> Any:
    kind = torch.autograd.DeviceType
    return SimpleNamespace(
        name=name, kernels=kernels, flops=flops, input_shapes=shapes, cpu_children=children,
        device_type=kind.CPU if kernels or children else kind.CUDA,
        time_range=SimpleNamespace(elapsed_us=lambda: us), is_user_annotation=name == "range",
    )  # fmt: skip


def test_an_operators_floor_stands_beside_its_longest_kernel() -> None:
    launched = [SimpleNamespace(name="transpose", duration=1.0), SimpleNamespace(name="gemm", duration=9.0)]
    inner = event("aten::cudnn_convolution", kernels=launched)
    events = [
        event("aten::conv2d", flops=10**9, children=[inner]), inner, event("range", 10.0),
        event("transpose", 1.0), event("gemm", 9.0), event("gemm", 10.0),
    ]  # fmt: skip
    found = costs_on_gpu(events)
    assert found == {"transpose": Cost(1, 1.0, 0.0), "gemm": Cost(2, 19.0, 1e9)}
    first, second = rows_of(found, steps=1, rate=1e14, top=5)
    assert (first["name"], first["us"], first["floor_us"]) == ("gemm", 19.0, pytest.approx(10.0))
    assert second["floor_us"] is None


def test_a_convolutions_backward_counts_two_products() -> None:
    gradient, images, weight = [2, 5, 8, 8], [2, 3, 8, 8], [5, 3, 3, 3]
    counted = flops_of(event("aten::convolution_backward", shapes=[gradient, images, weight]))
    assert counted == 2 * (2 * 2 * 8 * 8 * 5 * 3 * 9)


def test_scripts_of_the_folder_find_the_standard_librarys_profile() -> None:
    """The standard library's cProfile imports `profile`, and compilers of torch import cProfile."""
    code = """
import runpy, sys
for name in ("kernels", "train_step", "loader", "evaluator", "profile"):
    path = [*sys.path]
    sys.path[0] = sys.argv[1]
    runpy.run_path(f"{sys.argv[1]}/{name}.py")
    import cProfile
    assert cProfile._pyprofile.Profile, name
    for module in ("cProfile", "profile"):
        del sys.modules[module]
    sys.path[:] = path
"""
    command = [sys.executable, "-c", code, str(ROOT / "benchmarks")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
