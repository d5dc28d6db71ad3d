"""The kernels of class_means."""

import math
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2c_fast.kernels import class_means, class_means_reference

from .accuracy import DTYPES, assert_no_worse
from .objective import VIEWS, poison, random_batch, use_small_blocks

MODULE = sys.modules["i2c_fast.kernels.class_means"]  # the package's attribute of that name is the function
SIZES = [(1, 1, 1), (3, 3, 3), (9, 4, 64), (5, 7, 3), (3, 100, 5), (3, 1, 2050)]  # [N, K, D]


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)


def run(function: Any, values: Tensor, labels: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    """Means, gradient of the values, then labels and counts."""
    values = values.detach().requires_grad_()
    means, of_class, counts = function(values, labels)
    return means.detach(), torch.autograd.grad(means, values, upstream.to(means.dtype))[0], of_class, counts


def check(values: Tensor, labels: Tensor, upstream: Tensor | None = None) -> None:
    if upstream is None:
        upstream = torch.linspace(-1, 2, values.shape[0] * values.shape[2]).view(values.shape[0], values.shape[2])
    got = run(class_means, values, labels, upstream)
    eager = run(class_means_reference, values, labels, upstream)
    truth = run(class_means_reference, values.double(), labels, upstream)
    assert_no_worse(got[0], eager[0], truth[0])
    assert_no_worse(got[1], eager[1], truth[1])
    for mine, theirs in zip(got[2:], eager[2:], strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: tuple[int, int, int]) -> None:
    batch = random_batch(*size)
    check(batch.values, batch.labels)


@pytest.mark.parametrize("dtype", DTYPES)
def test_precisions(dtype: torch.dtype) -> None:
    batch = random_batch(5, 3, 40, dtype)
    check(batch.values, batch.labels)


@pytest.mark.parametrize("view", VIEWS)
def test_strides(view: str) -> None:
    batch = random_batch(5, 3, 4)
    check(VIEWS[view](batch.values), batch.labels.int().repeat_interleave(2)[::2])


@pytest.mark.parametrize("upstream", [torch.ones(()).expand(5, 4), torch.arange(20.0).view(4, 5).T])
def test_strides_of_the_gradient(upstream: Tensor) -> None:
    batch = random_batch(5, 3, 4)
    check(batch.values, batch.labels, upstream)


def test_batches_larger_than_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch, MODULE)
    batch = random_batch(9, 2, 3)
    check(batch.values, batch.labels)
    check(batch.values, torch.tensor([7, 7, 7, 7, 7, 2, 7, 7, 2]))
    check(batch.values, torch.tensor([7, 2, 2, 2, 2, 7, 2, 2, 7]))  # the next of class 7 is the first of its block


def test_a_class_of_many_images_is_read_many_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    loads = []
    real = InterpreterBuilder.create_masked_load
    monkeypatch.setattr(
        InterpreterBuilder, "create_masked_load", lambda *arguments: loads.append(1) or real(*arguments)
    )
    values, labels = torch.randn(80, 1, 4), torch.arange(80) % 2
    rounds = []
    for each in (labels, torch.full((80,), -100)):
        class_means(values, each)
        rounds.append(len(loads))
        loads.clear()
    # Labels and values of 16 images a round, by the program of each of the two classes.
    assert rounds[0] - rounds[1] <= 2 * 2 * 6


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_image_stays_in_its_class(bad: float) -> None:
    values, labels = random_batch(6, 2, 3).values, torch.tensor([0, 1, 0, 1, 2, -100])
    expected = class_means(values, labels).means
    values[2, 1, 0] = bad
    values[5] = bad
    means = class_means(values, labels).means
    assert not means[0, 0].isfinite()
    assert torch.equal(means[0, 1:], expected[0, 1:])
    assert torch.equal(means[1:], expected[1:])


@given(
    labels=st.lists(st.sampled_from([-100, -7, 0, 1, 2**40]), min_size=1, max_size=7),
    seeds=st.integers(1, 5),
)
@settings(max_examples=25)
def test_any_batch(labels: list[int], seeds: int) -> None:
    check(random_batch(len(labels), seeds, 2).values, torch.tensor(labels))


def test_an_empty_batch() -> None:
    check(torch.zeros(0, 2, 3), torch.zeros(0, dtype=torch.int64))
