"""A trained model as one file for other programs: ONNX, or a `torch.export` program (.pt2).

Its graph holds the normalization and plain operators only, in fp32, and takes batches of any size::

    images  uint8 RGB [N, 3, S, S]   resized to the square S by the caller, as `i2c_fast.data.resize` does
    logits  fp32 [N, Y]              class scores before the softmax
    maps    fp32 [N, Y, S/8, S/8]    raw map of every class; `i2c_fast.evaluation.PaperProtocol` makes boxes of them

S is fixed: at another size the maps would be worse without a word, where a forgotten resize now is an error. What a
program has to know beside the graph lies in the file as texts, as ONNX's metadata or the program's extra files:
``classes`` (a JSON list), ``image_size`` (S), ``backbone``, ``resize``, ``i2c_fast`` (the version that wrote it) and,
if the checkpoint stores one, ``threshold``, the gray level of boxes by the protocol named ``protocol``.

`i2c-fast predict` computes in the precision the run was trained in: its boxes of a bf16 run may differ from the file's
by a pixel or more, those of an fp32 run do not.

`EXAMPLE` turns a photo into a box with an ONNX file and neither torch nor i2c-fast. The same two outputs of a program::

    facts = {"classes": "", "image_size": "", "threshold": ""}
    logits, maps = torch.export.load("model.pt2", extra_files=facts).module()(images)
"""

import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .. import __version__
from ..config import build_config
from ..errors import UserError
from ..evaluation import PaperProtocol
from ..files import write_bytes
from ..models import Localizer
from ..runtime import memory_errors
from ..training import load_checkpoint, restore_predictor, stored_threshold

EXAMPLE = """\
import json, cv2, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
facts = session.get_modelmeta().custom_metadata_map
side, threshold = int(facts["image_size"]), int(facts["threshold"])
image = cv2.imread("photo.jpg", cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
logits, maps = session.run(None, {"images": cv2.resize(image, (side, side)).transpose(2, 0, 1)[None]})
label = logits[0].argmax()
cam = (maps[0, label] - maps[0, label].min()) / (maps[0, label].max() - maps[0, label].min())
gray = (255 * cv2.resize(cam, image.shape[1::-1])).clip(0, 255).astype("uint8")
regions = cv2.connectedComponentsWithStats((gray > threshold).astype("uint8"), connectivity=8)[2]
x, y, width, height, _ = max(regions[1:].tolist(), key=lambda region: region[4])  # the largest; 0 is what is below
print(json.loads(facts["classes"])[label], [x, y, x + width - 1, y + height - 1])"""

# The opset that torch writes by itself. Newer ones are converted from it and bring these graphs nothing; older ones are
# converted too, and every runtime of the last years reads this one (ONNX Runtime since 1.14).
OPSET = 18

# Of the largest value of an output. Between runtimes rounding makes some 1e-6 of it; a wrong padding or a forgotten
# layer makes far more than this.
TOLERANCE = 1e-4

Run = Callable[[Tensor], Sequence[Tensor]]  # images → (logits, maps)


