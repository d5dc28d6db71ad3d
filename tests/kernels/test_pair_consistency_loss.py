import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i2c_fast.kernels import pair_consistency_loss

from . import oracles

DISTANCES = ["squared_l2", "l2"]
REDUCTIONS = ["none", "mean", "sum"]


def pair_count(labels: list[int], groups: list[int] | None = None) -> int:
    """How many pairs the op finds."""
    given_groups = None if groups is None else torch.tensor(groups)
    return int(pair_consistency_loss(torch.zeros(len(labels), 1, 1), torch.tensor(labels), given_groups)[1])


def test_worked_example_of_two_pairs() -> None:
    # [N=4, K=2, D=2]. Class 5, images 0 and 2: seeds differ by (3, 4) and (0, 1): (25 + 1)/2 = 13.
    # Class 9, images 1 and 3: by (1, 1) and (2, 0): (2 + 4)/2 = 3. Sum 16 over 2 pairs.
    values = torch.tensor(
        [[[3.0, 4.0], [0.0, 0.0]], [[1.0, 1.0], [2.0, 5.0]], [[0.0, 0.0], [0.0, 1.0]], [[2.0, 2.0], [4.0, 5.0]]]
    )
    total, count = pair_consistency_loss(values, torch.tensor([5, 9, 5, 9]), reduction="sum")
    assert (total.item(), count.item()) == (16.0, 2)
    assert pair_consistency_loss(values, torch.tensor([5, 9, 5, 9]))[0].item() == 8.0


def test_worked_example_of_the_released_distance() -> None:
    # Seeds differ by (3, 4) and (6, 8): (5 + 10)/2 = 7.5, up to the offset of 1e-6
    values = torch.tensor([[[3.0, 4.0], [6.0, 8.0]], [[0.0, 0.0], [0.0, 0.0]]])
    total, count = pair_consistency_loss(values, torch.tensor([0, 0]), distance="l2")
    assert total.item() == pytest.approx(7.5, abs=1e-5)
    assert count.item() == 1


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("grouped", [False, True])
def test_equals_the_loop(distance: Any, grouped: bool) -> None:
    values = torch.randn(12, 3, 5, dtype=torch.float64)
    labels = torch.tensor([4, 1, 4, 4, -100, 1, 1, 4, 0, -100, 1, 4])
    groups = torch.randint(0, 2, (12,)) if grouped else None
    total, count = pair_consistency_loss(values, labels, groups, distance, "sum")
    found = oracles.pairs(labels.tolist(), None if groups is None else groups.tolist())
    torch.testing.assert_close(total, oracles.pair_sum(values, found, distance))
    assert count.item() == len(found) > 0


def test_first_pairs_with_second_and_third_with_fourth_in_batch_order() -> None:
    values = torch.tensor([0.0, 100.0, 1.0, 10.0, 103.0, 14.0]).view(6, 1, 1)
    # class 0: 0, 1, 10, 14 → (0 − 1)² + (10 − 14)² = 17; class 1: (100 − 103)² = 9
    total, count = pair_consistency_loss(values, torch.tensor([0, 1, 0, 0, 1, 0]), reduction="sum")
    assert (total.item(), count.item()) == (26.0, 3)


def test_the_odd_image_left_over_has_no_pair_and_no_gradient() -> None:
    values = torch.tensor([0.0, 1.0, 50.0]).view(3, 1, 1).requires_grad_()
    total, count = pair_consistency_loss(values, torch.tensor([2, 2, 2]))
    total.backward()
    assert values.grad is not None
    assert (total.item(), count.item()) == (1.0, 1)
    assert values.grad.flatten().tolist() == [-2.0, 2.0, 0.0]


def test_the_label_to_ignore_can_be_chosen() -> None:
    values, labels = torch.randn(6, 2, 3), torch.tensor([255, 0, 255, 0, -100, -100])
    loss, count = pair_consistency_loss(values, labels, ignore_index=255)
    expected, _ = pair_consistency_loss(values, torch.tensor([-100, 0, -100, 0, 7, 7]))
    assert torch.equal(loss, expected)
    assert count.item() == 2  # −100 is a label like any other


def test_groups_keep_images_of_one_class_apart() -> None:
    assert pair_count([3, 3, 3, 3]) == 2
    assert pair_count([3, 3, 3, 3], [0, 1, 1, 0]) == 2
    assert pair_count([3, 3, 3, 3], [0, 1, 1, 1]) == 1
    assert pair_count([3, 3, 3, 3], [0, 1, 2, 3]) == 0
    assert pair_count([3, 4], [0, 0]) == 0


def test_groups_choose_the_partner() -> None:
    values = torch.tensor([0.0, 10.0, 1.0, 13.0]).view(4, 1, 1)
    labels = torch.zeros(4, dtype=torch.int64)
    assert pair_consistency_loss(values, labels, reduction="sum")[0].item() == 100 + 144  # (0, 10), (1, 13)
    assert (
        pair_consistency_loss(values, labels, torch.tensor([0, 1, 0, 1]), reduction="sum")[0].item() == 1 + 9
    )  # (0, 1), (10, 13)


def test_without_reduction_the_first_image_of_a_pair_has_its_loss() -> None:
    values = torch.tensor([0.0, 10.0, 1.0, 7.0, 13.0]).view(5, 1, 1)
    loss, count = pair_consistency_loss(values, torch.tensor([0, 1, 0, -100, 1]), reduction="none")
    assert loss.tolist() == [1, 9, 0, 0, 0]
    assert count.item() == 2


