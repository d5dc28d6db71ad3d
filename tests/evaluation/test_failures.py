"""Outcomes on boxes made by hand, on both sides of every border."""

import numpy as np
import pytest

from i2c_fast.evaluation import FAILURES, Outcome, outcome
from i2c_fast.evaluation.boxes import overlaps

GT_BOXES = np.array([[0, 0, 9, 9]], np.float32)  # 100 pixels


def judge(box: tuple[int, int, int, int], gt_boxes: np.ndarray = GT_BOXES) -> Outcome:
    return outcome(np.array(box), gt_boxes, right_class=True, right_box=False)


def test_overlaps_count_inclusive_pixels() -> None:
    iou, iop, iog = overlaps(np.array([[5, 0, 14, 9]]), GT_BOXES)
    assert (iou[0, 0], iop[0, 0], iog[0, 0]) == (50 / 150, 0.5, 0.5)


def test_empty_box_overlaps_nothing() -> None:
    assert [values.tolist() for values in overlaps(np.array([[0, 0, -1, -1]]), GT_BOXES)] == [[[0.0]]] * 3
    assert judge((0, 0, -1, -1)) is Outcome.ELSEWHERE


def test_wrong_class_comes_before_everything() -> None:
    assert outcome(np.array([0, 0, 9, 9]), GT_BOXES, right_class=False, right_box=True) is Outcome.WRONG_CLASS


def test_the_protocol_decides_what_is_right() -> None:
    assert outcome(np.array([50, 50, 60, 60]), GT_BOXES, right_class=True, right_box=True) is Outcome.RIGHT


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((2, 2, 4, 4), Outcome.TOO_SMALL),  # all of it on the object
        ((5, 0, 13, 0), Outcome.TOO_SMALL),  # 5 of its 9 pixels
        ((5, 0, 14, 0), Outcome.ELSEWHERE),  # 5 of 10: IoP is 0.5 and not above
        ((-20, -20, 29, 29), Outcome.TOO_LARGE),  # all of the object in it
        ((0, 0, 30, 7), Outcome.TOO_LARGE),  # 80 of the object's 100 pixels
        ((0, 0, 30, 6), Outcome.ELSEWHERE),  # 70 of 100: IoG is 0.7 and not above
        ((20, 20, 29, 29), Outcome.ELSEWHERE),  # beside it
    ],
)
def test_size_and_place_of_a_wrong_box(box: tuple[int, int, int, int], expected: Outcome) -> None:
    assert judge(box) is expected


@pytest.mark.parametrize(
    ("right_end", "expected"),
    [
        (23, Outcome.SEVERAL),  # 4 of the second object's 10 columns
        (22, Outcome.TOO_LARGE),  # 3 of 10: IoG is 0.3 and not above
    ],
)
def test_a_box_over_two_objects(right_end: int, expected: Outcome) -> None:
    gt_boxes = np.array([[0, 0, 9, 9], [20, 0, 29, 9]], np.float32)
    assert judge((0, 0, right_end, 9), gt_boxes) is expected


def test_the_nearest_of_several_objects_counts() -> None:
    gt_boxes = np.array([[100, 100, 199, 199], [0, 0, 9, 9]], np.float32)
    assert judge((2, 2, 4, 4), gt_boxes) is Outcome.TOO_SMALL
    assert judge((-20, -20, 29, 29), gt_boxes) is Outcome.TOO_LARGE


def test_an_image_without_boxes_has_no_outcome() -> None:
    with pytest.raises(ValueError, match="ground-truth box"):
        outcome(np.zeros(4), np.zeros((0, 4), np.float32), right_class=True, right_box=False)


def test_every_failure_is_defined_in_the_order_it_is_tried() -> None:
    assert list(FAILURES) == [kind for kind in Outcome if kind is not Outcome.RIGHT]
    assert all(text for _, text in FAILURES.values())
