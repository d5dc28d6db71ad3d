"""The standard protocol, against the evaluator's own way: threshold by threshold, contour by contour."""

import numpy as np
import pytest
import torch

from i2c_fast.evaluation import CONTOUR_IOUS, LocalizationMetric, WsolEvaluationProtocol, find_contours
from i2c_fast.evaluation.boxes import intersection_over_union

from .maps import cam
from .opencv_loops import BoxEvaluator, best_overlap, contours_of, normalized, scaled_box, tight_box

PROTOCOL = WsolEvaluationProtocol()

Case = tuple[np.ndarray, tuple[int, int], list[list[float]]]  # raw map, size, ground-truth boxes


def boxes_near(rng: np.random.Generator, raw: np.ndarray, size: tuple[int, int]) -> list[list[float]]:
    """One to three boxes near contours of the map at some level, so that some thresholds are right."""
    gray, scale = (normalized(raw) * 255).astype(np.uint8), np.array([*size, *size]) / 224
    found = []
    for level in rng.integers(40, 220, rng.integers(1, 4)):
        contours = contours_of(gray > level)
        x0, y0, x1, y1 = tight_box(contours[rng.integers(len(contours))]) if contours else (20, 20, 99, 99)
        moved = np.array([x0, y0, x1, y1]) + rng.normal(0, 0.08, 4) * [x1 - x0, y1 - y0, x1 - x0, y1 - y0]
        x0, y0, x1, y1 = (moved.clip(0, 223) * scale).astype(int).tolist()
        found.append([float(v) for v in (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))])
    return found


def cases() -> list[Case]:
    rng = np.random.default_rng(0)
    raws = [cam(i, cells=28, side=28, sigma=1.5).astype(np.float32) for i in range(8)]
    raws += [cam(i, cells=14, side=14, sigma=1.0).astype(np.float32) for i in range(8)]
    raws += [rng.normal(size=(28, 28)).astype(np.float32), rng.random((7, 9)), cam(0, side=300), cam(1, side=224)]
    raws += [np.zeros((28, 28), np.float32), np.full((14, 14), 7.0), np.full((14, 14), np.nan, np.float32)]
    sizes = [(int(w), int(h)) for w, h in rng.integers(60, 700, (len(raws), 2))]
    return [(raw, size, boxes_near(rng, raw, size)) for raw, size in zip(raws, sizes, strict=True)]


@pytest.mark.parametrize("interval", [0.001, 0.01, 0.07])
def test_counts_of_both_box_metrics_equal_the_evaluators_at_every_threshold(interval: float) -> None:
    chosen = cases() if interval == 0.001 else cases()[::3]
    theirs, ours = BoxEvaluator(interval), WsolEvaluationProtocol(interval)
    right, right_v2 = np.zeros(len(theirs.fractions), int), np.zeros((3, len(theirs.fractions)), int)
    for raw, size, boxes in chosen:
        theirs.add(raw, size, boxes)
        verdict = ours.verdict(raw, *size, np.array(boxes, np.float32))
        assert verdict.contours is not None
        right += ours.expand(verdict.box)
        right_v2 += ours.expand(verdict.contours)
    np.testing.assert_array_equal(right, theirs.right)
    np.testing.assert_array_equal(right_v2, list(theirs.right_v2.values()))
    assert 0 < right.max() < len(chosen) and 0 < right_v2[2].max() < right_v2[0].max()


def test_reported_accuracies_equal_the_evaluators_to_the_last_bit() -> None:
    theirs, metric = BoxEvaluator(0.01), LocalizationMetric(WsolEvaluationProtocol(0.01), threads=2, check=False)
    for raw, size, boxes in cases()[::2]:
        theirs.add(raw, size, boxes)
        metric.update(torch.from_numpy(raw)[None], torch.zeros(1, 2), torch.zeros(1, dtype=int), [boxes], [size])
    summary = metric.compute()
    assert summary["protocol"] == "wsolevaluation"
    assert summary["max_box_acc"] == theirs.max_box_acc()
    assert summary["max_box_acc_v2"]["accuracy"] == theirs.max_box_acc_v2()
    assert summary["gt_known"]["error"] == pytest.approx(100 - theirs.max_box_acc())


def test_normalized_maps_equal_the_evaluators_in_float64() -> None:
    for raw, _, _ in cases():
        np.testing.assert_array_equal(PROTOCOL.normalize(raw), normalized(raw))


def test_a_normalized_map_of_the_right_size_stays_as_it_is() -> None:
    score = PROTOCOL.normalize(cam(0, 14, 14))
    np.testing.assert_array_equal(PROTOCOL.normalize(score), score)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_map_with_one_value_that_is_not_finite_becomes_zeros(value: float) -> None:
    raw = cam(0, 14, 14).astype(np.float32)
    raw[3, 5] = value
    assert not PROTOCOL.normalize(raw).any()


def test_map_whose_range_overflows_becomes_zeros() -> None:
    assert not PROTOCOL.normalize(np.array([[1e308, -1e308], [0, 0]])).any()


