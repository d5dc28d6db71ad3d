"""The picture of measured times, from a results file."""

from pathlib import Path
from typing import Any

import cv2
import pytest

from benchmarks.summary import plot


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
