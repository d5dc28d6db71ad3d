"""The loader of a run: settled once, kept with it, the same after a pause; and the flavor of resizing beside it."""

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from i2c_fast.commands.predict import open_predictor
from i2c_fast.config import Config
from i2c_fast.data import batches, dali_problem, loader, read_image, read_split
from i2c_fast.errors import UserError
from i2c_fast.training import checkpoints_of, load_checkpoint, loading, score_checkpoint, start_run

QUIET = Console(quiet=True)
needs_dali = pytest.mark.skipif(bool(dali_problem()), reason="needs DALI")

TinyConfig = Callable[..., Config]


def stored_loader(run: Path) -> str:
    written = tomllib.loads((run / "config.toml").read_text())["data"]["loader"]
    assert load_checkpoint(run)["config"]["data"]["loader"] == written
    return str(written)


def losses(run: Path) -> list[float]:
    entries = (json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())
    return [entry["loss"] for entry in entries if entry["kind"] == "train"]


def stop_at(run: Path, step: int) -> None:
    """Leave what there was after `step` steps."""
    for checkpoint in checkpoints_of(run):
        if int(checkpoint.stem.removeprefix("step-")) > step:
            checkpoint.unlink()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def by_dali(made: Path, tiny_config: TinyConfig) -> Path:
    """A run of `DALI_RUN` from start to end; its folder is there once."""
    run = made / "run"
    if not run.exists():
        start_run(tiny_config(*DALI_RUN), run, QUIET)
    return run


DALI_RUN = (
    "data.loader=dali", "data.resize=antialias", "stage1.epochs=0", "run.checkpoint_every=2", "run.keep_checkpoints=0",
)  # fmt: skip


@needs_dali
def test_a_run_continued_within_an_epoch_is_bit_equal(by_dali: Path, tiny_config: TinyConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(by_dali, run)
    stop_at(run, 2)
    # Neither threads nor prefetching matter, and auto is the loader that the run began with.
    start_run(
        tiny_config(*DALI_RUN, "data.loader=auto", "data.workers=2", "data.prefetch=3"), run, QUIET, resume="required"
    )
    first, second = load_checkpoint(by_dali), load_checkpoint(run)
    assert first["step"] == second["step"] == 4
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])
    assert first["scores"] == second["scores"]
    assert losses(by_dali) == losses(run)
    assert stored_loader(run) == "dali"


@needs_dali
def test_dali_is_what_trains_and_scores(by_dali: Path, tiny_config: TinyConfig, tmp_path: Path) -> None:
    start_run(tiny_config(*DALI_RUN, "data.loader=opencv"), tmp_path / "run", QUIET)
    first, second = losses(by_dali), losses(tmp_path / "run")
    assert first != second  # by rounding
    assert first[0] == pytest.approx(second[0], rel=0.02)


@needs_dali
def test_a_run_of_dali_is_scored_and_predicts_where_it_is_missing(
    by_dali: Path, tiny_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "dali_problem", lambda: "DALI is not installed")
    console, said = Console(record=True, width=300), []
    scores, _ = score_checkpoint(by_dali, (), console)
    assert scores.summary()["images"] == 12
    assert "DALI is not installed, so OpenCV loads them here" in console.export_text()
    assert open_predictor(by_dali, "cpu", 100, say=said.append).config.data.loader == "opencv"
    assert len(said) == 1


@needs_dali
def test_prediction_sees_files_as_the_runs_loader_makes_them(by_dali: Path, tiny_set: Path) -> None:
    index = read_split(tiny_set, "val")
    files = [index.file(i) for i in (3, 0, 3)]
    predictor = open_predictor(by_dali, "cpu", 100)
    assert predictor.config.data.loader == "dali"
    found = list(predictor.files(files))
    expected = predictor([read_image(file) for file in files])
    assert [one.label for one in found] == [one.label for one in expected]
    assert found[0].score == found[2].score != found[1].score
    for one, other, file in zip(found, expected, files, strict=True):
        assert one.score == pytest.approx(other.score, abs=0.01)
        assert (one.image == read_image(file)).all()


def test_auto_is_settled_and_said_when_the_run_begins(tiny_config: TinyConfig, tmp_path: Path) -> None:
    console = Console(record=True, width=300)
    start_run(tiny_config("data.loader=auto", "stage1.epochs=0"), tmp_path / "run", console)
    assert stored_loader(tmp_path / "run") == "opencv"
    said = [line for line in console.export_text().splitlines() if "loader" in line]
    assert said == ["data.loader=auto chose opencv: the model runs on the CPU"]


def test_a_named_loader_is_not_talked_of(tiny_config: TinyConfig, tmp_path: Path) -> None:
    console = Console(record=True, width=300)
    start_run(tiny_config("stage1.epochs=0"), tmp_path / "run", console)
    assert "loader" not in console.export_text()


def test_another_loader_may_continue_a_run_and_says_that_it_is_not_bit_equal(
    tiny_config: TinyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    device = torch.device("cpu")
    config = loading.settle_loader(
        tiny_config("data.loader=opencv"), device, said.append, tiny_config("data.loader=dali")
    )
    assert config.data.loader == "opencv"
    assert len(said) == 1
    assert "not continued bit-equal" in said[0]


def test_a_run_is_not_begun_by_a_dali_that_is_missing(
    tiny_config: TinyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "dali_problem", lambda: "DALI is not installed")
    with pytest.raises(UserError, match=r"data\.loader=dali: DALI is not installed; install the extra dali-cu13"):
        start_run(tiny_config("data.loader=dali"), tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()


def test_the_flavor_of_resizing_stays_that_of_the_run(tiny_config: TinyConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = ("data.resize=antialias", "data.short_side=40", "stage1.epochs=0")
    start_run(tiny_config(*config), run, QUIET)
    with pytest.raises(UserError, match=r"data\.resize=antialias, not linear"):
        start_run(tiny_config(*config, "data.resize=linear"), run, QUIET, resume="required")
    with pytest.raises(UserError, match=r"data\.resize=linear: the checkpoint was trained .* by antialias"):
        score_checkpoint(run, ["data.resize=linear"], QUIET)
    assert score_checkpoint(run, ["data.resize=antialias"], QUIET)[0].summary()["images"] == 12


@pytest.mark.parametrize("flavor", ["linear", "antialias"])
def test_evaluation_and_prediction_resize_as_the_run_did(
    tiny_config: TinyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavor: str
) -> None:
    seen: list[str] = []
    real = batches.resize
    monkeypatch.setattr(batches, "resize", lambda image, w, h, chosen: seen.append(chosen) or real(image, w, h, chosen))
    run = tmp_path / "run"
    start_run(tiny_config(f"data.resize={flavor}", "stage1.epochs=0"), run, QUIET)
    score_checkpoint(run, (), QUIET)
    index = read_split(Path(load_checkpoint(run)["config"]["data"]["root"]), "val")
    list(open_predictor(run, "cpu", 100).files([index.file(0)]))
    assert seen == [flavor] * (12 + 12 + 1)
