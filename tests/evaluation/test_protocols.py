"""The paper's protocol: maps to gray levels, gray levels to boxes, boxes to verdicts."""

import numpy as np
import pytest
import torch

from i2c_fast.evaluation import PaperProtocol
from i2c_fast.evaluation.boxes import EMPTY_BOX

PROTOCOL = PaperProtocol()


def raw(*rows: list[float]) -> np.ndarray:
    return np.array(rows, np.float32)


def hits(box: list[int], *gt_boxes: list[float]) -> bool:
    return bool(PROTOCOL.hits(np.array([box], np.int32), np.array(gt_boxes, np.float32).reshape(-1, 4))[0])


@pytest.mark.parametrize(
    "values",
    [[3, 3, 3, 3], [0, 0, 0, 0], [0, np.nan, 1, 2], [0, np.inf, 1, 2], [0, -np.inf, 1, 2], [np.inf] * 4, [np.nan] * 4,
     [3e38, -3e38, 0, 0]],
)  # fmt: skip
def test_map_without_a_usable_range_is_all_zeros_and_has_no_box(values: list[float]) -> None:
    gray = PROTOCOL.gray_map(raw(values[:2], values[2:]), 7, 5)
    assert (gray.shape, gray.dtype) == ((5, 7), np.uint8)
    assert not gray.any()
    assert (PROTOCOL.boxes(gray) == EMPTY_BOX).all()


def test_gray_spans_all_levels_and_truncates() -> None:
    # (value + 1) / 4 · 255 = 0, 63.75, 127.5, 191.25, 255
    assert PROTOCOL.gray_map(raw([-1, 0, 1], [2, 3, 3]), 3, 2).tolist() == [[0, 63, 127], [191, 255, 255]]


def test_gray_does_not_depend_on_scale_and_shift() -> None:
    values = np.random.default_rng(0).integers(-50, 50, (8, 8)).astype(np.float32)
    np.testing.assert_array_equal(PROTOCOL.gray_map(values, 8, 8), PROTOCOL.gray_map(values * 1024 - 4096, 8, 8))


def test_gray_leaves_its_input_alone() -> None:
    values = raw([1, 2], [3, 4])
    PROTOCOL.gray_map(values, 4, 4)
    assert values.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("width", "height"), [(50, 37), (37, 50), (500, 375), (28, 28), (9, 300), (14, 14), (5, 3), (1, 1)]
)
def test_gray_is_resized_as_torch_does_bilinearly(width: int, height: int) -> None:
    values = np.random.default_rng(1).normal(size=(28, 28)).astype(np.float32)
    scaled = torch.from_numpy((values - values.min()) / np.ptp(values))[None, None]
    resized = torch.nn.functional.interpolate(scaled, (height, width), mode="bilinear", align_corners=False)
    gray = PROTOCOL.gray_map(values, width, height)
    assert gray.shape == (height, width)
    # Truncated: below the exact value, by less than one level and rounding.
    below = 255 * resized[0, 0].numpy() - gray
    assert below.min() > -0.02 and below.max() < 1.02


def test_width_and_height_are_not_mixed_up() -> None:
    # Left half hot: over 60 columns, 1 − (x + .5)/30 + .5 ≥ 128/255 up to column 29.
    gray = PROTOCOL.gray_map(raw([1, 0]), 60, 20)
    assert PROTOCOL.box_at(gray, 127).tolist() == [0, 0, 29, 19]


@pytest.mark.parametrize(
    ("step", "count", "last"), [(1, 255, 254), (2, 128, 254), (10, 26, 250), (100, 3, 200), (255, 1, 0)]
)
def test_grid_of_thresholds(step: int, count: int, last: int) -> None:
    thresholds = PaperProtocol(threshold_step=step).thresholds
    assert (len(thresholds), thresholds[0], thresholds[-1]) == (count, 0, last)


def test_one_box_is_that_of_the_grid() -> None:
    gray = np.random.default_rng(2).integers(0, 256, (12, 9)).astype(np.uint8)
    grid = PROTOCOL.boxes(gray)
    assert grid.shape == (255, 4)
    for threshold in (0, 1, 100, 254):
        np.testing.assert_array_equal(PROTOCOL.box_at(gray, threshold), grid[threshold])
    np.testing.assert_array_equal(PaperProtocol(threshold_step=100).boxes(gray), grid[::100])


def test_maximum_of_the_map_is_above_every_threshold() -> None:
    gray = PROTOCOL.gray_map(raw([0, 0, 0], [0, 5, 0]), 3, 2)
    assert PROTOCOL.boxes(gray).tolist() == [[1, 1, 1, 1]] * 255


def test_overlap_of_exactly_one_half_is_not_right() -> None:
    assert not hits([0, 0, 9, 9], [0, 0, 9, 4])
    assert hits([0, 0, 9, 9], [0, 0, 9, 5])


def test_any_true_box_makes_a_box_right() -> None:
    far = [50, 50, 60, 60]
    assert hits([0, 0, 9, 9], far, [0, 0, 9, 8])
    assert not hits([0, 0, 9, 9], far, far)
    # Two halves are no whole: boxes are judged one by one.
    assert not hits([0, 0, 9, 9], [0, 0, 9, 4], [0, 5, 9, 9])


def test_no_box_is_never_right() -> None:
    assert not hits(list(EMPTY_BOX), [0, 0, 0, 0])
    assert not hits([0, 0, 9, 9])


def test_each_box_gets_its_own_verdict() -> None:
    boxes = np.array([[0, 0, 9, 9], EMPTY_BOX, [0, 0, 9, 8], [5, 5, 20, 20]], np.int32)
    assert PROTOCOL.hits(boxes, np.array([[0, 0, 9, 9]], np.float32)).tolist() == [True, False, True, False]


def test_protocol_is_named() -> None:
    assert PROTOCOL.name == "paper"
