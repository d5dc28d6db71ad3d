import math
from typing import Any

import pytest
import torch
from torch import Tensor

from i2c_fast.kernels import inter_image_loss, tap

from . import oracles

DISTANCES = ["squared_l2", "l2"]
LABELS = [1, 3, 1, -100, 3, 0]
INDICES = torch.tensor([[0, 5], [2, 2], [3, 1], [0, 0], [4, 5], [1, 3]])  # of 2×3 maps


@pytest.fixture
def features() -> Tensor:
    return torch.randn(6, 4, 2, 3, dtype=torch.float64)


@pytest.fixture
def centers() -> Tensor:
    return torch.randn(5, 4, dtype=torch.float64)


def test_worked_example() -> None:
    # N 2, K 1, D 1; seeds 2 and 8 of class 1: SC (2 − 8)² = 36; mean 5; GC against 3: (5 − 3)² = 4
    features = torch.tensor([[[[2.0, 0.0]]], [[[0.0, 8.0]]]])
    sums = inter_image_loss(features, torch.tensor([[0], [1]]), torch.tensor([1, 1]), torch.tensor([[0.0], [3.0]]))
    assert (sums.sc.item(), sums.pairs.item()) == (36.0, 1)
    assert (sums.gc.item(), sums.classes.item()) == (4.0, 1)
    assert sums.class_means.means.tolist() == [[5.0], [0.0]]
    assert sums.class_means.labels.tolist() == [1, -100]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("grouped", [False, True])
def test_equals_the_loop(features: Tensor, centers: Tensor, distance: Any, grouped: bool) -> None:
    groups = [0, 1, 0, 2, 2, 2] if grouped else None
    sums = inter_image_loss(
        features, INDICES, torch.tensor(LABELS), centers,
        groups=torch.tensor(groups) if grouped else None, distance=distance, reduction="sum",
    )  # fmt: skip
    values = oracles.gathered(features, INDICES.tolist())
    found, means = oracles.pairs(LABELS, groups), oracles.means_by_class(values, LABELS)
    torch.testing.assert_close(sums.sc, oracles.pair_sum(values, found, distance))
    torch.testing.assert_close(sums.gc, oracles.center_sum(means, centers, distance))
    assert (sums.pairs.item(), sums.classes.item()) == (1 if grouped else 2, 3)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("tapped", [False, True])
def test_gradient_is_the_derivative(features: Tensor, centers: Tensor, distance: Any, tapped: bool) -> None:
    def objective(features: Tensor, centers: Tensor) -> Tensor:
        through, slots = tap(features, 2) if tapped else (features, None)
        sums = inter_image_loss(through, INDICES, torch.tensor(LABELS), centers, slots=slots, distance=distance)
        return sums.sc + 2 * sums.gc + through.sum()

    assert torch.autograd.gradcheck(objective, (features.requires_grad_(), centers.requires_grad_()))


def test_slots_are_put_to_use(features: Tensor, centers: Tensor) -> None:
    tapped, slots = tap(features, 2)
    inter_image_loss(tapped, INDICES, torch.tensor(LABELS), centers, slots=slots)
    assert slots.used


def test_class_means_are_constants(features: Tensor, centers: Tensor) -> None:
    sums = inter_image_loss(features.requires_grad_(), INDICES, torch.tensor(LABELS), centers)
    assert sums.sc.requires_grad and sums.gc.requires_grad
    assert not sums.class_means.means.requires_grad


def test_centers_are_read_only(features: Tensor, centers: Tensor) -> None:
    before = centers.clone()
    inter_image_loss(features, INDICES, torch.tensor(LABELS), centers)
    assert torch.equal(centers, before)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_nan_image_spoils_no_other_class(features: Tensor, centers: Tensor, distance: Any) -> None:
    features[2] = math.nan  # with image 0 of class 1
    features.requires_grad_()
    centers.requires_grad_()
    sums = inter_image_loss(features, INDICES, torch.tensor(LABELS), centers, distance=distance)
    (sums.sc + sums.gc).backward()
    assert features.grad is not None and centers.grad is not None
    assert sums.class_means.means[[1, 5]].isfinite().all()
    assert features.grad[[1, 3, 4, 5]].isfinite().all()
    assert centers.grad[[0, 2, 3, 4]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_accumulate_in_fp32(dtype: torch.dtype) -> None:
    features, centers = torch.randn(6, 32, 2, 3).to(dtype), torch.randn(5, 32)
    sums = inter_image_loss(features, INDICES, torch.tensor(LABELS), centers)
    truth = inter_image_loss(features.double(), INDICES, torch.tensor(LABELS), centers.double())
    assert sums.sc.dtype == sums.gc.dtype == sums.class_means.means.dtype == torch.float32
    torch.testing.assert_close(sums.sc.double(), truth.sc, rtol=1e-5, atol=0)
    torch.testing.assert_close(sums.gc.double(), truth.gc, rtol=1e-5, atol=0)


def test_refusals_come_from_the_op_that_does_not_fit(features: Tensor, centers: Tensor) -> None:
    labels = torch.tensor(LABELS)
    with pytest.raises(ValueError, match=r"len\(indices\) is 5 but len\(features\) is 6"):
        inter_image_loss(features, INDICES[:5], labels, centers)
    with pytest.raises(ValueError, match=r"len\(labels\) is 5 but len\(features\) is 6"):
        inter_image_loss(features, INDICES, labels[:5], centers)
    with pytest.raises(ValueError, match=r"features\.shape\[1\] is 4 but centers\.shape\[1\] is 3"):
        inter_image_loss(features, INDICES, labels, centers[:, :3])
    with pytest.raises(ValueError, match=r"distance must be one of"):
        inter_image_loss(features, INDICES, labels, centers, distance="l1")  # type: ignore[arg-type]