def test_ignored_images_pair_with_nothing() -> None:
    assert pair_count([-100, -100]) == 0
    assert pair_count([1, -100, 1]) == 1


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("labels", [[1, 2, 3], [-100, -100, -100], [7, -100, 2]])
def test_no_pair_gives_zero_with_a_zero_gradient(distance: Any, labels: list[int]) -> None:
    values = torch.randn(3, 2, 4, requires_grad=True)
    total, count = pair_consistency_loss(values, torch.tensor(labels), distance=distance, reduction="sum")
    total.backward()
    assert values.grad is not None
    assert (total.item(), count.item()) == (0.0, 0)
    assert torch.equal(values.grad, torch.zeros(3, 2, 4))


def test_an_empty_batch_has_no_pair() -> None:
    total, count = pair_consistency_loss(torch.zeros(0, 3, 4), torch.zeros(0, dtype=torch.int64))
    assert (total.item(), count.item()) == (0.0, 0)


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradient_is_the_derivative(distance: Any) -> None:
    values = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 0, -100, 1])
    for reduction in REDUCTIONS:
        assert torch.autograd.gradcheck(
            lambda v, r=reduction: pair_consistency_loss(v, labels, None, distance, r)[0], values
        )


@pytest.mark.parametrize("distance", DISTANCES)
def test_coincident_seeds_have_a_finite_gradient(distance: Any) -> None:
    values = torch.ones(2, 2, 3, requires_grad=True)
    total, _ = pair_consistency_loss(values, torch.tensor([0, 0]), distance=distance)
    total.backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert total.item() == pytest.approx(0, abs=2e-6)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_pair_spoils_no_other_gradient(distance: Any, bad: float) -> None:
    values = torch.randn(6, 2, 3)
    values[0, 1, 2] = bad
    values.requires_grad_()
    labels = torch.tensor([8, 1, 8, 1, 2, -100])  # image 0 is where unpaired images would look
    pair_consistency_loss(values, labels, distance=distance)[0].backward()
    assert values.grad is not None
    assert not values.grad[0].isfinite().all()
    assert values.grad[[1, 3, 4, 5]].isfinite().all()
    assert values.grad[[4, 5]].eq(0).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_non_finite_image_without_pair_spoils_nothing(distance: Any) -> None:
    values = torch.randn(4, 2, 3)
    values[[0, 3]] = math.nan
    values.requires_grad_()
    total, count = pair_consistency_loss(values, torch.tensor([-100, 1, 1, 1]), distance=distance)
    total.backward()
    assert values.grad is not None
    assert total.isfinite()
    assert count.item() == 1
    assert values.grad.isfinite().all()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_precision_accumulates_in_fp32(dtype: torch.dtype, rounding: float, distance: Any) -> None:
    values = torch.randn(4, 3, 256).to(dtype).requires_grad_()
    labels = [0, 1, 0, 1]
    total, _ = pair_consistency_loss(values, torch.tensor(labels), distance=distance, reduction="sum")
    total.backward()
    truth = values.detach().double().requires_grad_()
    expected = oracles.pair_sum(truth, oracles.pairs(labels), distance)
    expected.backward()
    assert values.grad is not None and truth.grad is not None
    assert total.dtype == torch.float32
    assert values.grad.dtype == dtype
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(values.grad.double(), truth.grad, rtol=rounding, atol=1e-6)  # rounded once


def test_strides_do_not_matter() -> None:
    values = torch.randn(4, 5, 3).transpose(1, 2)
    labels = torch.tensor([0, 0, 1, 1])
    torch.testing.assert_close(
        pair_consistency_loss(values, labels), pair_consistency_loss(values.contiguous(), labels)
    )


@given(
    labels=st.lists(st.sampled_from([-100, 0, 1, 2]), min_size=1, max_size=9),
    groups=st.lists(st.integers(0, 1), min_size=9, max_size=9) | st.none(),
    distance=st.sampled_from(DISTANCES),
)
@settings(max_examples=60)
def test_any_batch_order_equals_the_loop(labels: list[int], groups: list[int] | None, distance: Any) -> None:
    generator = torch.Generator().manual_seed(len(labels))
    values = torch.randn(len(labels), 2, 3, dtype=torch.float64, generator=generator)
    chosen = None if groups is None else groups[: len(labels)]
    total, count = pair_consistency_loss(
        values, torch.tensor(labels), None if chosen is None else torch.tensor(chosen), distance, "sum"
    )
    found = oracles.pairs(labels, chosen)
    torch.testing.assert_close(total, oracles.pair_sum(values, found, distance))
    assert count.item() == len(found)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": torch.zeros(2, 3)}, r"values must be floating-point with 3 dimensions, got shape \[2, 3\]"),
        ({"values": torch.zeros(2, 1, 1, dtype=torch.int64)}, r"values must be floating-point"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"len\(labels\) is 3 but len\(values\) is 2"),
        ({"labels": torch.zeros(2)}, r"labels must be int32 or int64 .* torch\.float32"),
        ({"labels": torch.zeros(2, dtype=torch.bool)}, r"labels must be int32 or int64 .* torch\.bool"),
        ({"groups": torch.zeros(1, dtype=torch.int64)}, r"len\(groups\) is 1 but len\(values\) is 2"),
        ({"groups": torch.zeros(2)}, r"groups must be int32 or int64"),
        ({"distance": "cosine"}, r"distance must be one of squared_l2, l2, got 'cosine'"),
        ({"labels": torch.zeros(2, dtype=torch.int64, device="meta")}, r"values on cpu, labels on meta"),
    ],
)
def test_refusals_name_what_does_not_fit(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"values": torch.zeros(2, 3, 4), "labels": torch.zeros(2, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        pair_consistency_loss(**(arguments | changed))
