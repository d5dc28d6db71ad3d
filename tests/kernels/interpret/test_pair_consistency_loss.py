"""The kernels of pair_consistency_loss."""

import math
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2c_fast.kernels import pair_consistency_loss, pair_consistency_loss_reference

from .accuracy import DTYPES, assert_no_worse
from .objective import VIEWS, Batch, poison, random_batch, use_small_blocks

MODULE = sys.modules["i2c_fast.kernels.pair_consistency_loss"]  # the package's attribute of that name is the function
DISTANCES = ["squared_l2", "l2"]
SIZES = [(1, 1, 1), (3, 3, 3), (9, 4, 64), (5, 7, 3), (3, 100, 5), (3, 1, 2050)]  # [N, K, D]


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)


def run(function: Any, values: Tensor, labels: Tensor, groups: Tensor | None, *options: Any) -> tuple[Tensor, ...]:
    """Loss, gradient of the values for gradients from −1.5 to 1, and the count."""
    values = values.detach().requires_grad_()
    total, count = function(values, labels, groups, *options)
    gradient = torch.linspace(-1.5, 1, total.numel(), dtype=total.dtype).reshape(total.shape)
    return total.detach(), torch.autograd.grad(total, values, gradient)[0], count


def check(values: Tensor, labels: Tensor, groups: Tensor | None, *options: Any) -> None:
    got = run(pair_consistency_loss, values, labels, groups, *options)
    eager = run(pair_consistency_loss_reference, values, labels, groups, *options)
    truth = run(pair_consistency_loss_reference, values.double(), labels, groups, *options)
    assert_no_worse(got[0], eager[0], truth[0])
    assert_no_worse(got[1], eager[1], truth[1])
    assert got[2].dtype == torch.int64
    assert got[2] == eager[2]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: tuple[int, int, int], distance: Any) -> None:
    batch = random_batch(*size)
    check(batch.values, batch.labels, None, distance)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_precisions(dtype: torch.dtype, distance: Any) -> None:
    batch = random_batch(5, 3, 40, dtype)
    check(batch.values, batch.labels, None, distance)


@pytest.mark.parametrize("view", VIEWS)
def test_strides(view: str) -> None:
    batch = random_batch(5, 3, 4)
    check(VIEWS[view](batch.values), batch.labels.repeat_interleave(2)[::2], None, "l2")


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_groups_and_integer_types(kind: torch.dtype) -> None:
    batch = random_batch(9, 2, 3)
    check(batch.values, batch.labels.to(kind), batch.groups.to(kind), "squared_l2")
    check(batch.values, batch.labels.to(kind), batch.groups.repeat_interleave(2)[::2], "squared_l2")


def test_labels_beyond_32_bits_are_told_apart() -> None:
    batch = random_batch(4, 1, 2)
    check(batch.values, torch.tensor([1, 1 + 2**32, 1, 1 + 2**32]), None, "squared_l2")


def test_batches_larger_than_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch, MODULE)
    batch = random_batch(9, 2, 300)  # three chunks
    check(batch.values, batch.labels, batch.groups, "squared_l2")
    check(batch.values, torch.ones(9, dtype=torch.int64), None, "l2")


@pytest.mark.parametrize("distance", DISTANCES)
def test_coincident_seeds_have_a_finite_gradient(distance: Any) -> None:
    check(torch.ones(2, 2, 3), torch.tensor([4, 4]), None, distance)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_image_stays_in_its_pair(bad: float, distance: Any) -> None:
    values, labels = random_batch(5, 2, 3).values, torch.tensor([8, 1, 8, 1, -100])
    values[2, 1, 1] = bad
    values[4] = bad
    total, gradient, _ = run(pair_consistency_loss, values, labels, None, distance)
    assert not total.isfinite()
    assert not gradient[0].isfinite().all() and not gradient[2].isfinite().all()
    assert gradient[[1, 3]].isfinite().all()
    assert gradient[4].eq(0).all()


def test_empty_batches_and_empty_vectors() -> None:
    for shape in ((0, 2, 3), (2, 2, 0)):
        batch = Batch(torch.zeros(shape), torch.ones(shape[0], dtype=torch.int64), *[torch.zeros(0)] * 2)
        check(batch.values, batch.labels, None, "squared_l2")


def test_two_runs_give_the_same_bits() -> None:
    batch = random_batch(9, 5, 70)
    first, second = (run(pair_consistency_loss, batch.values, batch.labels, None, "l2") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@given(
    labels=st.lists(st.sampled_from([-100, -1, 0, 1]), min_size=1, max_size=7),
    grouped=st.booleans(),
    seeds=st.integers(1, 5),
    distance=st.sampled_from(DISTANCES),
    reduction=st.sampled_from(["none", "mean", "sum"]),
)
@settings(max_examples=25)
def test_any_batch(labels: list[int], grouped: bool, seeds: int, distance: Any, reduction: Any) -> None:
    batch = random_batch(len(labels), seeds, 2)
    check(batch.values, torch.tensor(labels), batch.groups if grouped else None, distance, reduction)


def test_fp64_is_left_to_the_reference() -> None:
    batch = random_batch(4, 2, 3)
    total, _ = pair_consistency_loss(batch.values.double(), batch.labels)
    assert total.dtype == torch.float64
