"""Errors that follow from verdicts, by hand, and paired differences."""

import json
from dataclasses import replace

import numpy as np
import pytest

from i2c_fast.evaluation import LOCALIZATION_METRICS, Scores, headline, paired_difference, paired_differences

THRESHOLDS = [0, 50, 100, 150]

# Four images with boxes and one without, at four thresholds.
HITS = [
    [1, 1, 0, 0],
    [0, 1, 1, 0],
    [0, 1, 1, 1],
    [0, 0, 1, 0],
    [0, 0, 0, 0],  # no box
]
BOXED = [True, True, True, True, False]
RANKS = [0, 2, 0, 7, 0]


def scores(
    hits: list[list[int]] | np.ndarray = HITS, ranks: list[int] | np.ndarray = RANKS, boxed: list[bool] | None = None
) -> Scores:
    verdicts = np.array(hits, bool)
    thresholds = np.array(THRESHOLDS[: verdicts.shape[1]])
    has_box = np.ones(len(verdicts), bool) if boxed is None else np.array(boxed)
    return Scores("paper", thresholds, np.array(ranks), has_box, verdicts)


def hand_made() -> Scores:
    return scores(boxed=BOXED)


def random_scores(seed: int, fraction: float, images: int = 60) -> Scores:
    rng = np.random.default_rng(seed)
    return scores(rng.random((images, 4)) < fraction, rng.integers(0, 8, images))


def test_classification_errors_count_all_images() -> None:
    assert hand_made().classification_error(1) == pytest.approx(40)
    assert hand_made().classification_error(5) == pytest.approx(20)
    assert hand_made().classification_error(8) == 0


@pytest.mark.parametrize(
    ("metric", "errors"),
    [
        ("gt_known", [75, 25, 25, 75]),  # 1, 3, 3, 1 of the four boxed images are right
        ("loc_top1", [75, 50, 75, 75]),  # images 0 and 2
        ("loc_top5", [75, 25, 50, 75]),  # images 0, 1 and 2
    ],
)
def test_localization_errors_count_images_with_boxes(metric: str, errors: list[float]) -> None:
    np.testing.assert_allclose(hand_made().localization_errors(metric), errors)


def test_verdicts_of_a_metric_need_box_and_class() -> None:
    right = hand_made().right("loc_top1")
    assert right.shape == (4, 4)
    assert right.astype(int).tolist() == [HITS[0], [0] * 4, HITS[2], [0] * 4]


def test_fifth_prediction_is_among_the_first_five_and_sixth_is_not() -> None:
    found = scores([[1]] * 4, [0, 1, 4, 5])
    assert found.localization_errors("loc_top5").tolist() == [25]
    assert found.localization_errors("loc_top1").tolist() == [75]
    assert found.classification_error(5) == 25


@pytest.mark.parametrize(
    ("rights", "best"),
    [
        ([0, 1, 0, 0], 50),
        ([0, 0, 0, 1], 150),
        ([1, 1, 1, 1], 50),  # of an even number of equals, the lower middle one
        ([0, 1, 1, 1], 100),
        ([0, 0, 1, 1], 100),
        ([0, 0, 0, 0], 50),
        ([1, 0, 1, 1], 100),
    ],
)
def test_best_threshold_is_the_middle_of_the_best(rights: list[int], best: int) -> None:
    assert scores([rights], [0]).best_threshold("gt_known") == best


def test_summary_by_hand() -> None:
    assert hand_made().summary() == {
        "protocol": "paper",
        "images": 5,
        "images_with_boxes": 4,
        "cls_top1": pytest.approx(40),
        "cls_top5": pytest.approx(20),
        "gt_known": {"error": 25, "threshold": 50, "error_at_gt_known_threshold": 25},
        "loc_top1": {"error": 50, "threshold": 50, "error_at_gt_known_threshold": 50},
        "loc_top5": {"error": 25, "threshold": 50, "error_at_gt_known_threshold": 25},
    }


def unranked(found: Scores) -> Scores:
    return replace(found, ranks=None)