class PortableLocalizer(nn.Module):
    """uint8 images [N,3,S,S] → (logits [N,Y], raw maps of all classes [N,Y,S/8,S/8]), by plain operators alone."""

    def __init__(self, model: Localizer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # Floats from 0 to 1 would give nonsense silently. A cast to float would check the type as well, and tie the
        # program to the device it was exported on.
        torch.ops.aten._assert_tensor_metadata(images, dtype=torch.uint8)
        logits, maps = self.model.class_maps(images)
        return logits, maps


class Export(NamedTuple):
    """What came of an export: bytes written, the threshold in it, and the file's largest differences from the model.

    Differences are relative to the largest absolute value of that output.
    """

    size: int
    threshold: int | None
    logits: float
    maps: float


class Format(NamedTuple):
    """How a kind of file is written and run."""

    write: Callable[[ExportedProgram, Mapping[str, str]], bytes]
    read: Callable[[bytes], Run]
    packages: tuple[str, ...]  # of the extra `export`


@memory_errors("close other programs, or export on a machine with more")
def export_checkpoint(checkpoint: Path, output: Path, ema: bool | None = None) -> Export:
    """Write a checkpoint's model, after comparing what the file computes with what the model computes.

    Args:
        checkpoint: the file, or a run folder, whose newest one is taken.
        output: ends in a key of `FORMATS`. A file that is there stays as it is until the new one has passed.
        ema: see `restore_predictor`.

    Raises:
        UserError: another ending, packages missing or too old, no checkpoint, a difference above `TOLERANCE`, or an
            output that cannot be written.
    """
    form = _format_of(output)
    state = load_checkpoint(checkpoint)
    config = build_config(state["config"], "the checkpoint")
    model = restore_predictor(state, ema).eval().requires_grad_(False)
    threshold = stored_threshold(state)
    facts = {
        "classes": json.dumps(state["classes"]),
        "image_size": str(config.data.image_size),
        "backbone": config.model.backbone,
        "resize": config.data.resize,
        "i2c_fast": __version__,
    }
    if threshold is not None:
        facts |= {"protocol": PaperProtocol.name, "threshold": str(threshold)}
    with quiet():
        data = form.write(capture(model, config.data.image_size), facts)
        logits, maps = differences(model, form.read(data), config.data.image_size)
    # Written this way round, NaN does not pass.
    if not (logits <= TOLERANCE and maps <= TOLERANCE):
        raise UserError(
            f"{output} is not written: it would differ from the checkpoint's model by {logits:.1e} (logits) and "
            f"{maps:.1e} (maps) of the largest value, where {TOLERANCE:.0e} is allowed; take the other of "
            f"{' and '.join(FORMATS)}, or other versions of {', '.join(('torch', *form.packages))}"
        )
    write_bytes(output, data)
    return Export(len(data), threshold, logits, maps)


def capture(model: Localizer, side: int) -> ExportedProgram:
    """The graph of `PortableLocalizer` for batches of any size; `model` is on the CPU in evaluation mode."""
    # Two images: torch.export takes a size of 1 for a constant.
    example = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    program = torch.export.export(PortableLocalizer(model), (example,), dynamic_shapes=_any_batch())
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # holds the paths of this machine
    return program


def differences(model: Localizer, run: Run, side: int) -> tuple[float, float]:
    """Largest differences of `run` from `model`, of logits and maps, relative to each one's largest absolute value.

    Raises:
        UserError: the model's own outputs are not finite.
    """
    noise = torch.Generator().manual_seed(0)
    batches = [torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=noise) for n in (1, 2, 5)]
    batches.append(torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1, 1).repeat(1, 3, side, side))
    pairs = [(_as_evaluated(model, images), run(images)) for images in batches]
    logits, maps = (_difference([(own[i], other[i]) for own, other in pairs]) for i in range(2))
    return logits, maps


@torch.no_grad()
def _as_evaluated(model: Localizer, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and all maps the way evaluation computes them, class by class, not the way the graph does."""
    logits = model(images)
    return logits, model.class_maps(images, torch.arange(logits.shape[1]).expand_as(logits)).maps


def _difference(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    if any(own.shape != other.shape or own.dtype != other.dtype for own, other in pairs):
        return float("inf")
    own, other = (torch.cat([values.flatten() for values in column]) for column in zip(*pairs, strict=True))
    if not own.isfinite().all():
        raise UserError("the checkpoint's model gives NaN or infinite outputs; export an earlier checkpoint")
    # Not relative to the spread: one class has logits of nearly none.
    return float((own - other).abs().max() / own.abs().max().clamp_min(torch.finfo(own.dtype).tiny))


def _write_torch(program: ExportedProgram, facts: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=dict(facts))
    return buffer.getvalue()


def _read_torch(data: bytes) -> Run:
    return torch.export.load(io.BytesIO(data)).module()


def _write_onnx(program: ExportedProgram, facts: Mapping[str, str]) -> bytes:
    try:
        onnx: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits", "maps"],
            dynamic_shapes=_any_batch(),  # the program knows; here it names the axis
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"torch {torch.__version__} cannot write ONNX with the onnxscript installed here: "
            "pip install --upgrade onnx onnxscript onnxruntime, or choose a name that ends in .pt2"
        ) from error
    onnx.model.metadata_props.update(facts)
    return onnx.model_proto.SerializeToString()


def _read_onnx(data: bytes) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(found) for found in session.run(None, {"images": images.numpy()})]


FORMATS = {
    ".onnx": Format(_write_onnx, _read_onnx, ("onnx", "onnxscript", "onnxruntime")),
    ".pt2": Format(_write_torch, _read_torch, ()),
}


def _format_of(output: Path) -> Format:
    if output.suffix.lower() not in FORMATS:
        raise UserError(f"--output {output}: the file's name must end in {' or '.join(FORMATS)}, which says its format")
    if os.path.isdir(output):  # Path.is_dir raises for names too long
        raise UserError(f"--output {output} is a folder; name a file")
    form = FORMATS[output.suffix.lower()]
    for package in form.packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"--output {output}: ONNX needs {package} ({' '.join(str(error).split())}): "
                f"pip install {' '.join(form.packages)}, or choose a name that ends in .pt2"
            ) from None
    return form


def _any_batch() -> dict[str, dict[int, Any]]:
    return {"images": {0: Dim("batch")}}


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps warnings of the exporters off the terminal: they tell of torch's own code and of optional packages."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
