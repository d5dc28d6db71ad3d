"""The loaders' benchmark at toy size: what it compares, what it writes, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks import loader
from i2c_fast.data import dali_problem


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def run(output: Path, *arguments: str) -> str:
    small = [
        "--images",
        "20",
        "--seconds",
        "0.1",
        "--rounds",
        "2",
        "--batch",
        "4",
        "--size",
        "32",
        "--short-side",
        "36",
    ]
    found = CliRunner().invoke(loader.main, [*small, "--threads", "1", "--output", str(output), *arguments])
    assert found.exit_code == 0, found.output
    return found.output


def test_every_loader_is_compared_with_opencvs_and_with_pillow(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shown = run(tmp_path / "out.json", "--picture", str(tmp_path / "out.png"))
    report = json.loads((tmp_path / "out.json").read_text())
    providers = ["opencv", "pil"] if dali_problem() else ["dali cpu", "opencv", "pil"]
    assert list(dict.fromkeys(row["provider"] for row in report["rows"])) == providers
    assert all(provider in shown for provider in providers)
    for row in report["rows"]:
        assert 0 < row["images_per_second"]["least"] <= row["images_per_second"]["median"]
        assert row["images_per_core_second"]["median"] > 0
        assert report["mean_difference_of_255_from_opencv"][f"{row['provider']}, {row['flavor']}"] <= loader.TOLERANCE
    assert report["rows"][-1]["images_per_second_over_pil"] == 1
    assert report["settings"]["threads"] == 1
    assert report["cores"] >= 1
    assert {"torch", "commit", "cpu"} <= set(report["environment"])
    assert (tmp_path / "out.png").stat().st_size > 1000


def test_a_loader_whose_images_differ_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loader.PillowImages.__getitem__
    monkeypatch.setattr(loader.PillowImages, "__getitem__", lambda self, i: (real(self, i)[0].flip(-1), 0))
    found = CliRunner().invoke(loader.main, ["--images", "20", "--batch", "4", "--output", str(tmp_path / "out.json")])
    assert found.exit_code == 1
    assert "pil, antialias differs from opencv's batch" in found.output
    assert not (tmp_path / "out.json").exists()


def test_pictures_are_repeatable_and_have_the_spectrum_of_photographs() -> None:
    first = loader.picture(3)
    np.testing.assert_array_equal(first, loader.picture(3))
    assert (first != loader.picture(4)).any()
    spectrum = np.abs(np.fft.fft(first.mean(2), axis=1)).mean(0)[1:250]
    slope = np.polyfit(np.log(np.arange(4, 64)), np.log(spectrum[3:63]), 1)[0]
    assert -1.6 < slope < -0.7