def test_gray_is_truncated_and_reaches_255() -> None:
    score = PROTOCOL.normalize(cam(0, 14, 14))
    np.testing.assert_array_equal(PROTOCOL.gray_map(score, 224, 224), np.floor(score * 255))
    assert PROTOCOL.gray_map(score, 224, 224).max() == 255


def test_grid_holds_each_level_of_the_thresholds_once() -> None:
    assert PROTOCOL.thresholds.tolist() == list(range(255))
    assert len(PROTOCOL.fractions) == 1000
    coarse = WsolEvaluationProtocol(0.25)
    assert coarse.thresholds.tolist() == [0, 63, 127, 191]
    assert coarse.expand(np.array([[True, False, True, True]])).tolist() == [[True, False, True, True]]


def test_boxes_reach_a_pixel_further_but_not_out_of_the_map() -> None:
    raw = np.zeros((224, 224))
    raw[10:21, 30:41] = 1
    boxes = PROTOCOL.boxes(find_contours(PROTOCOL.gray_map(raw, 224, 224)))
    assert boxes[0].tolist() == [30, 10, 41, 21]
    at_the_edge = np.zeros((224, 224))
    at_the_edge[200:, 223] = 1
    assert PROTOCOL.boxes(find_contours(PROTOCOL.gray_map(at_the_edge, 224, 224)))[100].tolist() == [223, 200, 223, 223]


def test_no_contour_is_the_first_pixel() -> None:
    nothing = np.zeros((28, 28))
    assert (PROTOCOL.boxes(find_contours(PROTOCOL.gray_map(nothing, 224, 224))) == 0).all()
    # Which a ground-truth box may be, too, after rounding: the evaluator then counts a hit, and so must this.
    verdict = PROTOCOL.verdict(nothing, 500, 500, np.array([[0, 0, 2, 2]], np.float32))
    assert verdict.box.all() and verdict.contours is not None and verdict.contours.all()
    elsewhere = PROTOCOL.verdict(nothing, 500, 500, np.array([[100, 0, 200, 200]], np.float32))
    assert not elsewhere.box.any() and elsewhere.contours is not None and not elsewhere.contours.any()


def test_gt_boxes_are_scaled_and_rounded_down() -> None:
    boxes = np.array([[3, 5, 499, 374], [0, 0, 1, 1], [123, 45, 321, 210]], np.float32)
    expected = [scaled_box(box, (500, 375)) for box in boxes.tolist()]
    np.testing.assert_array_equal(PROTOCOL.to_map(boxes, 500, 375), expected)


def test_overlap_of_exactly_the_limit_is_right() -> None:
    # Columns 10…19 and one more; the ground-truth box is twice as large.
    raw = np.zeros((224, 224))
    raw[10:20, 10:20] = 1
    exactly_half = np.array([[10, 10, 20, 31]], np.float32)
    assert intersection_over_union(np.array([[10, 10, 20, 20]]), exactly_half)[0, 0] == 0.5
    assert PROTOCOL.verdict(raw, 224, 224, exactly_half).box.all()
    assert not PROTOCOL.verdict(raw, 224, 224, np.array([[10, 10, 20, 32]], np.float32)).box.any()


def test_any_contour_may_be_right_for_v2_and_only_the_largest_for_v1() -> None:
    raw = np.zeros((224, 224))
    raw[10:100, 10:100] = 1
    raw[150:180, 150:180] = 1
    small = np.array([[150, 150, 180, 180]], np.float32)
    verdict = PROTOCOL.verdict(raw, 224, 224, small)
    assert verdict.contours is not None
    assert not verdict.box.any() and verdict.contours.all()
    # The hole's contour alone fits.
    raw[30:80, 30:80] = 0
    hole = np.array([[29, 29, 81, 81]], np.float32)
    verdict = PROTOCOL.verdict(raw, 224, 224, hole)
    assert verdict.contours is not None
    assert not verdict.box.any() and verdict.contours[2].all()


def test_image_without_gt_boxes_is_never_right() -> None:
    verdict = PROTOCOL.verdict(cam(0, 14, 14), 300, 200, np.zeros((0, 4), np.float32))
    assert verdict.contours is not None
    assert (verdict.box.shape, verdict.contours.shape) == ((255,), (len(CONTOUR_IOUS), 255))
    assert not verdict.box.any() and not verdict.contours.any()


def test_best_overlap_at_each_level_equals_the_loop_on_rough_maps() -> None:
    rng = np.random.default_rng(3)
    for _ in range(6):
        raw = rng.random((40, 40))
        gt_boxes = np.sort(rng.integers(0, 224, (2, 2, 2)), axis=1).reshape(2, 4).astype(np.float32)
        verdict, gray = PROTOCOL.verdict(raw, 224, 224, gt_boxes), PROTOCOL.gray_map(raw, 224, 224)
        assert verdict.contours is not None
        scaled = [scaled_box(box, (224, 224)) for box in gt_boxes.tolist()]
        for level in range(0, 255, 6):
            best = best_overlap(contours_of(gray > level), scaled)
            assert verdict.contours[:, level].tolist() == [best >= iou for iou in CONTOUR_IOUS]
