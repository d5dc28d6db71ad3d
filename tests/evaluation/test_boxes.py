"""Boxes of the largest region, against a flood fill of our own, and overlaps by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from i2c_fast.evaluation import intersection_over_union, largest_region_boxes
from i2c_fast.evaluation.boxes import EMPTY_BOX, highest_overlaps

ALL = np.arange(255)
Box = tuple[int, int, int, int]


def flood_fill_box(mask: np.ndarray) -> Box:
    """Box of the largest 8-connected region; of equally large ones, that whose first pixel comes first."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    best: list[tuple[int, int]] = []
    for start in sorted(left):
        if start not in left:
            continue
        left.remove(start)
        region, edge = [start], [start]
        while edge:
            y, x = edge.pop()
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            region += near
            edge += near
        if len(region) > len(best):
            best = region
    if not best:
        return EMPTY_BOX
    ys, xs = zip(*best, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def flood_fill_boxes(gray: np.ndarray, thresholds: np.ndarray) -> list[Box]:
    boxes: dict[bytes, Box] = {}  # masks repeat between two values of the map
    masks = [gray > threshold for threshold in thresholds]
    for mask in masks:
        if mask.tobytes() not in boxes:
            boxes[mask.tobytes()] = flood_fill_box(mask)
    return [boxes[mask.tobytes()] for mask in masks]


def boxes_at(mask: list[str]) -> list[int]:
    """Box of a drawing in which # is above the threshold."""
    gray = np.array([[255 * (c == "#") for c in row] for row in mask], np.uint8)
    return largest_region_boxes(gray, np.array([0]))[0].tolist()


def smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    ys, xs = np.mgrid[:height, :width]
    waves = sum(np.sin(rng.uniform(0, 1.2) * xs + rng.uniform(0, 1.2) * ys + rng.uniform(0, 6)) for _ in range(4))
    return ((waves - waves.min()) / np.ptp(waves) * 255).astype(np.uint8)


def ring_map() -> np.ndarray:
    ys, xs = np.mgrid[:15, :15]
    return (np.abs(np.hypot(ys - 7, xs - 7) - 5) * 40).clip(0, 255).astype(np.uint8)


MAPS = {
    "noise": np.random.default_rng(0).integers(0, 256, (13, 17), np.uint8),
    "few levels": np.random.default_rng(1).integers(0, 4, (16, 16), np.uint8) * 80,
    "smooth": smooth(np.random.default_rng(2), 24, 24),
    "wide": smooth(np.random.default_rng(3), 5, 40),
    "tall": smooth(np.random.default_rng(4), 40, 5),
    "checkerboard": (np.indices((9, 8)).sum(0) % 2 * 200).astype(np.uint8),
    "stripes": (np.indices((9, 8))[1] % 2 * 200).astype(np.uint8),
    "diagonal": np.eye(11, dtype=np.uint8) * 200,
    "plateaus": np.kron(np.array([[0, 90, 0], [254, 90, 255], [255, 0, 254]], np.uint8), np.ones((4, 3), np.uint8)),
    "ring": ring_map(),
    "constant": np.full((6, 7), 100, np.uint8),
    "zeros": np.zeros((6, 7), np.uint8),
    "full": np.full((6, 7), 255, np.uint8),
    "one pixel": np.full((1, 1), 3, np.uint8),
    "one row": np.random.default_rng(5).integers(0, 256, (1, 30), np.uint8),
    "one column": np.random.default_rng(6).integers(0, 256, (30, 1), np.uint8),
}


@pytest.mark.parametrize("name", MAPS)
def test_boxes_equal_a_flood_fill_at_all_thresholds(name: str) -> None:
    boxes = largest_region_boxes(MAPS[name], ALL)
    assert (boxes.shape, boxes.dtype) == ((255, 4), np.int32)
    np.testing.assert_array_equal(boxes, flood_fill_boxes(MAPS[name], ALL))


@settings(max_examples=500)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12), st.floats(0.05, 0.6))
def test_boxes_equal_a_flood_fill_on_scattered_pixels(seed: int, height: int, width: int, fraction: float) -> None:
    # Many regions of equal size: the rule for ties decides.
    mask = np.random.default_rng(seed).random((height, width)) < fraction
    found = largest_region_boxes(mask.astype(np.uint8), np.array([0]))[0]
    assert tuple(found.tolist()) == flood_fill_box(mask)


def test_region_is_strictly_above_the_threshold() -> None:
    gray = np.array([[7, 8]], np.uint8)
    assert largest_region_boxes(gray, np.array([6, 7, 8])).tolist() == [[0, 0, 1, 0], [1, 0, 1, 0], list(EMPTY_BOX)]


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    assert boxes_at(["#....", ".#...", "..#.."]) == [0, 0, 2, 2]
    assert boxes_at(["..#", ".#.", "#.."]) == [0, 0, 2, 2]


def test_largest_region_is_that_of_most_pixels_not_of_the_largest_box() -> None:
    assert boxes_at(["#.......", ".#...###", "..#..###", "...#...."]) == [5, 1, 7, 2]


def test_holes_stay_within_their_region() -> None:
    assert boxes_at([".....", ".###.", ".#.#.", ".###."]) == [1, 1, 3, 3]


