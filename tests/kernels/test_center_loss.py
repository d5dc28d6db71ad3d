import math
from typing import Any

import pytest
import torch
from torch import Tensor

from i2c_fast.kernels import center_loss

from . import oracles

DISTANCES = ["squared_l2", "l2"]


def test_worked_example() -> None:
    # Class 2: (1, 2) − (4, 6) = (−3, −4): 25. Class 0: (0, 1) − (1, 1) = (−1, 0): 1. Sum 26 over 2 classes.
    means = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    centers = torch.tensor([[1.0, 1.0], [99.0, 99.0], [4.0, 6.0]])
    total, count = center_loss(means, torch.tensor([2, 0]), centers, reduction="sum")
    assert (total.item(), count.item()) == (26.0, 2)
    assert center_loss(means, torch.tensor([2, 0]), centers)[0].item() == 13.0


def test_worked_example_of_the_released_distance() -> None:
    # The same differences: 5 + 1 = 6, up to the offset of 1e-6
    means = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    centers = torch.tensor([[1.0, 1.0], [99.0, 99.0], [4.0, 6.0]])
    assert center_loss(means, torch.tensor([2, 0]), centers, "l2", "sum")[0].item() == pytest.approx(6, abs=1e-5)


def test_offset_of_the_released_distance_is_on_the_side_of_the_center() -> None:
    # w − a + 1e-6 in the release: ‖(−3, 2)·1e-6 + 1e-6‖ = √13·1e-6, where a − w + 1e-6 would give √17·1e-6.
    means = torch.tensor([[3e-6, -2e-6]], dtype=torch.float64, requires_grad=True)
    centers = torch.zeros(1, 2, dtype=torch.float64)
    loss, _ = center_loss(means, torch.tensor([0]), centers, "l2")
    expected = torch.nn.functional.pairwise_distance(centers, means).sum()
    assert loss.item() == pytest.approx(13**0.5 * 1e-6)
    (gradient,), (truth,) = torch.autograd.grad(loss, means), torch.autograd.grad(expected, means)
    torch.testing.assert_close(gradient, truth)


