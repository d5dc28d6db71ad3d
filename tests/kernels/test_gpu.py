"""What only a GPU can show of the kernels: ``pytest -m gpu tests/kernels/test_gpu.py``.

The references compute in fp64 on the same GPU, which no Triton kernel does. With NVIDIA's compute-sanitizer:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 1 \
        python -m pytest -m gpu tests/kernels/test_gpu.py -k "odd_sizes"
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from benchmarks import objective
from benchmarks.candidates import NAMES, subject
from benchmarks.objective import Bank, Batch
from benchmarks.sizes import BASE, DTYPES, Size
from i2c_fast import InterImageLoss
from i2c_fast.kernels import (
    gather_pixels,
    inter_image_loss,
    label_cam,
    label_cam_reference,
    pooled_head,
    sample_pixels,
)
from i2c_fast.kernels._add_columns import add_columns_
from i2c_fast.kernels._common import Distance
from i2c_fast.kernels.tap_dropout import tap_dropout

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")

ODD = Size(6, 5, 4, 65, 13, 17, 130)
USUAL = replace(BASE, images=16)
LAYOUTS = ("channels_last", "NCHW")


@contextmanager
def no_synchronization() -> Iterator[None]:
    """torch raises where the host would wait for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def agrees(name: str, size: Size, provider: str) -> bool:
    verdicts = subject(name, size, DEVICE).candidates[provider]().check()
    return all(verdict.right for verdict in verdicts.values())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_agree_with_fp64_at_odd_sizes(name: str, layout: str, dtype: str) -> None:
    assert agrees(name, replace(ODD, layout=layout, dtype=dtype), "fused")


@pytest.mark.parametrize("size", [USUAL, replace(USUAL, seeds=20, height=40, width=40)], ids=Size.changes)
@pytest.mark.parametrize("name", NAMES)
def test_kernels_agree_with_fp64_at_usual_sizes(name: str, size: Size) -> None:
    assert agrees(name, size, "fused")


# Labels of 3 classes.
UNUSUAL = {
    "unpaired": [0, 0, 1],
    "ignored": [-100, 0, 0, -100],
    "many members": [2] * 77 + [0] * 3,
    "more images than a block of labels": [0, 1, 2] * 400,
}