def test_without_ranks_only_gt_known_is_given() -> None:
    whole, found = hand_made().summary(), unranked(hand_made()).summary()
    assert found == {name: whole[name] for name in ("protocol", "images", "images_with_boxes", "gt_known")}
    assert headline(found) == "error %: gt-known 25.00"
    for call in (
        lambda: unranked(hand_made()).classification_error(1),
        lambda: unranked(hand_made()).right("loc_top1"),
    ):
        with pytest.raises(ValueError, match="know no predictions"):
            call()


def test_without_ranks_differences_are_of_gt_known_alone() -> None:
    first, second = random_scores(0, 0.5), random_scores(1, 0.7)
    whole = paired_differences(first, second)
    assert set(whole) == {"cls_top1", "loc_top1", "gt_known"}
    assert paired_differences(unranked(first), second) == {"gt_known": whole["gt_known"]}


def test_shards_with_and_without_ranks_do_not_mix() -> None:
    merged = Scores.merge([unranked(hand_made()), unranked(hand_made())])
    assert merged.ranks is None and len(merged.hits) == 10
    with pytest.raises(ValueError, match="know the ranks of their labels, others do not"):
        Scores.merge([hand_made(), unranked(hand_made())])


def test_differences_at_thresholds_of_another_split() -> None:
    first, second = scores([[1, 0], [1, 0]], [0, 0]), scores([[0, 1], [0, 1]], [0, 0])
    assert paired_difference(first, second, "gt_known")["difference"] == 0
    thresholds_from = scores([[0, 1]], [0]), scores([[0, 1]], [0])
    found = paired_difference(first, second, "gt_known", thresholds_from=thresholds_from)
    assert found == {"difference": -100, "interval_95": [-100, -100]}
    assert paired_differences(first, second, thresholds_from)["gt_known"] == found


def test_each_metric_has_its_own_best_threshold_and_gt_knowns() -> None:
    found = scores([[0, 1], [0, 1], [1, 0]], [3, 9, 0]).summary()
    assert found["gt_known"] == {
        "error": pytest.approx(100 / 3), "threshold": 50, "error_at_gt_known_threshold": pytest.approx(100 / 3)
    }  # fmt: skip
    assert found["loc_top1"] == {
        "error": pytest.approx(200 / 3), "threshold": 0, "error_at_gt_known_threshold": 100
    }  # fmt: skip


def test_summary_is_plain_json() -> None:
    assert json.loads(json.dumps(hand_made().summary())) == hand_made().summary()


def test_split_without_boxes_has_classification_errors_alone() -> None:
    found = scores(np.zeros((3, 2)), [0, 1, 9], boxed=[False] * 3).summary()
    assert not LOCALIZATION_METRICS.keys() & found.keys()
    assert (found["images"], found["images_with_boxes"]) == (3, 0)
    assert (found["cls_top1"], found["cls_top5"]) == (pytest.approx(200 / 3), pytest.approx(100 / 3))


def test_with_fewer_than_five_classes_top_five_is_gt_known() -> None:
    found = scores([[1, 0], [0, 1], [1, 1]], [2, 1, 0]).summary()
    assert found["cls_top5"] == 0
    assert found["loc_top5"] == found["gt_known"]


def test_errors_are_ordered_as_the_metrics_nest() -> None:
    found = random_scores(0, 0.6).summary()
    assert found["gt_known"]["error"] <= found["loc_top5"]["error"] <= found["loc_top1"]["error"]
    for metric in LOCALIZATION_METRICS:
        assert found[metric]["error"] <= found[metric]["error_at_gt_known_threshold"]


# Paired differences


@pytest.mark.parametrize("metric", [*LOCALIZATION_METRICS, "cls_top1"])
def test_difference_is_the_second_error_minus_the_first(metric: str) -> None:
    good, bad = scores([[1]] * 8, [0] * 8), scores([[0]] * 8, [9] * 8)
    assert paired_difference(good, bad, metric) == {"difference": 100, "interval_95": [100, 100]}
    assert paired_difference(bad, good, metric) == {"difference": -100, "interval_95": [-100, -100]}


@pytest.mark.parametrize("metric", [*LOCALIZATION_METRICS, "cls_top1"])
def test_equal_scores_differ_by_nothing(metric: str) -> None:
    found = random_scores(1, 0.5)
    assert paired_difference(found, found, metric) == {"difference": 0, "interval_95": [0, 0]}


