"""sample_pixels, gather_pixels and the taps as torch ops: opcheck, gradcheck, torch.compile. CPU, plain process."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code
from torch.utils._python_dispatch import TorchDispatchMode

from i2c_fast.kernels import Slots, gather_pixels, sample_pixels, tap
from i2c_fast.kernels.tap_dropout import tap_dropout

OPS = torch.ops.i2c_fast
SEED = torch.tensor([3, 0])
BACKENDS = ["aot_eager", "inductor"]
INDICES = torch.tensor([[4, 0, 4], [11, 2, 1]], dtype=torch.int32)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.manual_seed(0)
    torch.compiler.reset()
    yield


def whole(features: Tensor, other: Tensor, indices: Tensor) -> Tensor:
    """A head that uses F twice and shares its gradient, beside the gathered vectors."""
    tapped, slots = tap(features.relu(), 3)
    return (tapped + other).square().sum() + gather_pixels(tapped.detach(), indices, slots).square().sum()


def untapped(features: Tensor, other: Tensor, indices: Tensor) -> Tensor:
    return (features.relu() + other).square().sum() + gather_pixels(features.relu(), indices).square().sum()


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor for tensor in inputs]
    return list(torch.autograd.grad(function(*leaves), [leaf for leaf in leaves if leaf.requires_grad]))


def example(
    batch: int = 2, memory_format: torch.memory_format = torch.contiguous_format
) -> tuple[Tensor, Tensor, Tensor]:
    features, other = torch.randn(2, batch, 5, 3, 4)
    return features.contiguous(memory_format=memory_format), other, INDICES[:1].expand(batch, 3).clone()


@pytest.mark.parametrize("image_ids", [None, torch.tensor([7, 2])])
@pytest.mark.parametrize("random", [True, False])
def test_sample_pixels_passes_opcheck(image_ids: Tensor | None, random: bool) -> None:
    torch.library.opcheck(OPS.sample_pixels.default, (torch.randn(2, 4, 4), 3, 0.5, SEED, image_ids, random))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gather_pixels_and_add_columns_pass_opcheck(memory_format: torch.memory_format) -> None:
    features, _, indices = example(memory_format=memory_format)
    torch.library.opcheck(OPS.gather_pixels.default, (features, indices))
    torch.library.opcheck(OPS.add_columns_.default, (features, torch.randn(2, 3, 5), indices))
    torch.library.opcheck(OPS.add_columns_.default, (features, torch.randn(2, 3, 5), indices.float()))


def test_gradients_pass_gradcheck() -> None:
    features = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)

    def tapped_twice(features: Tensor) -> tuple[Tensor, Tensor]:
        tapped, slots = tap(features, 3)
        return tapped.square() + tapped, gather_pixels(features, INDICES, slots)

    assert torch.autograd.gradcheck(lambda features: gather_pixels(features, INDICES), features)
    assert torch.autograd.gradcheck(tapped_twice, features)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_reference_sums_repeats_before_one_rounding(dtype: torch.dtype) -> None:
    features = torch.zeros(1, 8, 2, 2, dtype=dtype, requires_grad=True)
    gradient = torch.randn(1, 100, 8).to(dtype)
    gather_pixels(features, torch.full((1, 100), 3)).backward(gradient)
    assert features.grad is not None
    truth = gradient.double().sum(1)[0]
    torch.testing.assert_close(features.grad[0, :, 1, 1].double(), truth, rtol=torch.finfo(dtype).eps / 2, atol=1e-5)
    assert not features.grad.flatten(2)[..., :3].any()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_tap_gives_the_plain_gradients(backend: str, memory_format: torch.memory_format) -> None:
    inputs = example(memory_format=memory_format)
    plain = gradients(untapped, *inputs)
    for function in (whole, untapped):
        compiled = gradients(torch.compile(function, fullgraph=True, backend=backend), *inputs)
        for got, wanted in zip(compiled, plain, strict=True):
            torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("shared", [False, True])
def test_inductor_copies_the_heads_gradient_only_where_it_is_shared(shared: bool) -> None:
    def step(features: Tensor, other: Tensor, weight: Tensor) -> Tensor:
        tapped, slots = tap(features.relu(), 3)
        head = torch.mm((tapped + other if shared else tapped).flatten(1), weight)
        return head.sum() + gather_pixels(tapped.detach(), INDICES, slots).sum()

    inputs = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4), torch.randn(60, 3)
    leaves = [tensor.requires_grad_() for tensor in inputs]
    compiled = torch.compile(step, fullgraph=True)
    got, codes = run_and_get_code(lambda: torch.autograd.grad(compiled(*leaves), leaves, allow_unused=True))
    for one, two in zip(got, torch.autograd.grad(step(*leaves), leaves, allow_unused=True), strict=True):
        torch.testing.assert_close(one, two)
    before, _, _ = codes[-1].rpartition("def call")[2].partition("i2c_fast.add_columns_.default(")
    assert "extern_kernels.mm(" in before
    # The columns are added to the matrix product's own output or, if that is shared, to a buffer made for them.
    shapes = [re.findall(r"\d+", shape) for shape in re.findall(r"empty_strided_cpu\(\(([^()]*)\)", before)]
    assert sum(math.prod(map(int, shape)) == 120 for shape in shapes) == (2 if shared else 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tap_and_gather_may_be_compiled_apart(backend: str) -> None:
    features, other, indices = example()
    plain = gradients(untapped, features, other, indices)

    def gathered(features: Tensor, indices: Tensor, slots: Slots) -> Tensor:
        return gather_pixels(features, indices, slots).square().sum()

    for tapping, gathering in ((torch.compile(tap, fullgraph=True, backend=backend), gathered),
                               (tap, torch.compile(gathered, fullgraph=True, backend=backend))):  # fmt: skip

        def step(
            features: Tensor, other: Tensor, indices: Tensor, tapping: Any = tapping, gathering: Any = gathering
        ) -> Tensor:
            tapped, slots = tapping(features.relu(), 3)
            return (tapped + other).square().sum() + gathering(tapped.detach(), indices, slots)

        for got, wanted in zip(gradients(step, features, other, indices), plain, strict=True):
            torch.testing.assert_close(got, wanted)


def gather_twice(features: Tensor, indices: Tensor) -> Tensor:
    _, slots = tap(features, 3)
    return gather_pixels(features, indices, slots).sum() + gather_pixels(features, indices, slots).sum()


def test_second_gather_through_slots_is_an_error() -> None:
    features, _, indices = example()
    with pytest.raises(RuntimeError, match="already served"):
        gather_twice(features, indices)
    with pytest.raises(Exception, match=r"already served|Observed exception"):
        torch.compile(gather_twice, fullgraph=True, backend="eager")(features, indices)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_tap_dropout_adds_columns_to_dropouts_gradient(backend: str) -> None:
    def step(features: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        dropped, slots = tap_dropout(features, 3, 0.4)
        return dropped, gather_pixels(features, indices, slots)

    features, head, indices = example()
    features.requires_grad_()
    dropped, values = torch.compile(step, fullgraph=True, backend=backend)(features, indices)
    kept = dropped != 0
    assert 0 < int(kept.sum()) < kept.numel()
    torch.testing.assert_close(dropped, torch.where(kept, features / 0.6, 0.0))
    (gradient,) = torch.autograd.grad([dropped, values], features, [head, torch.ones_like(values)])
    (columns,) = torch.autograd.grad(gather_pixels(features, indices).sum(), features)
    torch.testing.assert_close(gradient, torch.where(kept, head / 0.6, 0.0) + columns)


def test_tap_dropout_draws_from_torchs_generator() -> None:
    features = torch.randn(2, 3, 4, 4)
    first, second = (torch.manual_seed(seed) and tap_dropout(features, 2)[0] for seed in (5, 5))
    assert torch.equal(first, second)
    assert not torch.equal(first, tap_dropout(features, 2)[0])


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False)])
def test_tap_dropout_without_dropout_is_tap(p: float, training: bool) -> None:
    features = torch.randn(2, 3, 4, 4)
    passed, slots = tap_dropout(features, 2, p, training)
    assert passed.data_ptr() == features.data_ptr()
    assert slots.columns.shape == (2, 2, 3)


@pytest.mark.parametrize("tapping", [tap, tap_dropout])
def test_slots_are_refused_for_what_they_cannot_serve(tapping: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="k ≥ 1"):
        tapping(torch.randn(2, 3, 4, 4), 0)
    with pytest.raises(ValueError, match="16777216"):
        tapping(torch.empty(1).expand(1, 1, 4097, 4096), 1)
    with pytest.raises(ValueError, match="4 dimensions"):
        tapping(torch.randn(3, 4, 4), 1)
    with pytest.raises(ValueError, match=r"slots were opened for \[2, 2, 3\]"):
        gather_pixels(
            torch.randn(2, 3, 4, 4), torch.zeros(2, 3, dtype=torch.int32), tapping(torch.randn(2, 3, 4, 4), 2)[1]
        )


def test_tap_dropout_refuses_a_probability_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got 1.5"):
        tap_dropout(torch.randn(2, 3, 4, 4), 1, 1.5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_draw_follows_the_step_without_a_new_compilation(backend: str) -> None:
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(lambda maps, seed: sample_pixels(maps, 3, 0.2, seed), fullgraph=True, backend=counter)
    maps, seed, draws = torch.randn(2, 8, 8, requires_grad=True), SEED.clone(), []
    for _ in range(3):
        for got, wanted in zip(compiled(maps, seed), sample_pixels(maps, 3, 0.2, seed), strict=True):
            assert torch.equal(got, wanted)
        draws.append(compiled(maps, seed)[0].tolist())
        seed[1] += 1
    assert counter.frame_count == 1
    assert draws[0] != draws[1] != draws[2]


def test_one_compiled_step_serves_two_sizes() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(whole, fullgraph=True, backend=counter, dynamic=True)
    for batch in (2, 3, 5, 2):
        inputs = example(batch)
        for got, wanted in zip(gradients(compiled, *inputs), gradients(untapped, *inputs), strict=True):
            torch.testing.assert_close(got, wanted)
    assert counter.frame_count == 1


def test_eager_calls_bypass_the_dispatcher() -> None:
    calls: list[str] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    features = torch.randn(2, 5, 3, 4, requires_grad=True)
    with Record():
        indices, _ = sample_pixels(features.detach()[:, 0], 3, 0.5, SEED)
        gather_pixels(features, indices).sum().backward()
    assert calls
    assert not [call for call in calls if "i2c_fast" in call]
