import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2c_fast.kernels import class_means, update_centers

from . import oracles

ALPHA = 0.5


@pytest.fixture
def centers() -> Tensor:
    return torch.randn(5, 3)


@pytest.fixture
def steps() -> Tensor:
    return torch.tensor([0, 1, 2, 0, 7])


def test_worked_example() -> None:
    centers = torch.tensor([[1.0, 1.0], [2.0, 4.0], [8.0, 8.0]])
    steps = torch.tensor([0, 1, 5])
    update_centers(centers, steps, torch.tensor([1, 0]), torch.tensor([[10.0, 0.0], [5.0, 7.0]]), alpha=math.log(2))
    # Class 0 at t = 0: η = 1, the mean replaces the center. Class 1 at t = 1: η = exp(−ln 2) = ½, halfway.
    torch.testing.assert_close(centers, torch.tensor([[5.0, 7.0], [6.0, 2.0], [8.0, 8.0]]))
    assert steps.tolist() == [1, 2, 5]


def test_the_first_mean_replaces_the_center_to_the_bit(centers: Tensor) -> None:
    mean = torch.randn(1, 3)
    update_centers(centers, torch.zeros(5, dtype=torch.int64), torch.tensor([3]), mean, ALPHA)
    assert torch.equal(centers[3], mean[0])


def test_the_second_visit_moves_by_exp_minus_alpha(centers: Tensor) -> None:
    steps = torch.ones(5, dtype=torch.int64)
    old, mean = centers[3].clone(), torch.randn(1, 3)
    update_centers(centers, steps, torch.tensor([3]), mean, 0.002)
    # exp(−.002) = .998002 (1 − .002 + .000002)
    torch.testing.assert_close(centers[3], 0.001998 * old + 0.998002 * mean[0], rtol=1e-6, atol=1e-6)


def test_equals_the_loop_over_many_updates(centers: Tensor) -> None:
    bank, steps = centers.double(), torch.zeros(5, dtype=torch.int64)
    expected, counters = bank.clone(), [0] * 5
    for _ in range(20):
        labels = torch.randint(0, 6, (6,))
        labels[labels == 5] = -100
        values = torch.randn(6, 2, 3, dtype=torch.float64)
        means = class_means(values, labels)
        update_centers(bank, steps, means.labels, means.means, ALPHA)
        oracles.move_centers(expected, counters, oracles.means_by_class(values, labels.tolist()), ALPHA)
    torch.testing.assert_close(bank, expected)
    assert steps.tolist() == counters


def test_writes_in_place_and_only_the_classes_present(centers: Tensor, steps: Tensor) -> None:
    before, place = centers.clone(), centers.data_ptr()
    update_centers(centers, steps, torch.tensor([4, -100, 2]), torch.randn(3, 3), ALPHA)
    assert centers.data_ptr() == place
    assert torch.equal(centers[[0, 1, 3]], before[[0, 1, 3]])
    assert centers[[2, 4]].ne(before[[2, 4]]).all()
    assert steps.tolist() == [0, 1, 3, 0, 8]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_mean_that_is_not_finite_touches_neither_row_nor_counter(centers: Tensor, steps: Tensor, bad: float) -> None:
    expected, expected_steps, means = centers.clone(), steps.clone(), torch.randn(3, 3)
    update_centers(expected, expected_steps, torch.tensor([0, 1]), means[[0, 2]], ALPHA)
    means[1, 2] = bad
    update_centers(centers, steps, torch.tensor([0, 3, 1]), means, ALPHA)
    assert torch.equal(centers, expected)
    assert torch.equal(steps, expected_steps)


def test_a_mean_beyond_the_centers_precision_counts_as_not_finite() -> None:
    centers, steps = torch.zeros(2, 1, dtype=torch.float16), torch.zeros(2, dtype=torch.int64)
    update_centers(centers, steps, torch.tensor([1]), torch.tensor([[1e6]]), ALPHA)
    assert centers.tolist() == [[0.0], [0.0]]
    assert steps.tolist() == [0, 0]


@pytest.mark.parametrize("labels", [[-100, -100], [5, -1], [-100, 10**6], [2**40, -(2**40)]])
def test_labels_that_name_no_row_change_nothing(centers: Tensor, steps: Tensor, labels: list[int]) -> None:
    before, before_steps = centers.clone(), steps.clone()
    update_centers(centers, steps, torch.tensor(labels), torch.randn(2, 3), ALPHA)
    assert torch.equal(centers, before)
    assert torch.equal(steps, before_steps)


def test_all_means_non_finite_change_nothing(centers: Tensor, steps: Tensor) -> None:
    before, before_steps = centers.clone(), steps.clone()
    update_centers(centers, steps, torch.tensor([4, 0]), torch.full((2, 3), math.nan), ALPHA)
    assert torch.equal(centers, before)
    assert torch.equal(steps, before_steps)


