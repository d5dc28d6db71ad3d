import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2c_fast.kernels import normalize_cam

from . import oracles


def test_worked_example() -> None:
    # minimum 2, maximum 10, span 8: (4 − 2)/8 = .25, (6 − 2)/8 = .5
    maps = torch.tensor([[2.0, 4.0], [6.0, 10.0]])
    assert normalize_cam(maps).tolist() == [[0.0, 0.25], [0.5, 1.0]]


def test_equals_the_loop() -> None:
    maps = torch.randn(5, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(normalize_cam(maps), oracles.normalized(maps))


def test_each_map_has_its_own_extremes() -> None:
    maps = torch.rand(2, 3, 4, 5) * torch.tensor([1.0, 7.0])[:, None, None, None]
    out = normalize_cam(maps)
    assert out.shape == maps.shape
    assert (out.amin((-2, -1)) == 0).all()
    assert (out.amax((-2, -1)) == 1).all()


def test_a_single_map_needs_no_batch_dimension() -> None:
    map_ = torch.randn(3, 4)
    assert torch.equal(normalize_cam(map_), normalize_cam(map_[None])[0])


def test_gradient_is_the_derivative() -> None:
    maps = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalize_cam, maps)


def test_gradient_at_a_shared_maximum_is_divided_evenly() -> None:
    maps = torch.tensor([[0.0, 4.0, 4.0, 2.0]], requires_grad=True)
    normalize_cam(maps)[0, 3].backward()
    assert maps.grad is not None
    # The last pixel, (2 − 0)/4: by itself 1/4; by the maximum −2/4², half to each 4; by the minimum −1/4 + 2/4².
    assert maps.grad.tolist() == [[-0.125, -0.0625, -0.0625, 0.25]]


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (4, 1)])
@pytest.mark.parametrize("value", [0.0, -3.5, 1e30])
def test_constant_map_becomes_zeros_with_zero_gradient(shape: tuple[int, int], value: float) -> None:
    maps = torch.full(shape, value, requires_grad=True)
    out = normalize_cam(maps)
    out.sum().backward()
    assert maps.grad is not None
    assert torch.equal(out, torch.zeros(shape))
    assert torch.equal(maps.grad, torch.zeros(shape))


def test_two_pixels_become_zero_and_one() -> None:
    assert normalize_cam(torch.tensor([[-1e-3, -5.0]])).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_map_leaves_the_others_alone(bad: float) -> None:
    maps = torch.randn(3, 2, 2)
    alone = normalize_cam(maps[[0, 2]])
    maps[1, 0, 1] = bad
    maps.requires_grad_()
    out = normalize_cam(maps)
    assert torch.equal(out[[0, 2]], alone)
    (out * torch.rand(2, 2)).sum().backward()
    assert maps.grad is not None
    assert maps.grad[[0, 2]].isfinite().all()


def test_one_nan_makes_its_whole_map_nan() -> None:
    maps = torch.randn(2, 2, 2)
    maps[1, 0, 1] = math.nan
    assert normalize_cam(maps)[1].isnan().all()


# One rounding of the result: half a unit in the last place of values in [.5, 1].
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2**-12), (torch.bfloat16, 2**-9)])
def test_half_precision_is_rounded_once(dtype: torch.dtype, rounding: float) -> None:
    maps = (10 * torch.randn(4, 5, 6)).to(dtype)
    out = normalize_cam(maps)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), oracles.normalized(maps), atol=rounding + 1e-6, rtol=0)


def test_a_span_beyond_fp16_does_not_overflow() -> None:
    maps = torch.tensor([[-60000.0, 0.0, 60000.0]], dtype=torch.float16)
    assert normalize_cam(maps).tolist() == [[0.0, 0.5, 1.0]]


@pytest.mark.parametrize("view", [lambda m: m.transpose(1, 2), lambda m: m[:, ::2, 1:], lambda m: m.expand(3, 5, 6)])
def test_strides_do_not_matter(view: Callable[[Tensor], Tensor]) -> None:
    maps = view(torch.randn(1, 5, 6))
    assert torch.equal(normalize_cam(maps), normalize_cam(maps.contiguous()))


@given(st.lists(st.integers(-20, 20), min_size=6, max_size=6), st.integers(-50, 50), st.sampled_from([0.25, 2.0, 8.0]))
@settings(max_examples=30)
def test_shift_and_scale_change_nothing(values: list[int], shift: int, scale: float) -> None:
    maps = torch.tensor(values, dtype=torch.float64).view(2, 3)
    torch.testing.assert_close(normalize_cam(maps * scale + shift), normalize_cam(maps))


@pytest.mark.parametrize(
    "maps",
    [torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 0), torch.zeros(3), torch.zeros(4, 0, 2)],
    ids=["integer", "no column", "one dimension", "no row"],
)
def test_what_is_no_map_is_refused(maps: Tensor) -> None:
    with pytest.raises(ValueError, match=r"maps must .*\["):
        normalize_cam(maps)
