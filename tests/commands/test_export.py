"""Exported files: the model's own outputs for any batch, their facts, and nothing left where something is wrong."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from i2c_fast import __version__
from i2c_fast.cli import main
from i2c_fast.commands import export as exporting
from i2c_fast.commands.export import EXAMPLE, FORMATS, TOLERANCE, Run, export_checkpoint
from i2c_fast.commands.predict import Predictor
from i2c_fast.config import build_config
from i2c_fast.errors import UserError
from i2c_fast.models import Localizer, build_localizer
from i2c_fast.training import load_checkpoint, restore_predictor, save_checkpoint

from ..checkpoints import whole_state
from ..conftest import TINY
from ..tiny import BUILT_IN

SIDE = 64
CLASSES = ["cat", "dog", "füchse"]
PAPER = {"protocol": "paper", "gt_known": {"threshold": 100}}

HAS_ONNX = all(find_spec(name) for name in FORMATS[".onnx"].packages)
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs i2c-fast[export]")
BOTH = [pytest.param(".onnx", marks=needs_onnx), ".pt2"]

# Blocks of the operators of the one before, which take the exporter a second each.
REPEATED = {
    "resnet50": [f"layer{stage}.{i}" for stage, blocks in enumerate((3, 4, 6, 3), 1) for i in range(1, blocks)],
    "inception_v3": ["Mixed_5d", "Mixed_6c", "Mixed_6d", "Mixed_6e"],
}


def write_checkpoint(
    path: Path, scores: dict[str, Any] | None = PAPER, model: Localizer | None = None, backbone: str = "resnet18"
) -> Path:
    """A checkpoint of a model no run has trained."""
    changes = ("data.image_size=64", "data.short_side=64", "stage1.method=cam")
    config = build_config({}, "tests", (*TINY, *changes, f"model.backbone={backbone}"))
    save_checkpoint(path, whole_state(config, CLASSES, model, scores=scores))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    return write_checkpoint(tmp_path_factory.mktemp("export") / "model.pt")


@pytest.fixture
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Checkpoints of a model that exports in a second, where it does not matter which."""
    folder = tmp_path_factory.mktemp("small")
    return lambda **options: write_checkpoint(folder / "model.pt", **options, backbone="tiny")


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> dict[str, Path]:
    """The checkpoint in each format, as it is asked for. Not to be written to."""

    class Files(dict[str, Path]):
        def __missing__(self, suffix: str) -> Path:
            self[suffix] = checkpoint.with_suffix(suffix)
            export_checkpoint(checkpoint, self[suffix])
            return self[suffix]

    return Files()


def runner(path: Path) -> Run:
    """What the file computes."""
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return lambda images: [
        torch.from_numpy(found) for found in session.run(["logits", "maps"], {"images": images.numpy()})
    ]


def facts_of(path: Path) -> dict[str, str]:
    """The texts in the file."""
    if path.suffix == ".pt2":
        facts = {"classes": ""}  # one that is asked for brings all
        torch.export.load(path, extra_files=facts)
        return facts
    import onnxruntime

    found: dict[str, str] = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    return found


def photos(n: int) -> Tensor:
    return torch.randint(256, (n, 3, SIDE, SIDE), dtype=torch.uint8)


