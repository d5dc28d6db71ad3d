"""The kernel of update_centers."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2c_fast.kernels import update_centers, update_centers_reference

from .accuracy import DTYPES, assert_no_worse

ALPHA = 0.5


def check(centers: Tensor, steps: Tensor, labels: Tensor, means: Tensor, **options: Tensor) -> None:
    """`options` are skip and draws."""

    def updated(function: Any, bank: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        counters, draws = steps.clone(), options.get("draws", torch.zeros(2, dtype=torch.int64)).clone()
        given = {**options, "draws": draws} if "draws" in options else options
        function(bank, counters, labels, means, ALPHA, **given)
        return bank, counters, draws

    # A copy with the strides of the original.
    copy = torch.empty_strided(centers.shape, centers.stride(), dtype=centers.dtype).copy_(centers)
    got, got_steps, got_draws = updated(update_centers, copy)
    eager, eager_steps, eager_draws = updated(update_centers_reference, centers.clone())
    truth, _, _ = updated(update_centers_reference, centers.double())
    assert_no_worse(got, eager, truth)
    untouched = (got_steps == steps).nonzero().flatten()
    assert torch.equal(got[untouched], centers[untouched])
    assert got_steps.dtype == steps.dtype
    assert torch.equal(got_steps, eager_steps)
    assert torch.equal(got_draws, eager_draws)


@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (3, 3), (5, 64), (3, 2050), (1, 4097)])
def test_sizes(rows: int, channels: int) -> None:
    centers, steps = torch.randn(7, channels), torch.tensor([0, 1, 2, 0, 7, 10**9, 3])
    check(centers, steps, torch.tensor([4, -100, 0, 9, 5])[:rows], torch.randn(rows, channels))


@pytest.mark.parametrize("means_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_precisions(dtype: torch.dtype, means_dtype: torch.dtype) -> None:
    centers, means = torch.randn(4, 40).to(dtype), torch.randn(2, 40).to(means_dtype)
    check(centers, torch.arange(4, dtype=torch.int32), torch.tensor([3, 1]), means)


def test_strides() -> None:
    steps = torch.arange(10)[::2]
    check(torch.randn(3, 5).T, steps, torch.tensor([4, 0, 4, 1])[::3], torch.randn(6, 2).T[:, ::2])


def test_the_first_mean_replaces_the_center_to_the_bit() -> None:
    centers, steps, mean = torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), torch.randn(1, 3)
    update_centers(centers, steps, torch.tensor([3]), mean, ALPHA)
    assert torch.equal(centers[3], mean[0])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channel", [0, 2047, 2048, 2049])
def test_a_mean_that_is_not_finite_anywhere_touches_nothing(bad: float, channel: int) -> None:
    centers, steps, means = torch.randn(2, 2050), torch.tensor([3, 4]), torch.randn(1, 2050)
    before = centers.clone()
    means[0, channel] = bad
    update_centers(centers, steps, torch.tensor([1]), means, ALPHA)
    assert torch.equal(centers, before)
    assert steps.tolist() == [3, 4]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_a_mean_beyond_the_centers_precision_counts_as_not_finite() -> None:
    centers, steps = torch.zeros(2, 1, dtype=torch.float16), torch.zeros(2, dtype=torch.int64)
    update_centers(centers, steps, torch.tensor([1]), torch.tensor([[1e6]]), ALPHA)
    assert centers.tolist() == [[0.0], [0.0]]
    assert steps.tolist() == [0, 0]


@pytest.mark.parametrize(
    "skip", [torch.tensor(0.0), torch.tensor([1.0]), torch.tensor(True), torch.tensor(2), torch.tensor(math.nan)]
)
def test_the_flag_skips_the_centers_and_not_the_draws(skip: Tensor) -> None:
    centers, steps, draws = torch.randn(4, 3), torch.arange(4), torch.tensor([5, 2**40])
    check(centers, steps, torch.tensor([3, -100, 1]), torch.randn(3, 3), skip=skip, draws=draws)


def test_the_draws_may_be_a_strided_view() -> None:
    check(
        torch.randn(4, 3), torch.arange(4), torch.tensor([3]), torch.randn(1, 3), draws=torch.tensor([5, 0, 8, 0])[::2]
    )


def test_an_empty_batch_advances_the_draws() -> None:
    centers, steps, draws = torch.randn(4, 3), torch.arange(4), torch.tensor([5, 8])
    check(centers, steps, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3), draws=draws)


def test_writes_are_seen_by_autograd() -> None:
    centers, steps, draws = torch.randn(4, 3), torch.arange(4), torch.tensor([5, 8])
    before = [tensor._version for tensor in (centers, steps, draws)]
    update_centers(centers, steps, torch.tensor([3]), torch.randn(1, 3), ALPHA, draws=draws)
    assert [tensor._version for tensor in (centers, steps, draws)] == [version + 1 for version in before]


def test_a_graph_that_saved_the_centers_refuses_a_stale_backward() -> None:
    centers, weight = torch.randn(4, 3), torch.randn(4, 3, requires_grad=True)
    loss = (centers * weight).sum()
    update_centers(centers, torch.arange(4), torch.tensor([3]), torch.randn(1, 3), ALPHA)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@given(
    labels=st.lists(st.sampled_from([-100, -1, 0, 1, 2, 3, 2**40]), min_size=1, max_size=5, unique=True),
    broken=st.lists(st.booleans(), min_size=5, max_size=5),
    start=st.lists(st.integers(0, 3), min_size=3, max_size=3),
)
@settings(max_examples=25)
def test_any_rows(labels: list[int], broken: list[bool], start: list[int]) -> None:
    generator = torch.Generator().manual_seed(len(labels))
    centers, means = torch.randn(3, 2, generator=generator), torch.randn(len(labels), 2, generator=generator)
    means[torch.tensor(broken[: len(labels)])] = math.nan
    check(centers, torch.tensor(start), torch.tensor(labels), means)


def test_refusals_name_what_does_not_fit() -> None:
    arguments = (torch.randn(4, 3), torch.arange(4), torch.tensor([3]), torch.randn(1, 3), ALPHA)
    with pytest.raises(ValueError, match=r"skip\.numel\(\) is 2 but the number of flags is 1"):
        update_centers(*arguments, skip=torch.zeros(2))
    with pytest.raises(ValueError, match=r"len\(draws\) is 3 but the number of its parts \(seed, step\) is 2"):
        update_centers(*arguments, draws=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"skip on meta"):
        update_centers(*arguments, skip=torch.zeros((), device="meta"))