@pytest.mark.parametrize("distance", DISTANCES)
def test_equals_the_loop(distance: Any) -> None:
    means, centers = torch.randn(4, 5, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    total, count = center_loss(means, torch.tensor([5, -100, 0, 3]), centers, distance, "sum")
    by_class = {5: means[0], 0: means[2], 3: means[3]}
    torch.testing.assert_close(total, oracles.center_sum(by_class, centers, distance))
    assert count.item() == 3


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradient_is_the_derivative_in_means_and_centers(distance: Any) -> None:
    means = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    centers = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([4, -100, 0, 2])
    for reduction in ("none", "mean", "sum"):
        assert torch.autograd.gradcheck(
            lambda m, c, r=reduction: center_loss(m, labels, c, distance, r)[0], (means, centers)
        )


def test_without_reduction_each_class_has_its_loss() -> None:
    means, centers = torch.tensor([[1.0, 2.0], [8.0, 8.0], [0.0, 3.0]]), torch.zeros(2, 2)
    loss, count = center_loss(means, torch.tensor([1, -100, 0]), centers, reduction="none")
    assert loss.tolist() == [5, 0, 9]
    assert count.item() == 2


def test_worked_gradient() -> None:
    # d‖a − w‖²/da = 2(a − w) and the opposite for w
    means = torch.tensor([[1.0, 2.0], [8.0, 8.0]], requires_grad=True)
    centers = torch.tensor([[9.0, 9.0], [4.0, 6.0]], requires_grad=True)
    center_loss(means, torch.tensor([1, -100]), centers)[0].backward()
    assert means.grad is not None and centers.grad is not None
    assert means.grad.tolist() == [[-6.0, -8.0], [0.0, 0.0]]
    assert centers.grad.tolist() == [[0.0, 0.0], [6.0, 8.0]]


def test_the_label_to_ignore_can_be_chosen() -> None:
    means, centers = torch.randn(3, 4), torch.randn(5, 4)
    loss, count = center_loss(means, torch.tensor([1, 2, 3]), centers, ignore_index=2)
    assert torch.equal(loss, center_loss(means, torch.tensor([1, -100, 3]), centers)[0])
    assert count.item() == 2
    assert center_loss(means, torch.tensor([1, -100, 3]), centers, ignore_index=2)[0].isnan()


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_mean_on_its_center_has_a_finite_gradient(distance: Any) -> None:
    means, centers = torch.ones(1, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    total, _ = center_loss(means, torch.tensor([1]), centers, distance)
    total.backward()
    assert means.grad is not None and centers.grad is not None
    assert means.grad.isfinite().all()
    assert centers.grad.isfinite().all()
    assert total.item() == pytest.approx(0, abs=2e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_no_class_gives_zero_with_a_zero_gradient(distance: Any) -> None:
    means = torch.randn(2, 3, requires_grad=True)
    total, count = center_loss(means, torch.tensor([-100, -100]), torch.randn(4, 3), distance)
    total.backward()
    assert means.grad is not None
    assert (total.item(), count.item()) == (0.0, 0)
    assert torch.equal(means.grad, torch.zeros(2, 3))


def test_an_empty_batch_has_no_class() -> None:
    total, count = center_loss(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), torch.randn(4, 3))
    assert (total.item(), count.item()) == (0.0, 0)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("label", [4, -1, -99, 2**40])
def test_label_out_of_range_makes_the_sum_nan_and_no_other_gradient(distance: Any, label: int) -> None:
    means, centers = torch.randn(3, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    total, count = center_loss(means, torch.tensor([1, label, 2]), centers, distance)
    total.backward()
    assert total.isnan()
    assert count.item() == 3
    assert means.grad is not None and centers.grad is not None
    assert means.grad[[0, 2]].isfinite().all() and means.grad[[0, 2]].ne(0).all()
    assert centers.grad.isfinite().all()
    assert torch.equal(centers.grad[[0, 3]], torch.zeros(2, 3))  # the clamped label names neither


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_mean_spoils_no_other_gradient(distance: Any, bad: float) -> None:
    means = torch.randn(3, 3)
    means[1, 2] = bad
    means.requires_grad_()
    centers = torch.randn(4, 3, requires_grad=True)
    center_loss(means, torch.tensor([0, 3, 1]), centers, distance)[0].backward()
    assert means.grad is not None and centers.grad is not None
    assert means.grad[[0, 2]].isfinite().all()
    assert centers.grad[:3].isfinite().all()


def test_ignored_rows_may_hold_anything() -> None:
    means = torch.tensor([[math.nan, 1.0], [1.0, 2.0]], requires_grad=True)
    centers = torch.tensor([[1.0, 1.0]], requires_grad=True)
    total, _ = center_loss(means, torch.tensor([-100, 0]), centers)
    total.backward()
    assert means.grad is not None and centers.grad is not None
    assert total.item() == 1.0
    assert means.grad.tolist() == [[0.0, 0.0], [0.0, 2.0]]
    assert centers.grad.isfinite().all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_fp32_agrees_with_fp64(distance: Any) -> None:
    means, centers, labels = torch.randn(5, 300), torch.randn(9, 300), torch.tensor([8, 0, 3, -100, 2])
    total = center_loss(means, labels, centers, distance)[0]
    truth = center_loss(means.double(), labels, centers.double(), distance)[0]
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"means": torch.zeros(3)}, r"means must be floating-point with 2 dimensions, got shape \[3\]"),
        ({"labels": torch.zeros(2)}, r"labels must be int32 or int64"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"len\(labels\) is 3 but len\(means\) is 2"),
        ({"centers": torch.zeros(4, 5)}, r"means\.shape\[1\] is 3 but centers\.shape\[1\] is 5"),
        ({"centers": torch.zeros(4, 3, dtype=torch.int64)}, r"centers must be floating-point"),
        ({"centers": torch.zeros(4, 3, device="meta")}, r"centers on meta"),
        ({"distance": "l1"}, r"distance must be one of squared_l2, l2, got 'l1'"),
    ],
)
def test_refusals_name_what_does_not_fit(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Tensor] = {
        "means": torch.zeros(2, 3),
        "labels": torch.zeros(2, dtype=torch.int64),
        "centers": torch.zeros(4, 3),
    }
    with pytest.raises(ValueError, match=message):
        center_loss(**(arguments | changed))