@torch.no_grad()
def by_hand(checkpoint: Path, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and all maps, written out: every class's weights over x, and the mean over the map."""
    model = restore_predictor(load_checkpoint(checkpoint)).eval()
    x = model.head(model.body(model.normalize(images)))
    maps = torch.einsum("nchw,yc->nyhw", x, model.head.fc8.weight[:, :, 0, 0])
    maps = maps + model.head.fc8.bias[:, None, None]
    return maps.mean(dim=(2, 3)), maps


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def assert_one_line(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("i2c-fast: ") and result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("suffix", BOTH)
def test_batches_of_any_size_give_logits_and_all_maps(suffix: str, checkpoint: Path, exported: dict[str, Path]) -> None:
    run = runner(exported[suffix])
    for n in (1, 3, 4):
        images = photos(n)
        logits, maps = run(images)
        assert logits.shape == (n, len(CLASSES)) and maps.shape == (n, len(CLASSES), SIDE // 8, SIDE // 8)
        assert not logits.requires_grad
        assert_close((logits, maps), by_hand(checkpoint, images))


@pytest.mark.parametrize("backbone", [name for name in BUILT_IN if name != "resnet18"])
def test_the_other_backbones_come_through(backbone: str, exhaustive: bool) -> None:
    if backbone == "resnet50" and not exhaustive:
        pytest.skip("its operators are those of ResNet18, which the other tests export")
    model = build_localizer(backbone, len(CLASSES)).eval().requires_grad_(False)
    for block in REPEATED.get(backbone, []):
        model.body.set_submodule(block, torch.nn.Identity(), strict=True)
    form = FORMATS[".onnx" if HAS_ONNX else ".pt2"]  # ONNX is made of the program that .pt2 holds
    with exporting.quiet():
        run = form.read(form.write(exporting.capture(model, 32), {}))
    assert max(exporting.differences(model, run, 32)) < TOLERANCE / 10


@pytest.mark.parametrize("suffix", BOTH)
def test_facts_lie_in_the_file(suffix: str, exported: dict[str, Path]) -> None:
    facts = facts_of(exported[suffix])
    assert json.loads(facts.pop("classes")) == CLASSES
    assert {
        name: facts.get(name) for name in ("image_size", "backbone", "resize", "i2c_fast", "protocol", "threshold")
    } == {
        "image_size": "64",
        "backbone": "resnet18",
        "resize": "linear",
        "i2c_fast": __version__,
        "protocol": "paper",
        "threshold": "100",
    }


def test_without_a_stored_threshold_the_file_has_none_and_the_command_says_so(
    tmp_path: Path, small_checkpoint: Callable[..., Path]
) -> None:
    source = small_checkpoint(scores=None)
    assert "no threshold of the paper protocol" in call(source, "-o", tmp_path / "model.pt2").output
    assert not {"threshold", "protocol"} & set(facts_of(tmp_path / "model.pt2"))


def test_memory_format_matters_neither_in_the_checkpoint_nor_in_the_batch(checkpoint: Path, tmp_path: Path) -> None:
    model = restore_predictor(load_checkpoint(checkpoint)).to(memory_format=torch.channels_last)
    source = write_checkpoint(tmp_path / "model.pt", model=model)
    export_checkpoint(source, tmp_path / "model.pt2")
    images = photos(2)
    found = runner(tmp_path / "model.pt2")(images.contiguous(memory_format=torch.channels_last))
    assert_close(found, by_hand(checkpoint, images))


@pytest.mark.parametrize("suffix", BOTH)
def test_floats_and_other_sizes_are_errors(suffix: str, exported: dict[str, Path]) -> None:
    run = runner(exported[suffix])
    for images in (photos(1) / 255, photos(1)[..., :-1]):
        with pytest.raises(Exception, match=r"(?i)expected|guard"):
            run(images)


def test_program_is_tied_to_no_device(exported: dict[str, Path]) -> None:
    assert "device" not in str(torch.export.load(exported[".pt2"]).graph)


@needs_onnx
def test_graphs_hold_plain_operators_and_name_inputs_outputs_and_batch(exported: dict[str, Path]) -> None:
    import onnx

    calls = [node for node in torch.export.load(exported[".pt2"]).graph.nodes if node.op == "call_function"]
    assert {node.target.namespace for node in calls} == {"aten"}
    model = onnx.load(exported[".onnx"])
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", exporting.OPSET)]
    assert [value.name for value in model.graph.output] == ["logits", "maps"]
    (images,) = model.graph.input
    assert images.name == "images" and images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [size.dim_param or size.dim_value for size in images.type.tensor_type.shape.dim] == ["batch", 3, 64, 64]


@pytest.mark.parametrize("suffix", BOTH)
def test_paths_of_this_machine_stay_out(suffix: str, exported: dict[str, Path]) -> None:
    data = exported[suffix].read_bytes()
    assert str(Path(exporting.__file__).parent).encode() not in data
    assert str(Path(torch.__file__).parent).encode() not in data


@needs_onnx
def test_the_example_needs_neither_torch_nor_us_and_gives_the_boxes_of_predict(
    checkpoint: Path, exported: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").symlink_to(exported[".onnx"])
    predictor = Predictor(load_checkpoint(checkpoint), "cpu")
    program = "import sys\nfor name in ('torch', 'i2c_fast'):\n    sys.modules[name] = None\n"
    expected = []
    for i, (height, width) in enumerate([(50, 81), (120, 64)]):
        image = cv2.resize(np.random.default_rng(i).integers(0, 256, (6, 6, 3), np.uint8), (width, height))
        cv2.imwrite(str(tmp_path / f"photo{i}.png"), image[..., ::-1])
        (found,) = predictor([image])
        expected.append(f"{CLASSES[found.label]} {list(found.box)}")
        program += EXAMPLE.replace("photo.jpg", f"photo{i}.png") + "\n"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.stdout.splitlines() == expected, done.stderr


def test_the_example_is_in_the_help() -> None:
    assert all(f"  {line}" in call("--help").output for line in EXAMPLE.splitlines())


@pytest.mark.parametrize("suffix", BOTH)
def test_the_command_prints_one_line(
    suffix: str, checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = call(checkpoint, "--output", tmp_path / f"model{suffix}")
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r".*/model\.\w+: 1\d\.\d MB, threshold 100; .*logits \S+, maps \S+\n", result.output)
    assert capfd.readouterr() == ("", "")  # what the exporters wrote past the command
    assert names(tmp_path) == [f"model{suffix}"]


def test_quiet_holds_back_warnings_but_no_errors(
    recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    with exporting.quiet():
        warnings.warn("of no use", stacklevel=1)
        logging.getLogger("any").warning("of no use")
        logging.getLogger("any").error("an error")
    logging.getLogger("any").warning("afterwards")
    assert not recwarn.list
    assert caplog.messages == ["an error", "afterwards"]


@pytest.mark.parametrize(("output", "change"), [("logits", 1 + 1e-3), ("maps", float("nan"))])
def test_a_file_that_differs_is_not_kept(
    output: str,
    change: float,
    small_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def read(data: bytes) -> Run:
        right = torch.export.load(io.BytesIO(data)).module()

        def run(images: Tensor) -> tuple[Tensor, Tensor]:
            logits, maps = right(images)
            last = torch.ones(len(images))
            last[3:] *= change  # in large batches only
            return (logits * last[:, None], maps) if output == "logits" else (logits, maps * last[:, None, None, None])

        return run

    monkeypatch.setitem(exporting.FORMATS, ".pt2", FORMATS[".pt2"]._replace(read=read))
    (tmp_path / "model.pt2").write_text("of an earlier export")
    result = call(small_checkpoint(), "-o", tmp_path / "model.pt2")
    assert_one_line(result, "model.pt2 is not written", "the other of .onnx and .pt2", "torch")
    assert names(tmp_path) == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_text() == "of an earlier export"


def test_maps_of_another_shape_differ(checkpoint: Path) -> None:
    model = restore_predictor(load_checkpoint(checkpoint)).eval()

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, maps = model.class_maps(images)
        return logits.detach(), maps.detach().mean(dim=(2, 3), keepdim=True)

    logits, maps = exporting.differences(model, run, SIDE)
    assert logits == 0 and maps == float("inf")


def test_a_model_of_one_class_or_of_zeros_can_be_compared() -> None:
    model = build_localizer("resnet18", 1).eval().requires_grad_(False)
    for factor in (1, 0):
        model.head.fc8.weight.mul_(factor)
        assert max(exporting.differences(model, exporting.PortableLocalizer(model), SIDE)) < 1e-5


def test_a_model_that_is_not_finite_is_named(tmp_path: Path, small_checkpoint: Callable[..., Path]) -> None:
    model = build_localizer("tiny", len(CLASSES))
    torch.nn.init.constant_(model.head.fc7.bias, float("nan"))
    with pytest.raises(UserError, match="NaN or infinite"):
        export_checkpoint(small_checkpoint(model=model), tmp_path / "model.pt2")
    assert not names(tmp_path)


@pytest.mark.parametrize("missing", FORMATS[".onnx"].packages)
def test_without_one_of_its_packages_onnx_is_one_line(
    missing: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    result = call(checkpoint, "-o", tmp_path / "model.onnx")
    assert_one_line(result, "pip install onnx onnxscript onnxruntime", ".pt2")
    assert not names(tmp_path)


@needs_onnx
def test_an_exporter_that_fails_is_one_line(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.onnx.OnnxExporterError("many\nlines")

    monkeypatch.setattr(torch.onnx, "export", fail)
    result = call(checkpoint, "-o", tmp_path / "model.onnx")
    assert_one_line(result, torch.__version__, "pip install --upgrade onnx onnxscript onnxruntime", ".pt2")
    assert not names(tmp_path)


def test_a_program_needs_none_of_them(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FORMATS[".onnx"].packages:
        monkeypatch.setitem(sys.modules, name, None)
    assert call(checkpoint, "-o", tmp_path / "model.pt2").exit_code == 0


@pytest.mark.parametrize(
    ("source", "output", "words"),
    [
        ("missing.pt", "a.pt2", ["missing.pt does not exist"]),
        ("text.pt", "a.pt2", ["text.pt is not a readable i2c-fast checkpoint"]),
        ("empty", "a.pt2", ["empty holds no checkpoint"]),
        ("CHECKPOINT", "a.tflite", ["--output", "a.tflite", ".onnx or .pt2"]),
        ("CHECKPOINT", "a", ["--output", ".onnx or .pt2"]),
        ("CHECKPOINT", "folder.pt2", ["--output", "folder.pt2 is a folder"]),
        ("CHECKPOINT", f"{'n' * 300}.pt2", ["cannot write", "File name too long"]),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    source: str, output: str, words: list[str], checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "text.pt").write_text("text\n")
    before = names(tmp_path)
    path = checkpoint if source == "CHECKPOINT" else tmp_path / source
    assert_one_line(call(path, "-o", tmp_path / output), *words)
    assert names(tmp_path) == before and not names(tmp_path / "folder.pt2")
