"""Whole runs: the folder they leave, their continuation, and what they refuse."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from i2c_fast.commands.predict import open_predictor
from i2c_fast.config import Config, build_config
from i2c_fast.data.generated import write_generated
from i2c_fast.errors import UserError
from i2c_fast.methods import METHODS
from i2c_fast.methods import method as method_module
from i2c_fast.models import backbones
from i2c_fast.training import build_trainer, checkpoints_of, load_checkpoint, score_checkpoint, start_run
from i2c_fast.training.loop import Trainer

QUIET = Console(quiet=True)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_same_run(first: Path, second: Path) -> None:
    """Weights, centers, counters, momentum, logged losses and errors bit-equal."""
    a, b = load_checkpoint(first), load_checkpoint(second)
    assert a["step"] == b["step"]
    assert a["scores"] == b["scores"]
    for part in ("model", "method"):
        assert a[part].keys() == b[part].keys()
        different = [name for name in a[part] if not torch.equal(a[part][name], b[part][name])]
        assert not different
    first_momentum, momentum = (state["train_step"]["optimizer"]["state"] for state in (a, b))
    for number, entry in first_momentum.items():
        assert torch.equal(entry["momentum_buffer"], momentum[number]["momentum_buffer"])
    assert lines(first) == lines(second)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed") / "run"


@pytest.fixture
def finished(undisturbed: Path, tiny_config: Callable[..., Config]) -> Path:
    """A run of `tiny_config("run.keep_checkpoints=0", "run.checkpoint_every=3")` from start to end."""
    if not undisturbed.exists():
        start_run(tiny_config("run.keep_checkpoints=0", "run.checkpoint_every=3"), undisturbed, QUIET)
    return undisturbed


def test_a_run_leaves_all_its_files(finished: Path) -> None:
    names = {entry.name for entry in finished.iterdir()}
    assert names == {
        "checkpoints", "config.toml", "environment.json", "evaluation.json", "log.jsonl", "tensorboard",
        "weights.safetensors",
    }  # fmt: skip
    steps = [line["step"] for line in lines(finished) if line["kind"] == "train"]
    assert steps == list(range(8))
    assert [line["stage"] for line in lines(finished) if line["kind"] == "train"] == ["stage0"] * 4 + ["stage1"] * 4
    scores = json.loads((finished / "evaluation.json").read_text())
    assert scores["images"] == 12
    assert scores == load_checkpoint(finished)["scores"]
    weights = load_file(finished / "weights.safetensors")
    assert all(torch.equal(weights[name], tensor) for name, tensor in load_checkpoint(finished)["model"].items())


def test_the_written_configuration_is_the_run_s(finished: Path, tiny_config: Callable[..., Config]) -> None:
    import tomllib

    written = build_config(tomllib.loads((finished / "config.toml").read_text()), "written")
    # What auto stands for is written: another machine would choose otherwise.
    assert written == tiny_config("run.keep_checkpoints=0", "run.checkpoint_every=3", "run.precision=fp32")


@pytest.mark.parametrize("step", [3, 4, 6, 8])  # inside stage 0, between the stages, inside stage 1, at the end
def test_a_continued_run_equals_the_undisturbed_one(
    finished: Path, tiny_config: Callable[..., Config], tmp_path: Path, step: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for checkpoint in checkpoints_of(run):
        if int(checkpoint.stem.removeprefix("step-")) > step:
            checkpoint.unlink()
    config = tiny_config("run.keep_checkpoints=0", "run.checkpoint_every=3", "data.workers=1")
    scores = start_run(config, run, QUIET, resume="required")
    assert (scores is None) == (step == 8)
    assert_same_run(finished, run)


def test_continuing_falls_back_from_a_truncated_checkpoint(
    finished: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    newest = checkpoints_of(run)[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    console = Console(record=True, width=200)
    start_run(tiny_config("run.keep_checkpoints=0", "run.checkpoint_every=3"), run, console, resume="required")
    assert "warning" in console.export_text()
    assert_same_run(finished, run)


def test_an_interrupted_evaluation_is_made_up_for(
    finished: Path, tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("run.keep_checkpoints=0", "run.checkpoint_every=3")

    def killed(self: Trainer, stop: object) -> None:
        self._save()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_score", killed)
        with pytest.raises(KeyboardInterrupt):
            start_run(config, tmp_path / "run", QUIET)
    start_run(config, tmp_path / "run", QUIET, resume="required")
    assert_same_run(finished, tmp_path / "run")


def test_resume_auto_starts_where_there_is_nothing(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    config = tiny_config("stage1.epochs=0")
    assert start_run(config, tmp_path / "run", QUIET, resume="auto") is not None
    assert start_run(config, tmp_path / "run", QUIET, resume="auto") is None


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_resumes_to_the_bit(tiny_config: Callable[..., Config], tmp_path: Path, name: str) -> None:
    """Interrupted inside its stage, with another method before it."""
    config = tiny_config(f"stage1.method={name}", "run.checkpoint_every=3", "run.keep_checkpoints=0", "eval.every=0")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    start_run(config, whole, QUIET)
    shutil.copytree(whole, resumed)
    for checkpoint in checkpoints_of(resumed):
        if int(checkpoint.stem.removeprefix("step-")) > 6:
            checkpoint.unlink()
    assert start_run(config, resumed, QUIET, resume="required") is not None
    assert_same_run(whole, resumed)
    assert lines(whole)[-2]["method"] == name


def test_a_folder_in_use_is_refused_and_left_alone(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="--resume"):
        start_run(tiny_config(), tmp_path, QUIET)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="is a file"):
        start_run(tiny_config(), tmp_path / "notes.txt", QUIET)
    with pytest.raises(UserError, match="no checkpoint"):
        start_run(tiny_config(), tmp_path, QUIET, resume="required")


@pytest.mark.parametrize("change", ["i2c.k=5", "run.seed=1", "batch.classes=2", "stage0.lr=0.5"])
def test_another_configuration_is_refused(
    finished: Path, tiny_config: Callable[..., Config], change: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    with pytest.raises(UserError, match=change.split("=")[0]):
        start_run(tiny_config("run.keep_checkpoints=0", "run.checkpoint_every=3", change), run, QUIET, "required")


def test_another_data_set_is_refused(
    finished: Path, tiny_config: Callable[..., Config], tiny_set: Path, tmp_path: Path
) -> None:
    run, other = tmp_path / "run", tmp_path / "set"
    shutil.copytree(finished, run)
    shutil.copytree(tiny_set, other)
    same = tiny_config("run.keep_checkpoints=0", "run.checkpoint_every=3", f"data.root={other}")
    assert start_run(same, run, QUIET, "required") is None  # the same images elsewhere are the same data set
    next((other / "Data/CLS-LOC/train").rglob("*.JPEG")).unlink()
    with pytest.raises(UserError, match="other training images"):
        start_run(same, run, QUIET, "required")


def test_a_checkpoint_of_another_backbone_or_other_classes_is_refused(
    finished: Path, tiny_config: Callable[..., Config], tiny_set: Path, tmp_path: Path
) -> None:
    init = f"model.init={checkpoints_of(finished)[-1]}"
    with pytest.raises(UserError, match=r"holds model\.backbone=tiny, .* asks for vgg16"):
        start_run(tiny_config(init, "model.backbone=vgg16"), tmp_path / "a", QUIET)
    fewer = tmp_path / "set"
    shutil.copytree(tiny_set, fewer)
    gone = sorted((fewer / "Data/CLS-LOC/train").iterdir())[-1]
    shutil.rmtree(gone)
    for annotation in (fewer / "Annotations/CLS-LOC/val").iterdir():
        if gone.name in annotation.read_text():
            (fewer / "Data/CLS-LOC/val" / f"{annotation.stem}.JPEG").unlink()
    with pytest.raises(UserError, match="3 classes"):
        start_run(tiny_config(init, f"data.root={fewer}"), tmp_path / "b", QUIET)
    assert not (tmp_path / "a").exists()


class Strided(torch.nn.Sequential):
    """A backbone that our code does not know."""

    out_channels, stride = 8, 16

    def __init__(self) -> None:
        super().__init__(torch.nn.Conv2d(3, 8, 16, stride=16), torch.nn.BatchNorm2d(8), torch.nn.ReLU())


def test_a_registered_backbone_is_trained_scored_and_localized_with(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones, "BACKBONES", dict(backbones.BACKBONES))
    backbones.register_backbone("strided", Strided, head_width=4)
    run = tmp_path / "run"
    scores = start_run(tiny_config("model.backbone=strided"), run, QUIET)
    assert scores is not None and scores.summary() == score_checkpoint(run, [], QUIET)[0].summary()
    (found,) = open_predictor(run, threshold=100)([np.zeros((50, 40, 3), np.uint8)])
    assert found.gray.shape == (50, 40)
    with pytest.raises(UserError, match=r"strided has stride 32, .* data\.image_size must be 64 or more, is 32"):
        monkeypatch.setattr(Strided, "stride", 32)
        start_run(tiny_config("model.backbone=strided"), tmp_path / "other", QUIET)


def test_another_class_count_can_start_with_a_new_class_layer(
    finished: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    write_generated(tmp_path / "five", seed=1, classes=5, train_images=2, val_images=1, size=32)
    changes = (f"data.root={tmp_path / 'five'}", "model.init_head=new")
    trainer = build_trainer(tiny_config(*changes, f"model.init={finished}"), tmp_path / "run", QUIET)
    start, started = load_checkpoint(finished)["model"], trainer.model.state_dict()
    assert started["head.fc8.weight"].shape[0] == 5
    assert all(torch.equal(start[name], started[name]) for name in start if not name.startswith("head.fc8."))
    with pytest.raises(UserError, match=r"needs model\.init"):
        build_trainer(tiny_config(*changes), tmp_path / "run", QUIET)


def test_both_branches_of_a_comparison_start_alike_and_see_the_same_batches(
    finished: Path, tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    stage0 = load_checkpoint(finished / "checkpoints" / "step-00000004.pt")["model"]
    init = f"model.init={finished / 'checkpoints' / 'step-00000004.pt'}"
    first = []
    for name in ("cam", "i2c"):
        start_run(tiny_config(init, "stage0.epochs=0", f"stage1.method={name}"), tmp_path / name, QUIET)
        first.append(lines(tmp_path / name)[0])
    assert first[0]["ce"] == first[1]["ce"]  # same weights, batch and dropout
    assert "sc" not in first[0] and first[1]["sc"] > 0
    assert not torch.equal(load_checkpoint(tmp_path / "cam")["model"]["head.fc8.weight"], stage0["head.fc8.weight"])


def test_evaluate_repeats_the_final_evaluation(finished: Path) -> None:
    scores, _ = score_checkpoint(finished, [], QUIET)
    assert scores.summary() == json.loads((finished / "evaluation.json").read_text())


def test_ten_steps_in_a_row_that_are_not_finite_stop_the_run(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(method_module, "cross_entropy", lambda logits, labels: logits.sum() * torch.nan)
    config = tiny_config("stage0.epochs=4", "eval.every=0")
    with pytest.raises(UserError, match="10 steps in a row") as caught:
        start_run(config, tmp_path / "run", QUIET)
    assert "\n" not in str(caught.value)
    logged = lines(tmp_path / "run")[:10]
    assert [(line["skipped"], line["loss"]) for line in logged] == [(1.0, None)] * 10