@pytest.mark.parametrize("metric", [*LOCALIZATION_METRICS, "cls_top1"])
def test_difference_is_that_of_the_summaries_and_lies_in_its_interval(metric: str) -> None:
    first, second = random_scores(2, 0.4), random_scores(3, 0.7)
    found = paired_difference(first, second, metric)
    one, other = first.summary()[metric], second.summary()[metric]
    expected = other - one if metric == "cls_top1" else other["error"] - one["error"]
    assert found["difference"] == pytest.approx(expected)
    low, high = found["interval_95"]
    assert low < found["difference"] < high


def test_difference_is_reproducible() -> None:
    first, second = random_scores(4, 0.4), random_scores(5, 0.6)
    assert paired_difference(first, second, "gt_known") == paired_difference(first, second, "gt_known")
    other = paired_difference(first, second, "gt_known", seed=1)
    assert other["difference"] == paired_difference(first, second, "gt_known")["difference"]


def test_interval_is_about_as_wide_as_the_binomial_one() -> None:
    # One side always wrong, the other right on half of 100 images: standard error 5 %, so ±9.8.
    half, never = scores([[1], [0]] * 50, [0] * 100), scores([[0]] * 100, [0] * 100)
    low, high = paired_difference(never, half, "gt_known")["interval_95"]
    assert low == pytest.approx(-59.8, abs=1.5)
    assert high == pytest.approx(-40.2, abs=1.5)


def test_pairing_narrows_the_interval() -> None:
    # Two models that fail on the same images differ by one image, surely.
    rights = [[1], [0]] * 50
    better = [[1], [1], *rights[2:]]
    low, high = paired_difference(scores(rights, [0] * 100), scores(better, [0] * 100), "gt_known")["interval_95"]
    assert -4 <= low <= -1 and high == 0


def test_images_without_boxes_do_not_count_in_localization_differences() -> None:
    boxed = [True] * 4 + [False] * 4
    first = scores([[1]] * 4 + [[0]] * 4, [0] * 8, boxed)
    second = scores([[0]] * 8, [0] * 8, boxed)
    assert paired_difference(first, second, "gt_known")["difference"] == 100


def test_scores_of_different_images_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="60 and 50 images"):
        paired_difference(random_scores(0, 0.5), random_scores(0, 0.5, images=50), "gt_known")


# Over several training seeds


def test_difference_over_seeds_is_the_mean_of_each_seed_s() -> None:
    first, second = ([random_scores(seed + side, 0.5) for seed in (0, 2, 4)] for side in (10, 11))
    single = [paired_difference(a, b, "gt_known")["difference"] for a, b in zip(first, second, strict=True)]
    assert paired_difference(first, second, "gt_known")["difference"] == pytest.approx(np.mean(single))


def test_seeds_that_disagree_widen_the_interval() -> None:
    # Each seed is sure of its own difference, +100 or −100; which of them a resample draws is not.
    good, bad = scores([[1]] * 8, [0] * 8), scores([[0]] * 8, [0] * 8)
    found = paired_difference([good, bad], [bad, good], "gt_known")
    assert found == {"difference": 0, "interval_95": [-100, 100]}
    assert paired_difference([good, good], [bad, bad], "gt_known")["interval_95"] == [100, 100]


def test_lists_of_different_seeds_cannot_be_paired() -> None:
    one = random_scores(0, 0.5)
    with pytest.raises(ValueError, match="2 and 1 seeds"):
        paired_difference([one, one], [one], "gt_known")


def test_max_box_acc_v2_s_difference_is_that_of_the_summaries() -> None:
    first, second = (
        replace(
            random_scores(seed, 0.5), protocol="wsolevaluation",
            contour_hits=np.random.default_rng(seed).random((60, 3, 4)) < 0.5,
        )
        for seed in (0, 1)
    )  # fmt: skip
    accuracies = [one.summary()["max_box_acc_v2"]["accuracy"] for one in (first, second)]
    found = paired_difference(first, second, "max_box_acc_v2")
    assert found["difference"] == pytest.approx(accuracies[0] - accuracies[1])
    with pytest.raises(ValueError, match="'paper' has no MaxBoxAccV2"):
        paired_difference(random_scores(0, 0.5), random_scores(1, 0.5), "max_box_acc_v2")
