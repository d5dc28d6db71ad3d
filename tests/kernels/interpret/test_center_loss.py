"""The kernels of center_loss."""

import math
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2c_fast.kernels import center_loss, center_loss_reference

from .accuracy import DTYPES, assert_no_worse
from .objective import poison, use_small_blocks

MODULE = sys.modules["i2c_fast.kernels.center_loss"]  # the package's attribute of that name is the function
DISTANCES = ["squared_l2", "l2"]
LABELS = [3, -100, 0, 4, -100, 3]  # a class may have several rows


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)


def run(function: Any, means: Tensor, labels: Tensor, centers: Tensor, *options: Any) -> tuple[Tensor, ...]:
    """Loss, gradients of means and centers for gradients from −1.5 to 1, and the count."""
    leaves = [tensor.detach().requires_grad_() for tensor in (means, centers)]
    total, count = function(leaves[0], labels, leaves[1], *options)
    gradient = torch.linspace(-1.5, 1, total.numel(), dtype=total.dtype).reshape(total.shape)
    return total.detach(), *torch.autograd.grad(total, leaves, gradient), count


def check(means: Tensor, labels: Tensor, centers: Tensor, *options: Any) -> None:
    got = run(center_loss, means, labels, centers, *options)
    eager = run(center_loss_reference, means, labels, centers, *options)
    truth = run(center_loss_reference, means.double(), labels, centers.double(), *options)
    for mine, plain, exact in zip(got[:3], eager[:3], truth[:3], strict=True):
        assert_no_worse(mine, plain, exact)
    assert got[3].dtype == torch.int64
    assert got[3] == eager[3]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("rows", "channels"), [(1, 1), (3, 3), (6, 64), (3, 2050)])
def test_sizes(rows: int, channels: int, distance: Any) -> None:
    check(torch.randn(rows, channels), torch.tensor(LABELS[:rows]), torch.randn(5, channels), distance)


def test_means_as_close_as_the_offset_of_l2() -> None:
    check(torch.tensor([[3e-6, -2e-6]]), torch.tensor([0]), torch.zeros(1, 2), "l2")


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_precisions(dtype: torch.dtype, distance: Any) -> None:
    check(torch.randn(6, 40).to(dtype), torch.tensor(LABELS), torch.randn(5, 40).to(dtype), distance)


@pytest.mark.parametrize("distance", DISTANCES)
def test_strides(distance: Any) -> None:
    means, centers = torch.randn(4, 12).T[::2], torch.randn(8, 5).T[:, ::2]
    check(means, torch.tensor(LABELS, dtype=torch.int32).repeat_interleave(2)[::2], centers, distance)


@pytest.mark.parametrize("distance", DISTANCES)
def test_batches_larger_than_the_blocks(monkeypatch: pytest.MonkeyPatch, distance: Any) -> None:
    use_small_blocks(monkeypatch, MODULE)
    check(torch.randn(9, 300), torch.tensor([1, 2, -100, 1, 0, 1, 3, 0, 1]), torch.randn(4, 300), distance)  # 3 chunks


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("label", [5, -1, 2**40])
def test_labels_out_of_range_make_the_sum_nan_and_nothing_else(label: int, distance: Any) -> None:
    check(torch.randn(3, 3), torch.tensor([1, label, 2]), torch.randn(5, 3), distance)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_mean_spoils_no_other_gradient(bad: float, distance: Any) -> None:
    means = torch.randn(3, 3)
    means[1, 2] = bad
    total, to_means, to_centers, _ = run(center_loss, means, torch.tensor([0, 3, 1]), torch.randn(4, 3), distance)
    assert not total.isfinite()
    assert to_means[[0, 2]].isfinite().all()
    assert to_centers[:3].isfinite().all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_ignored_rows_may_hold_anything(distance: Any) -> None:
    means = torch.randn(6, 4)
    means[1], means[4] = math.nan, math.inf
    check(means, torch.tensor(LABELS), torch.randn(5, 4), distance)


@given(
    labels=st.lists(st.sampled_from([-100, 0, 1, 2]), min_size=1, max_size=6),
    distance=st.sampled_from(DISTANCES),
    reduction=st.sampled_from(["none", "mean", "sum"]),
)
@settings(max_examples=25)
def test_any_rows(labels: list[int], distance: Any, reduction: Any) -> None:
    generator = torch.Generator().manual_seed(len(labels))
    means, centers = torch.randn(len(labels), 2, generator=generator), torch.randn(3, 2, generator=generator)
    check(means, torch.tensor(labels), centers, distance, reduction)


def test_no_rows() -> None:
    check(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.randn(4, 3), "squared_l2")
