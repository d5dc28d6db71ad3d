"""The kernels of gather_pixels, and what tap and tap_dropout make of its gradient."""

import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2c_fast.kernels import gather_pixels, gather_pixels_reference, tap
from i2c_fast.kernels._add_columns import add_columns_, add_columns_reference
from i2c_fast.kernels.tap_dropout import tap_dropout

ADD_COLUMNS = sys.modules["i2c_fast.kernels._add_columns"]

SIZES = [
    (1, 1, 1, 1, 1),
    (3, 3, 7, 7, 3),
    (2, 64, 13, 17, 4),
    (1, 2050, 7, 7, 7),
    (2, 5, 28, 28, 100),
    (1, 3, 128, 128, 3),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda features: features.contiguous(),
    "channels_last": lambda features: features.contiguous(memory_format=torch.channels_last),
    "sliced": lambda features: features.repeat(1, 2, 1, 2)[:, : features.shape[1], :, : features.shape[3]],
    "sliced_channels_last": lambda features: features.repeat(1, 1, 2, 2).contiguous(memory_format=torch.channels_last)[
        :, :, : features.shape[2], : features.shape[3]
    ],
}


@pytest.fixture(autouse=True)
def _same_numbers_in_every_run() -> None:
    torch.manual_seed(0)


def random_case(n: int, d: int, height: int, width: int, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features, indices with repeats and both kinds of outsiders where there is room, and the seeds' gradient."""
    generator = torch.Generator().manual_seed(d + k)
    features = torch.randn(n, d, height, width, generator=generator).to(dtype)
    indices = torch.randint(height * width, (n, k), generator=generator)
    if k > 2:
        indices[:, k // 2] = indices[:, 0]
        indices[0, 1] = height * width
        indices[-1, 2] = -1
    return features, indices, torch.randn(n, k, d, generator=generator).to(dtype)


def dense_truth(features: Tensor, indices: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the gathered features in fp64."""
    n, d, height, width = features.shape
    inside = ((indices >= 0) & (indices < height * width))[..., None]
    total = torch.zeros(n, height * width + 1, d, dtype=torch.float64)
    place = torch.where(inside, indices[..., None], height * width).expand(-1, -1, d)
    total.scatter_add_(1, place, gradient.double())
    return total[:, :-1].transpose(1, 2).reshape(n, d, height, width)


def one_rounding(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """What a value summed in fp32 and rounded once may be off."""
    return (torch.finfo(dtype).eps + 1e-6) * truth.abs() + 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_values_equal_the_reference(size: tuple[int, int, int, int, int], layout: str) -> None:
    for dtype in DTYPES if size[4] < 100 else DTYPES[:1]:
        features, indices, _ = random_case(*size, dtype)
        features = LAYOUTS[layout](features)
        values = gather_pixels(features, indices)
        assert values.dtype == dtype
        torch.testing.assert_close(values, gather_pixels_reference(features, indices), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_index_outside_the_map_gives_nan_and_moves_nothing(dtype: torch.dtype) -> None:
    features = torch.ones(1, 4, 2, 3, requires_grad=True)
    indices = torch.tensor([[6, -1, 5, torch.iinfo(dtype).max, torch.iinfo(dtype).min]], dtype=dtype)
    values = gather_pixels(features, indices)
    assert values.isnan().all(2).tolist() == [[True, True, False, True, True]]
    values.backward(torch.full_like(values, 2.0))
    assert features.grad is not None
    assert features.grad.flatten(2)[0, 0].tolist() == [0, 0, 0, 0, 0, 2]


def test_indices_of_any_strides_are_read_in_place() -> None:
    features = torch.randn(3, 4, 5, 5, requires_grad=True)
    table = torch.randint(25, (4, 9))
    for indices in (table[:3, 1::3], table.t()[:3], table[:1, :2].expand(3, 2)):
        values = gather_pixels(features, indices)
        assert torch.equal(values, gather_pixels_reference(features, indices))
        (gradient,) = torch.autograd.grad(values, features, torch.ones_like(values))
        torch.testing.assert_close(gradient, dense_truth(features, indices, torch.ones_like(values)).float())


def test_tokens_are_gathered_from_their_view() -> None:
    tokens = torch.randn(2, 9, 6, requires_grad=True)
    indices = torch.tensor([[8, 0, 8], [3, 4, 5]], dtype=torch.int32)
    values = gather_pixels(tokens.transpose(1, 2).unsqueeze(-1), indices)
    assert torch.equal(values, tokens[torch.arange(2)[:, None], indices.long()])
    values.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad[0, :, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 2]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_gradient_is_summed_in_fp32_and_rounded_once(size: tuple[int, int, int, int, int], layout: str) -> None:
    for dtype in DTYPES if size[4] < 100 else DTYPES[1:2]:
        features, indices, gradient = random_case(*size, dtype)
        leaf = LAYOUTS[layout](features).requires_grad_()
        gather_pixels(leaf, indices).backward(gradient)
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype
        truth = dense_truth(features, indices, gradient)
        assert bool(((leaf.grad - truth).abs() <= one_rounding(truth, dtype)).all())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradient_has_the_strides_of_the_features(memory_format: torch.memory_format) -> None:
    features = torch.randn(2, 5, 3, 4).contiguous(memory_format=memory_format).mul(1).requires_grad_()
    (gradient,) = torch.autograd.grad(gather_pixels(features, torch.zeros(2, 3, dtype=torch.int32)).sum(), features)
    assert gradient.stride() == features.stride()


@pytest.mark.parametrize("dtype", DTYPES[:2])  # the interpreter cuts off to bf16 where a GPU rounds
def test_many_repeats_are_no_worse_than_eager(dtype: torch.dtype) -> None:
    features, _, gradient = random_case(1, 64, 2, 2, 100, dtype)
    indices = torch.zeros(1, 100, dtype=torch.int64)
    ours, eager = (features.clone().requires_grad_() for _ in range(2))
    gather_pixels(ours, indices).backward(gradient)
    eager.flatten(2).gather(2, indices[:, None].expand(-1, 64, -1)).transpose(1, 2).backward(gradient)
    truth = dense_truth(features, indices, gradient)
    assert ours.grad is not None and eager.grad is not None
    assert (ours.grad - truth).abs().max() <= (eager.grad - truth).abs().max() + 1e-6


@pytest.mark.parametrize("k", [5, 40])
def test_repeats_are_found_over_many_blocks_of_seeds(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    monkeypatch.setattr(ADD_COLUMNS, "MAX_BLOCK_K", 4)
    features, _, gradient = random_case(1, 2, 3, 3, k, torch.float32)
    indices = torch.arange(k)[None] * 7 % 10 - 1
    features.requires_grad_()
    gather_pixels(features, indices).backward(gradient)
    torch.testing.assert_close(features.grad, dense_truth(features, indices, gradient).float())


def test_every_value_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    features, indices, gradient = random_case(2, 5, 3, 4, 3, torch.float32)
    features.requires_grad_()
    indices %= 12
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(torch.nan))
    values = gather_pixels(features, indices)
    values.backward(gradient)
    assert not values.isnan().any()
    assert features.grad is not None
    assert not features.grad.isnan().any()


def test_gradient_of_an_empty_batch_is_empty() -> None:
    features = torch.zeros(0, 4, 2, 2, requires_grad=True)
    gather_pixels(features, torch.zeros(0, 3, dtype=torch.int32)).sum().backward()
    assert features.grad is not None
    assert features.grad.shape == features.shape


@pytest.mark.parametrize("stride_0", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_are_added_to_a_map_of_any_strides(layout: str, stride_0: bool) -> None:
    total, indices, gradient = random_case(2, 5, 4, 6, 4, torch.bfloat16)
    if stride_0:
        gradient = gradient[:, :1, :1].expand_as(gradient)
    truth = total + dense_truth(total, indices, gradient)
    total = LAYOUTS[layout](total)
    plain, version = total.clone(), total._version
    add_columns_(total, gradient, indices.float())
    add_columns_reference(plain, gradient, indices.float())
    assert total._version > version
    for added in (total, plain):
        assert bool(((added - truth).abs() <= one_rounding(truth, torch.bfloat16)).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tapped_gradient_is_the_heads_plus_the_columns(layout: str, dtype: torch.dtype) -> None:
    features, indices, gradient = random_case(2, 6, 4, 5, 7, dtype)
    leaf = LAYOUTS[layout](features).requires_grad_()
    tapped, slots = tap(leaf, 7)
    head = torch.randn_like(features)
    torch.autograd.backward([tapped, gather_pixels(leaf, indices, slots)], [head, gradient])
    truth = head + dense_truth(features, indices, gradient)
    assert leaf.grad is not None
    assert bool(((leaf.grad - truth).abs() <= one_rounding(truth, dtype)).all())


def test_head_that_shares_its_gradient_keeps_it() -> None:
    features, other = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    indices = torch.tensor([[0, 5], [5, 5]])
    tapped, slots = tap(features, 2)
    (tapped + other).backward(head := torch.randn(2, 3, 4, 4), retain_graph=True)
    assert torch.equal(other.grad, head) and torch.equal(features.grad, head)  # type: ignore[arg-type]
    features.grad = other.grad = None
    kept = head.clone()
    torch.autograd.backward([tapped + other, gather_pixels(features, indices, slots)], [head, torch.ones(2, 2, 3)])
    assert torch.equal(head, kept)
    assert torch.equal(other.grad, kept)  # type: ignore[arg-type]
    torch.testing.assert_close(features.grad, kept + dense_truth(features, indices, torch.ones(2, 2, 3)).float())


@pytest.mark.parametrize("tapping", [tap, tap_dropout])
def test_expanded_gradient_of_the_head_is_not_written_to(tapping: Callable[..., tuple[Tensor, object]]) -> None:
    features = torch.randn(2, 3, 4, 4, requires_grad=True)
    tapped, slots = tapping(features, 2)
    (tapped.sum() + gather_pixels(features, torch.tensor([[1, 2], [3, 3]]), slots).sum()).backward()  # type: ignore[arg-type]
    head = torch.ones(2, 3, 4, 4) if tapping is tap else (tapped != 0) * 2.0
    columns = dense_truth(features, torch.tensor([[1, 2], [3, 3]]), torch.ones(2, 2, 3)).float()
    torch.testing.assert_close(features.grad, head + columns)


@pytest.mark.parametrize("tapping", [tap, tap_dropout])
def test_unused_output_of_a_tap_costs_nothing(tapping: Callable[..., tuple[Tensor, object]]) -> None:
    features, indices = torch.randn(1, 3, 2, 2, requires_grad=True), torch.tensor([[1, 1]])
    _, slots = tapping(features, 2)
    (only_columns,) = torch.autograd.grad(gather_pixels(features, indices, slots).sum(), features)  # type: ignore[arg-type]
    assert torch.equal(only_columns, dense_truth(features, indices, torch.ones(1, 2, 3)).float())
    tapped, _ = tapping(features, 2)
    (only_head,) = torch.autograd.grad(tapped.sum(), features)
    assert torch.equal(only_head, torch.ones(1, 3, 2, 2) if tapping is tap else (tapped != 0) * 2.0)


@pytest.mark.parametrize("p", [0.3, 1.0])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_tap_dropout_is_dropout_with_columns_added(memory_format: torch.memory_format, p: float) -> None:
    features, indices, gradient = random_case(2, 8, 5, 5, 3, torch.float32)
    features = features.contiguous(memory_format=memory_format).requires_grad_()
    dropped, slots = tap_dropout(features, 3, p)
    kept = dropped != 0
    torch.testing.assert_close(dropped, torch.where(kept, features / (1 - p), 0.0))
    head = torch.randn_like(features)
    before = head.clone()
    torch.autograd.backward([dropped, gather_pixels(features, indices, slots)], [head, gradient])
    truth = torch.where(kept, before / (1 - p), 0.0) + dense_truth(features, indices, gradient)
    assert torch.equal(head, before)
    torch.testing.assert_close(features.grad, truth.float())
    assert features.grad is not None
    assert features.grad.stride() == features.stride()


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 3), d=st.integers(1, 9), side=st.integers(1, 4), k=st.integers(1, 6), data=st.data())
def test_any_indices_give_the_gradient_of_the_reference(n: int, d: int, side: int, k: int, data: st.DataObject) -> None:
    rows = st.lists(st.integers(-1, side * side), min_size=k, max_size=k)
    indices = torch.tensor(data.draw(st.lists(rows, min_size=n, max_size=n)), dtype=torch.int32)
    features, gradient = torch.randn(n, d, side, side, requires_grad=True), torch.randn(n, k, d)
    tapped, slots = tap(features, k)
    torch.autograd.backward([tapped, gather_pixels(features, indices, slots)], [torch.zeros_like(features), gradient])
    torch.testing.assert_close(features.grad, dense_truth(features, indices, gradient).float())
