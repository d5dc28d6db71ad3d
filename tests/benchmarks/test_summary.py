"""The picture of measured times, from a results file."""

import io
from pathlib import Path
from typing import Any

import cv2
import pytest
from rich.console import Console

from benchmarks.summary import PROVIDERS, plot, table


def report(*providers: str, changes: str = "usual") -> dict[str, Any]:
    times = {"median_us": 20.0, "low_us": 19.0, "high_us": 22.0, "fraction_of_read": 0.5}
    rows = [
        {"op": op, "changes": changes, "provider": provider, "phases": {"forward": times, "full": times}}
        for op in ("label_cam", "objective")
        for provider in providers
    ]
    return {"rows": rows, "environment": {"gpu": "1 × some GPU"}}


def test_picture_grows_with_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    inks = []
    for providers in (["eager"], ["eager", "fused", "fused+graph"]):
        path = tmp_path / f"{len(providers)}.png"
        assert plot(report(*providers), path) == f"drawn to {path}"
        picture = cv2.imread(str(path))
        assert picture is not None
        inks.append(int((picture < 250).sum()))
    assert inks[1] > inks[0] > 1000


def test_only_the_usual_batch_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert "nothing was measured" in plot(report("eager", changes="images=10"), tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def test_every_line_has_both_clocks() -> None:
    times = {
        "median_us": 20.0, "low_us": 19.0, "high_us": 22.0, "fraction_of_read": 0.5, "fraction_of_copy": 0.7,
        "back_to_back_us": 33.3, "host_us": 44.4, "GB_per_s": 1.0,
    }  # fmt: skip
    row = {
        "provider": "fused", "status": "ok", "error": 1e-6, "phases": {"full": times}, "bytes": {"full": 1},
        "kernels": 7, "synchronizations": 0, "peak_memory": None,
    }  # fmt: skip
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(table("objective", [row]))
    line = console.export_text()
    assert "20.0 (19.0–22.0)" in line and "33.3" in line and "44" in line and "70%" in line


def test_the_picture_tells_graphs_from_single_calls() -> None:
    assert len(set(PROVIDERS.values())) == len(PROVIDERS)
    assert all((marker == "*") == ("graph" in name or "reduce" in name) for name, (marker, _) in PROVIDERS.items())