def test_of_equally_large_regions_the_first_in_row_major_order_counts() -> None:
    # The right one's first pixel is in row 0, the left one's in row 1.
    assert boxes_at(["....##", "##....", "......"]) == [4, 0, 5, 0]
    assert boxes_at(["#...#", "....."]) == [0, 0, 0, 0]


def test_box_of_everything_and_of_nothing() -> None:
    assert boxes_at(["##", "##", "##"]) == [0, 0, 1, 2]
    assert boxes_at(["..", ".."]) == list(EMPTY_BOX)


def test_thresholds_may_come_in_any_order_and_number() -> None:
    gray = MAPS["smooth"]
    order = np.array([200, 3, 3, 90])
    np.testing.assert_array_equal(largest_region_boxes(gray, order), largest_region_boxes(gray, ALL)[order])
    assert largest_region_boxes(gray, np.arange(0)).shape == (0, 4)


def overlap(box: tuple[float, ...], gt_boxes: tuple[float, ...]) -> float:
    return float(intersection_over_union(np.array([box]), np.array([gt_boxes], np.float32))[0, 0])


@pytest.mark.parametrize(
    ("box", "gt_boxes", "expected"),
    [
        ((0, 0, 9, 9), (0, 0, 9, 9), 1),
        ((3, 4, 3, 4), (3, 4, 3, 4), 1),  # one pixel has area 1, not 0
        ((0, 0, 9, 9), (5, 0, 14, 9), 50 / 150),
        ((0, 0, 9, 9), (0, 0, 9, 4), 50 / 100),
        ((0, 0, 9, 9), (2, 3, 4, 6), 12 / 100),
        ((0, 0, 3, 3), (3, 3, 6, 6), 1 / 31),  # inclusive bounds share their last pixel
        ((0, 0, 4, 4), (5, 0, 9, 4), 0),  # neighbors share none
        ((0, 0, 4, 4), (20, 30, 40, 50), 0),
        ((0, 0, 1, 0), (0.5, 0, 1.5, 0), 1.5 / 2.5),  # ground-truth boxes may lie between pixels
    ],
)
def test_overlap_by_hand(box: Box, gt_boxes: tuple[float, ...], expected: float) -> None:
    assert overlap(box, gt_boxes) == pytest.approx(expected)
    assert overlap(gt_boxes, box) == pytest.approx(expected)


def test_empty_box_overlaps_nothing() -> None:
    for gt_boxes in ((0, 0, 9, 9), (0, 0, 0, 0), (-5, -5, 3, 3), (4, 4, 8, 8)):
        assert overlap(EMPTY_BOX, gt_boxes) == 0


def test_every_box_is_held_against_every_gt_box() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, 3, 3], EMPTY_BOX], np.int32)
    gt_boxes = np.array([[0, 0, 1, 1], [0, 0, 3, 1]], np.float32)
    np.testing.assert_allclose(intersection_over_union(boxes, gt_boxes), [[1, 0.5], [0.25, 0.5], [0, 0]])
    assert intersection_over_union(boxes, gt_boxes[:0]).shape == (3, 0)


def numpy_iou(boxes: np.ndarray, gt_boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair, [T, B], in NumPy alone."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = boxes.T.astype(float)[..., None], gt_boxes.T.astype(float)[:, None]
    width = (np.minimum(ax1, bx1) - np.maximum(ax0, bx0) + 1).clip(min=0)
    height = (np.minimum(ay1, by1) - np.maximum(ay0, by0) + 1).clip(min=0)
    areas = (ax1 - ax0 + 1) * (ay1 - ay0 + 1) + (bx1 - bx0 + 1) * (by1 - by0 + 1)
    return width * height / np.maximum(areas - width * height, 1e-300)


def test_overlaps_are_those_of_numpy_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(-3, 30, (500, 2, 2)), axis=1).reshape(-1, 4)
    boxes = np.concatenate([corners, [EMPTY_BOX]]).astype(np.int32)
    gt_boxes = np.sort(rng.uniform(-3, 30, (7, 2, 2)), axis=1).reshape(-1, 4).astype(np.float32)
    for known in (gt_boxes, gt_boxes[:1], gt_boxes.astype(np.float64)):
        for found in (boxes, boxes.astype(np.int64)[::-1], boxes / 2):
            expected = numpy_iou(found, known)
            assert (expected > 0).any() and (expected == 0).any()
            np.testing.assert_array_equal(intersection_over_union(found, known), expected)
            np.testing.assert_array_equal(highest_overlaps(found, known), expected.max(1))
    assert not highest_overlaps(boxes, gt_boxes[:0]).any()


@pytest.mark.parametrize("box", [[5, 0, 3, 9], [0, 9, 9, 5], [0, np.nan, 9, 9], [0, 0, np.inf, 9]])
def test_a_box_that_cannot_be_meant_is_named(box: list[float]) -> None:
    good, bad = np.array([[0, 0, 9, 9]], float), np.array([[0, 0, 9, 9], box], float)
    with pytest.raises(ValueError, match=r"^boxes\[1\] is .*; expected x0 ≤ x1 and y0 ≤ y1"):
        intersection_over_union(bad, good)
    with pytest.raises(ValueError, match=r"^gt_boxes\[1\] is "):
        intersection_over_union(good, bad)