def test_no_rows_change_nothing(centers: Tensor, steps: Tensor) -> None:
    before, before_steps = centers.clone(), steps.clone()
    update_centers(centers, steps, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3), ALPHA)
    assert torch.equal(centers, before)
    assert torch.equal(steps, before_steps)


def test_class_means_name_each_class_once(centers: Tensor) -> None:
    steps = torch.zeros(5, dtype=torch.int64)
    means = class_means(torch.randn(8, 2, 3), torch.tensor([1, 4, 1, 1, 4, 0, 0, 1]))
    update_centers(centers, steps, means.labels, means.means, ALPHA)
    assert steps.tolist() == [1, 1, 0, 0, 1]


def test_int32_labels_serve_as_int64_ones(centers: Tensor, steps: Tensor) -> None:
    other, other_steps, labels, means = centers.clone(), steps.clone(), torch.tensor([4, -100]), torch.randn(2, 3)
    update_centers(centers, steps, labels, means, ALPHA)
    update_centers(other, other_steps, labels.int(), means, ALPHA)
    assert torch.equal(centers, other)
    assert torch.equal(steps, other_steps)


def test_alpha_zero_keeps_replacing_the_center(centers: Tensor, steps: Tensor) -> None:
    mean = torch.randn(1, 3)
    update_centers(centers, steps, torch.tensor([4]), mean, 0.0)
    assert torch.equal(centers[4], mean[0])


def test_a_center_often_visited_hardly_moves(centers: Tensor) -> None:
    before = centers.clone()
    update_centers(centers, torch.full((5,), 10**9), torch.tensor([2]), torch.full((1, 3), 100.0), 0.002)
    assert torch.equal(centers, before)


def test_centers_that_require_grad_are_written_without_a_graph(centers: Tensor, steps: Tensor) -> None:
    centers.requires_grad_()
    update_centers(centers, steps, torch.tensor([0]), torch.ones(1, 3, requires_grad=True), ALPHA)
    assert centers.is_leaf
    assert centers[0].tolist() == [1.0, 1.0, 1.0]


@given(
    labels=st.lists(st.sampled_from([-100, -1, 0, 1, 2, 3]), min_size=1, max_size=6),
    broken=st.lists(st.booleans(), min_size=6, max_size=6),
    start=st.lists(st.integers(0, 3), min_size=3, max_size=3),
)
@settings(max_examples=50)
def test_any_batch_equals_the_loop(labels: list[int], broken: list[bool], start: list[int]) -> None:
    centers, steps = torch.arange(6, dtype=torch.float64).view(3, 2), torch.tensor(start)
    values = torch.arange(len(labels) * 2, dtype=torch.float64).view(-1, 1, 2).cos()
    values[torch.tensor(broken[: len(labels)])] = math.nan
    expected, counters = centers.clone(), list(start)
    usable = {
        label: mean
        for label, mean in oracles.means_by_class(values, labels).items()
        if 0 <= label < 3 and mean.isfinite().all()
    }
    oracles.move_centers(expected, counters, usable, ALPHA)
    means = class_means(values, torch.tensor(labels))
    update_centers(centers, steps, means.labels, means.means, ALPHA)
    torch.testing.assert_close(centers, expected)
    assert steps.tolist() == counters


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"centers": torch.zeros(5)}, r"centers must be floating-point with 2 dimensions, got shape \[5\]"),
        ({"steps": torch.zeros(5)}, r"steps must be int32 or int64 .* torch\.float32"),
        ({"steps": torch.zeros(4, dtype=torch.int64)}, r"len\(steps\) is 4 but len\(centers\) is 5"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"len\(labels\) is 3 but len\(means\) is 2"),
        ({"means": torch.zeros(2, 4)}, r"means\.shape\[1\] is 4 but centers\.shape\[1\] is 3"),
        ({"alpha": -0.1}, r"alpha must be at least 0 and finite, got -0\.1"),
        ({"alpha": math.nan}, r"alpha must be at least 0 and finite, got nan"),
        ({"alpha": math.inf}, r"alpha must be at least 0 and finite, got inf"),
        ({"means": torch.zeros(2, 3, device="meta")}, r"means on meta"),
    ],
)
def test_refusals_name_what_does_not_fit(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "centers": torch.zeros(5, 3),
        "steps": torch.zeros(5, dtype=torch.int64),
        "labels": torch.zeros(2, dtype=torch.int64),
        "means": torch.zeros(2, 3),
        "alpha": ALPHA,
    }
    with pytest.raises(ValueError, match=message):
        update_centers(**(arguments | changed))
