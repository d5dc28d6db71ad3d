import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2c_fast.kernels import center_loss, class_means

from . import oracles


def test_worked_example() -> None:
    # [N=3, K=2, D=1]. Class 4, images 0 and 2: (1 + 2 + 3 + 6)/4 = 3. Class 7, image 1: (10 + 20)/2 = 15.
    values = torch.tensor([[[1.0], [2.0]], [[10.0], [20.0]], [[3.0], [6.0]]])
    means, labels, counts = class_means(values, torch.tensor([4, 7, 4]))
    assert means.tolist() == [[3.0], [15.0], [0.0]]
    assert labels.tolist() == [4, 7, -100]
    assert counts.tolist() == [2, 1, 0]


def test_equals_the_loop() -> None:
    values = torch.randn(9, 3, 5, dtype=torch.float64)
    labels = [4, 1, 4, -100, 4, 1, 0, -100, 1]
    out = class_means(values, torch.tensor(labels))
    expected = oracles.means_by_class(values, labels)
    assert out.labels.tolist() == [4, 1, -100, -100, -100, -100, 0, -100, -100]
    assert out.counts.tolist() == [3, 3, 0, 0, 0, 0, 1, 0, 0]
    torch.testing.assert_close(out.means[[0, 1, 6]], torch.stack([expected[4], expected[1], expected[0]]))


def test_the_order_of_the_batch_moves_rows_only() -> None:
    values, labels = torch.randn(6, 2, 3), torch.tensor([2, 2, 5, 5, 5, 9])
    order = torch.tensor([3, 5, 0, 4, 1, 2])
    straight, shuffled = class_means(values, labels), class_means(values[order], labels[order])
    by_label = {int(y): m for m, y in zip(shuffled.means, shuffled.labels, strict=True)}
    for mean, label in zip(straight.means, straight.labels, strict=True):
        torch.testing.assert_close(by_label[int(label)], mean)


def test_ignored_images_belong_to_no_class_and_get_no_gradient() -> None:
    values = torch.randn(3, 2, 4, requires_grad=True)
    out = class_means(values, torch.tensor([-100, 3, -100]))
    out.means.sum().backward()
    assert values.grad is not None
    assert out.labels.tolist() == [-100, 3, -100]
    assert out.counts.tolist() == [0, 1, 0]
    assert torch.equal(out.means[[0, 2]], torch.zeros(2, 4))
    assert torch.equal(values.grad[[0, 2]], torch.zeros(2, 2, 4))


def test_the_label_to_ignore_can_be_chosen() -> None:
    values = torch.randn(4, 2, 3)
    out = class_means(values, torch.tensor([255, 3, -100, 255]), ignore_index=255)
    assert out.labels.tolist() == [-100, 3, -1, -100]  # an unignored −100 is out of range like any other label
    torch.testing.assert_close(out.means[1:3], values[1:3].mean(1))


def test_a_batch_of_ignored_images_has_no_class() -> None:
    out = class_means(torch.randn(2, 2, 4), torch.tensor([-100, -100]))
    assert torch.equal(out.means, torch.zeros(2, 4))
    assert out.labels.tolist() == [-100, -100]
    assert out.counts.tolist() == [0, 0]


def test_an_empty_batch_has_no_class() -> None:
    out = class_means(torch.zeros(0, 3, 4), torch.zeros(0, dtype=torch.int64))
    assert (out.means.shape, out.labels.shape, out.counts.shape) == ((0, 4), (0,), (0,))


def test_gradient_is_the_derivative() -> None:
    values = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, 0, 1, -100, 1])
    assert torch.autograd.gradcheck(lambda v: class_means(v, labels).means, values)


@pytest.mark.parametrize("distance", ["squared_l2", "l2"])
def test_gradient_through_the_center_loss_is_the_derivative(distance: Any) -> None:
    values = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    centers = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, 3, 1, -100, 3])

    def objective(values: Tensor, centers: Tensor) -> Tensor:
        means, classes, _ = class_means(values, labels)
        return center_loss(means, classes, centers, distance)[0]

    assert torch.autograd.gradcheck(objective, (values, centers))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_value_stays_in_its_class(bad: float) -> None:
    values, labels = torch.randn(6, 2, 3), torch.tensor([0, 1, 0, 1, 2, -100])
    expected = class_means(values, labels)
    values[2, 1, 0] = bad
    values.requires_grad_()
    out = class_means(values, labels)
    assert not out.means[0, 0].isfinite()
    assert out.means[0, 1:].isfinite().all()
    assert torch.equal(out.means[1:], expected.means[1:])
    out.means.square().sum().backward()
    assert values.grad is not None
    assert values.grad[[1, 3, 4, 5]].isfinite().all()


def test_an_ignored_nan_image_spoils_nothing() -> None:
    values = torch.randn(3, 2, 3)
    values[0] = math.nan
    values.requires_grad_()
    out = class_means(values, torch.tensor([-100, 0, 0]))
    out.means.square().sum().backward()
    assert values.grad is not None
    assert out.means.isfinite().all()
    assert values.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_fp32(dtype: torch.dtype) -> None:
    values, labels = torch.randn(64, 8, 4).to(dtype), torch.arange(64) % 2
    means = class_means(values, labels).means
    expected = oracles.means_by_class(values.double(), labels.tolist())
    assert means.dtype == torch.float32
    torch.testing.assert_close(means[:2].double(), torch.stack([expected[0], expected[1]]), rtol=1e-5, atol=1e-6)


def test_int32_labels_stay_int32() -> None:
    assert class_means(torch.zeros(2, 1, 1), torch.tensor([1, 1], dtype=torch.int32)).labels.dtype == torch.int32


@given(st.lists(st.sampled_from([-100, -7, 0, 1, 2**40]), min_size=1, max_size=8))
@settings(max_examples=40)
def test_any_labels_equal_the_loop(labels: list[int]) -> None:
    values = torch.arange(len(labels) * 6, dtype=torch.float64).view(-1, 2, 3).sin()
    out = class_means(values, torch.tensor(labels))
    found = {int(y): mean for y, mean in zip(out.labels, out.means, strict=True) if y != -100}
    expected = oracles.means_by_class(values, labels)
    assert list(found) == list(expected)
    assert [int(c) for c in out.counts if c] == [labels.count(y) for y in expected]
    for label, mean in expected.items():
        torch.testing.assert_close(found[label], mean)


def test_refusals_name_what_does_not_fit() -> None:
    values, labels = torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"values must be floating-point with 3 dimensions, got shape \[3, 4\]"):
        class_means(values[0], labels)
    with pytest.raises(ValueError, match=r"labels must be int32 or int64 .* torch\.uint8"):
        class_means(values, labels.to(torch.uint8))  # cannot hold −100
    with pytest.raises(ValueError, match=r"len\(labels\) is 1 but len\(values\) is 2"):
        class_means(values, labels[:1])
    with pytest.raises(ValueError, match=r"labels on meta"):
        class_means(values, labels.to("meta"))