@pytest.mark.parametrize("distance", ["squared_l2", "l2"])
@pytest.mark.parametrize("batch", UNUSUAL)
def test_unusual_batches_agree_with_fp64_at_odd_sizes_in_fp32(batch: str, distance: Distance) -> None:
    labels = torch.tensor(UNUSUAL[batch], device=DEVICE)
    features, centers = torch.randn(len(labels), 65, 3, 5, device=DEVICE), torch.randn(3, 65, device=DEVICE)
    indices = torch.randint(15, (len(labels), 5), dtype=torch.int32, device=DEVICE)

    def results(dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaf = features.detach().to(dtype).requires_grad_()
        out = inter_image_loss(leaf, indices, labels, centers.to(dtype), distance=distance)
        (gradient,) = torch.autograd.grad(out.sc + out.gc, leaf)
        return out.sc.detach(), out.gc.detach(), out.class_means.means, gradient

    for got, expected in zip(results(torch.float32), results(torch.float64), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_replayed_graph_computes_the_same(name: str) -> None:
    # Of the objective this also shows that the seed advances from replay to replay.
    assert agrees(name, ODD, "fused+graph")


def test_a_kept_kernel_serves_no_tensor_of_another_alignment_dtype_or_size() -> None:
    rows, weight, labels = torch.randn(4, 65, 33, device=DEVICE), torch.randn(7, 64, device=DEVICE), torch.arange(4)
    views = [rows[:, :64, :32], rows[:, 1:, 1:], rows[:, :64, :1], rows.half()[:, 1:, :32], rows.half()[:, :64, 1:17]]
    for view in views * 2:
        x = view.unsqueeze(2)
        expected = label_cam_reference(x.double(), weight.double(), None, labels.to(DEVICE))
        got = label_cam(x, weight, None, labels.to(DEVICE)).double()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [3, 16, 20])  # by rounds, and by a sort
def test_a_draw_is_that_of_the_cpu(k: int) -> None:
    maps, seed = torch.rand(5, 40, 40), torch.tensor([2**40 + 3, 2**33 + 1])
    here = sample_pixels(maps.to(DEVICE), k, 0.7, seed.to(DEVICE))
    for on_gpu, on_cpu in zip(here, sample_pixels(maps, k, 0.7, seed), strict=True):
        assert torch.equal(on_gpu.cpu(), on_cpu)


def test_replays_draw_what_single_steps_draw() -> None:
    batch, bank = objective.make_batch(ODD, DEVICE)
    single, replayed = (objective.fused(ODD, DEVICE, in_place=True) for _ in range(2))
    own = Bank(*(tensor.clone() for tensor in bank))
    expected = [single(batch, own).indices.clone() for _ in range(7)]
    for _ in range(3):
        replayed(batch, bank)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outcome = replayed(batch, bank)
    for indices in expected[3:]:  # a capture runs nothing: the first replay is the fourth step
        graph.replay()
        assert torch.equal(outcome.indices, indices)


class Model(nn.Module):
    """The places of a training step in which the objective stands, small."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 64, 3, stride=2), nn.Conv2d(64, 128, 3, padding=1)
        self.classify, self.dropout = nn.Linear(128, 5), dropout

    def forward(self, images: Tensor, labels: Tensor, criterion: InterImageLoss) -> Tensor:
        features = torch.relu(self.body(images))
        dropped, slots = tap_dropout(features, criterion.k, self.dropout)
        x = torch.relu(self.head(dropped))
        logits, maps = pooled_head(x, self.classify.weight, self.classify.bias, labels)
        terms = criterion(features, maps, labels, slots=slots)
        loss: Tensor = nn.functional.cross_entropy(logits.float(), labels) + 0.1 * terms.sc + 0.1 * terms.gc
        return loss


class Training(NamedTuple):
    model: Model
    criterion: InterImageLoss
    images: Tensor
    labels: Tensor

    def gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]


def training(dropout: float = 0.5) -> Training:
    torch.manual_seed(0)
    model = Model(dropout).to(DEVICE, memory_format=torch.channels_last)
    images = torch.randn(8, 3, 33, 33).to(DEVICE, memory_format=torch.channels_last)
    labels = torch.tensor([0, 0, 3, 3, 1, 1, -100, 4]).to(DEVICE)
    return Training(model, InterImageLoss(5, 64, auto_commit=False).to(DEVICE), images, labels)


def test_a_step_never_waits_for_the_gpu() -> None:
    t = training()
    optimizer = torch.optim.SGD(t.model.parameters(), lr=0.01, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        t.model(t.images, t.labels, t.criterion).backward()
        optimizer.step()
        t.criterion.commit(found_inf=torch.zeros((), device=DEVICE))

    step()  # compiles
    with no_synchronization():
        step()
    assert all(gradient.isfinite().all() for gradient in t.gradients())


@pytest.mark.parametrize("in_place", [True, False])
def test_runs_are_equal_bit_for_bit(in_place: bool) -> None:
    size = replace(USUAL, seeds=20)  # many seeds on few pixels repeat
    batch, bank = objective.make_batch(size, DEVICE)

    def run() -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        mine = Batch(*batch)._replace(gradient=batch.gradient.clone())
        own = Bank(*(tensor.clone() for tensor in bank))
        outcome = objective.fused(size, DEVICE, in_place)(mine, own)
        return *outcome, *own

    first = run()
    for _ in range(10):
        for tensor, expected in zip(run(), first, strict=True):
            assert torch.equal(tensor, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_gradient_of_the_head_weights_is_equal_bit_for_bit(dtype: torch.dtype) -> None:
    x = torch.randn(16, 256, 28, 28, device=DEVICE, dtype=dtype)
    weight = torch.randn(10, 256, device=DEVICE, requires_grad=True)
    labels = torch.arange(16, device=DEVICE) % 3
    upstream = torch.randn(16, 28, 28, device=DEVICE)
    first, *others = (torch.autograd.grad(label_cam(x, weight, None, labels), weight, upstream)[0] for _ in range(10))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_addresses_past_2_to_the_31(layout: torch.memory_format) -> None:
    shape = (21, 2048, 225, 225)  # 2.18e9 elements; those of the last image lie past 2³¹
    assert torch.Size(shape[1:]).numel() * 20 < 2**31 < torch.Size(shape).numel()
    if torch.cuda.mem_get_info()[0] < 10 << 30:
        pytest.skip("needs 10 GiB of free GPU memory")
    features = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE, memory_format=layout).normal_()
    last, labels = features[-1:], torch.zeros(21, dtype=torch.int64, device=DEVICE)
    indices = torch.tensor([[0, 225 * 225 - 1, 70]], device=DEVICE).expand(21, -1)
    expected = last.flatten(2)[..., indices[0]].transpose(1, 2)
    assert torch.equal(gather_pixels(features, indices)[-1:], expected)

    weight = torch.randn(3, 2048, device=DEVICE)
    truth = label_cam_reference(last.double(), weight.double(), None, labels[-1:])
    bound = 1e-5 * truth.abs().max()
    assert (label_cam(features, weight, None, labels)[-1:] - truth).abs().max() < bound
    logits, maps = pooled_head(features, weight, None, labels)
    assert (maps[-1:] - truth).abs().max() < bound
    assert (logits[-1:, 0] - truth.mean()).abs().max() < bound

    columns = torch.randn(21, 3, 2048, device=DEVICE, dtype=torch.bfloat16)
    add_columns_(features, columns, indices)
    added = features[-1:].flatten(2)[..., indices[0]].transpose(1, 2)
    assert torch.equal(added, (expected.float() + columns[-1:].float()).bfloat16())


def test_a_compiled_step_equals_an_eager_one() -> None:
    eager, other = training(dropout=0), training(dropout=0)  # elements to drop are drawn otherwise when compiled
    compiled = torch.compile(other.model, fullgraph=True)
    for t, model in ((eager, eager.model), (other, compiled)):
        for _ in range(3):
            model(t.images, t.labels, t.criterion).backward()
            t.criterion.commit()
    for got, expected in zip(other.gradients(), eager.gradients(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(other.criterion.centers, eager.criterion.centers, rtol=1e-3, atol=1e-4)
    assert torch.equal(other.criterion.steps, eager.criterion.steps)


def test_gradscaler_skips_a_step_and_the_centers_with_it() -> None:
    t = training()
    optimizer = torch.optim.SGD(t.model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=2.0**10)

    def step(images: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, dtype=torch.float16):
            loss = t.model(images, t.labels, t.criterion)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        (found_inf,) = scaler._found_inf_per_device(optimizer).values()
        scaler.step(optimizer)
        scaler.update()
        t.criterion.commit(found_inf=found_inf)

    start = t.criterion.centers.clone()
    step(t.images)
    assert scaler.get_scale() == 2.0**10 and all(gradient.isfinite().all() for gradient in t.gradients())
    moved = (t.criterion.centers != start).any(1)
    assert moved.tolist() == [True, True, False, True, True]

    after = t.criterion.centers.clone()
    step(t.images * float("inf"))
    assert scaler.get_scale() < 2.0**10
    assert torch.equal(t.criterion.centers, after)
    assert t.criterion.steps.tolist() == [1, 1, 0, 1, 1]
    assert t.criterion.draws[1] == 2


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not installed")
    command = [sanitizer, "--tool", tool, "--error-exitcode", "1", sys.executable, "-m", "pytest", "-q", "-m", "gpu"]
    chosen = [__file__, "-p", "no:cacheprovider", "-k", "odd_sizes and fp32"]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run([*command, *chosen], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
