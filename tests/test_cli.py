"""The command line as people use it, with right and wrong input."""

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

import i2c_fast.kernels
from i2c_fast.cli import main
from i2c_fast.config import Config, keys, recipe_names
from i2c_fast.training import start_run

from .conftest import TINY


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli") / "run"


@pytest.fixture
def run(shared_run: Path, tiny_config: Callable[..., Config]) -> Path:
    """A finished run."""
    if not shared_run.exists():
        start_run(tiny_config(), shared_run, Console(quiet=True))
    return shared_run


def assert_one_line(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("i2c-fast: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_interpreter_without_triton_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Path(i2c_fast.kernels.__file__).with_name("_triton.py")
    monkeypatch.setenv("I2C_FAST_BACKEND", "interpret")
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    monkeypatch.setattr("i2c_fast.environment.environment", lambda: runpy.run_path(str(backend)))
    assert_one_line(call("env"), "I2C_FAST_BACKEND=interpret needs Triton")


def test_the_package_is_a_module_to_run_as_torchrun_does() -> None:
    command = [sys.executable, "-m", "i2c_fast", "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: i2c-fast train")


def test_train_evaluate_predict_from_the_shell(tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('description = "mine"\n[i2c]\nk = 2\n')
    command = [sys.executable, "-m", "i2c_fast.cli", "train", recipe, f"data.root={tiny_set}", *TINY]
    command.append("model.backbone=resnet18")
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "gt-known" in done.stdout
    assert "k = 2" in (tmp_path / "runs/mine/config.toml").read_text()
    monkeypatch.chdir(tmp_path)

    def work(*arguments: str | Path) -> None:
        result = call(*arguments)
        assert result.exit_code == 0, result.output

    work("evaluate", "runs/mine", "--output", "errors.json")
    again = json.loads((tmp_path / "errors.json").read_text())["errors"]["runs/mine"]
    assert again == json.loads((tmp_path / "runs/mine/evaluation.json").read_text())
    first = sorted((tmp_path / "runs/mine/checkpoints").iterdir())[0]
    work("evaluate", "runs/mine", "--against", first, "--output", "pair.json")
    pair = json.loads((tmp_path / "pair.json").read_text())
    errors = [pair["errors"][name]["cls_top1"] for name in (str(first), "runs/mine")]
    assert pair["differences"]["cls_top1"]["difference"] == pytest.approx(errors[1] - errors[0])
    val = tiny_set / "Data/CLS-LOC/val"
    work("predict", "runs/mine", val, "--boxes", tiny_set, "--output", "out")
    predictions = json.loads((tmp_path / "out/boxes.json").read_text())["predictions"]
    assert len(predictions) == 12
    assert all(len(p["gt_boxes"]) == 1 and (tmp_path / "out" / p["overlay"]).is_file() for p in predictions)


def test_predict_uses_the_stored_threshold_unless_told(run: Path, tiny_set: Path, tmp_path: Path) -> None:
    image = sorted((tiny_set / "Data/CLS-LOC/val").iterdir())[0]
    stored = json.loads((run / "evaluation.json").read_text())["gt_known"]["threshold"]
    for name, options, expected in [("a", [], stored), ("b", ["--threshold", "17"], 17)]:
        result = call("predict", run, image, "--output", tmp_path / name, *options)
        assert result.exit_code == 0, result.output
        assert json.loads((tmp_path / name / "boxes.json").read_text())["threshold"] == expected


def test_predict_without_a_stored_threshold_requires_one(
    tiny_config: Callable[..., Config], tiny_set: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "set"
    for split in ("train", "val"):
        for source in (tiny_set / "Data/CLS-LOC/train").iterdir():
            target = plain / split / source.name
            target.mkdir(parents=True)
            for image in sorted(source.iterdir())[:2]:
                (target / image.name).write_bytes(image.read_bytes())
    start_run(tiny_config(f"data.root={plain}", "stage1.epochs=0"), tmp_path / "run", Console(quiet=True))
    assert_one_line(call("predict", tmp_path / "run", plain / "val", "-o", tmp_path / "p"), "--threshold")
    result = call("predict", tmp_path / "run", plain / "val", "-o", tmp_path / "p", "--threshold", "80")
    assert result.exit_code == 0, result.output


def test_predict_keeps_pictures_of_equal_names_apart(run: Path, tiny_set: Path, tmp_path: Path) -> None:
    data = next((tiny_set / "Data/CLS-LOC/val").iterdir()).read_bytes()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.jpeg").write_bytes(data)
    assert call("predict", run, tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out").exit_code == 0
    pictures = list((tmp_path / "out/overlays").iterdir())
    assert len(pictures) == 2
    assert all(cv2.imread(str(picture)) is not None for picture in pictures)


def test_predict_names_what_is_wrong(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("no image")
    out = tmp_path / "out"
    assert_one_line(call("predict", run, tmp_path / "missing.jpg", "-o", out), "missing.jpg")
    assert_one_line(call("predict", run, tmp_path / "empty", "-o", out), "no image files")
    assert_one_line(call("predict", run, tmp_path / "text.jpg", "-o", out), "text.jpg")
    assert_one_line(call("predict", tmp_path / "no.pt", tmp_path, "-o", out), "no.pt")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "ilsvrc10_resnet19"], ["did you mean ilsvrc10_resnet18"]),
        (["train", "demo", "data.rot=x"], ["did you mean data.root"]),
        (["train", "demo", "data.root"], ["key=value"]),
        (["train", "demo", "i2c.k=three"], ["i2c.k=three", "integer"]),
        (["train", "demo"], ["data.root is not set"]),
        (["train", "demo", "data.root=/nowhere/at/all"], ["/nowhere/at/all"]),
        (["train", "demo", "model.backbone=resnet", "data.root=ROOT"], ["model.backbone", "did you mean"]),
        (["train", "demo", "run.device=cuda:7", "data.root=ROOT"], ["run.device=cuda:7", "run.device=cpu"]),
        (["train", "demo", "run.device=banana", "data.root=ROOT"], ["run.device=banana"]),
        (["train", "demo", "model.weights=/no/file.pth", "data.root=ROOT"], ["/no/file.pth"]),
        (["train", "demo", "model.init=/no/run", "data.root=ROOT"], ["/no/run"]),
        (["evaluate", "/no/run"], ["/no/run"]),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], words: list[str], tiny_set: Path, tmp_path: Path) -> None:
    arguments = [argument.replace("ROOT", str(tiny_set)) for argument in arguments]
    if arguments[0] == "train":
        arguments += ["--output", str(tmp_path / "run")]
    assert_one_line(call(*arguments), *words)
    assert not (tmp_path / "run").exists()


def test_print_config_is_a_recipe(tmp_path: Path) -> None:
    printed = call("train", "demo", "i2c.k=7", "--print-config")
    assert printed.exit_code == 0
    (tmp_path / "again.toml").write_text(printed.output)
    assert call("train", tmp_path / "again.toml", "--print-config").output == printed.output


def test_every_key_is_in_the_help() -> None:
    listed = call("train", "--help").output
    assert all(name in listed for name, *_ in keys())


def test_every_recipe_is_listed_and_resolves() -> None:
    listed = call("recipes").output
    for name in recipe_names():
        assert name in listed
        assert call("train", name, "--print-config").exit_code == 0


def test_env_names_the_versions() -> None:
    printed = call("env").output
    assert all(word in printed for word in ("torch", "numpy", "gpu", "cpu"))


def test_the_package_imports_without_optional_packages() -> None:
    program = (
        "import sys\n"
        "for name in ('triton', 'nvidia', 'apex', 'torchvision', 'onnx', 'onnxscript', 'onnxruntime'):\n"
        "    sys.modules[name] = None\n"
        "import i2c_fast, i2c_fast.cli, i2c_fast.kernels\n"
        "from i2c_fast.commands import demo, evaluate, export, predict, score, validate_data\n"
        "from i2c_fast.report import page\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_demo_refuses_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    assert_one_line(call("demo", "--output", tmp_path), "not empty")
