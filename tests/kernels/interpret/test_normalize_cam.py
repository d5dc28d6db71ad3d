"""The kernels of normalize_cam."""

import math
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2c_fast.kernels import normalize_cam, normalize_cam_reference

from .accuracy import DTYPES, assert_no_worse, poison

MODULE = sys.modules["i2c_fast.kernels.normalize_cam"]  # the package's attribute of that name is the function
SIZES = [(3, 1, 1), (5, 1, 2), (3, 7, 7), (3, 13, 17), (3, 28, 28), (1, 32, 32), (1, 128, 128)]


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)


def with_gradient(function: Callable[[Tensor], Tensor], maps: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    leaf = maps.detach().requires_grad_()
    out = function(leaf)
    return out.detach(), torch.autograd.grad(out, leaf, upstream.to(out.dtype))[0]


def check(maps: Tensor, upstream: Tensor) -> None:
    results = with_gradient(normalize_cam, maps, upstream)
    eager = with_gradient(normalize_cam_reference, maps, upstream)
    truth = with_gradient(normalize_cam_reference, maps.double(), upstream.to(maps.dtype))
    for got, plain, exact in zip(results, eager, truth, strict=True):
        assert_no_worse(got, plain, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SIZES)
def test_output_and_gradient_are_as_exact_as_plain_pytorch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    check(torch.randn(shape).to(dtype), torch.randn(shape))


def test_a_map_of_many_blocks_has_one_minimum_and_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "MAX_BLOCK", 32)
    check(torch.randn(3, 13, 17), torch.randn(3, 13, 17))


@pytest.mark.parametrize(
    "view",
    [lambda m: m.transpose(1, 2), lambda m: m[:, ::2, 1:], lambda m: m[0].expand(4, -1, -1), lambda m: m[None]],
    ids=["transposed", "sliced", "expanded", "more dimensions"],
)
def test_strides_and_leading_dimensions_do_not_matter(view: Callable[[Tensor], Tensor]) -> None:
    maps = view(torch.randn(3, 6, 9))
    check(maps, torch.randn(maps.shape))


def test_an_expanded_gradient_is_read_right() -> None:
    maps = torch.randn(3, 7, 7)
    check(maps, torch.randn(3, 1, 1).expand(3, 7, 7))


def test_the_maximum_becomes_exactly_one_and_the_minimum_zero() -> None:
    out = normalize_cam(torch.randn(100, 2, 3) * torch.logspace(-6, 6, 100)[:, None, None])
    assert torch.equal(out.amax((1, 2)), torch.ones(100))
    assert torch.equal(out.amin((1, 2)), torch.zeros(100))


def test_a_gradient_is_divided_among_pixels_that_share_an_extreme() -> None:
    maps = torch.randint(0, 3, (5, 4, 4)).float()
    check(maps, torch.randn(5, 4, 4))


@pytest.mark.parametrize("value", [0.0, -3.5, 1e30])
def test_a_constant_map_becomes_zeros_even_where_the_gradient_is_infinite(value: float) -> None:
    out, gradient = with_gradient(normalize_cam, torch.full((2, 3, 5), value), torch.full((2, 3, 5), math.inf))
    assert torch.equal(out, torch.zeros(2, 3, 5))
    assert torch.equal(gradient, torch.zeros(2, 3, 5))


def test_a_nan_spoils_its_own_map_alone() -> None:
    maps = torch.randn(3, 4, 5)
    alone = with_gradient(normalize_cam, maps[[0, 2]], torch.ones(2, 4, 5))
    maps[1, 3, 2] = math.nan
    for got, expected in zip(with_gradient(normalize_cam, maps, torch.ones(3, 4, 5)), alone, strict=True):
        assert got[1].isnan().all()
        assert torch.equal(got[[0, 2]], expected)


def test_a_span_beyond_fp16_does_not_overflow() -> None:
    assert normalize_cam(torch.tensor([[-60000.0, 0.0, 60000.0]], dtype=torch.float16)).tolist() == [[0.0, 0.5, 1.0]]


def test_no_map_is_no_launch() -> None:
    out, gradient = with_gradient(normalize_cam, torch.zeros(0, 3, 3), torch.zeros(0, 3, 3))
    assert out.shape == gradient.shape == (0, 3, 3)


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=15)
def test_any_map_of_few_values_agrees(n: int, height: int, width: int, values: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, values, (n, height, width), generator=generator) / 4
    check(maps, torch.randn(n, height, width, generator=generator))
