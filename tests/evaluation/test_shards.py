"""Scores of shards become one, thresholds come from another split, and MaxBoxAccV2 follows from verdicts, by hand."""

import json

import numpy as np
import pytest

from i2c_fast.evaluation import Scores, headline

LEVELS = np.array([0, 50, 100, 150])


def scores(
    hits: list[list[int]],
    ranks: list[int] | None = None,
    *,
    indices: list[int] | None = None,
    contours: list[list[list[int]]] | None = None,
    boxed: list[bool] | None = None,
    protocol: str = "paper",
) -> Scores:
    count = len(hits)
    return Scores(
        protocol,
        LEVELS[: len(hits[0])],
        np.array(ranks or [0] * count),
        np.array(boxed or [True] * count),
        np.array(hits, bool),
        None if contours is None else np.array(contours, bool),
        None if indices is None else np.array(indices),
    )


# Merging


def test_merged_images_are_in_the_order_of_the_split() -> None:
    odd = scores([[1, 0], [1, 1]], [1, 3], indices=[1, 3], boxed=[True, False])
    even = scores([[0, 0], [0, 1], [0, 0]], [4, 0, 2], indices=[4, 0, 2])
    for shards in ([odd, even], [even, odd]):
        merged = Scores.merge(shards)
        assert merged.indices is not None and merged.contour_hits is None
        assert merged.indices.tolist() == merged.ranks.tolist() == [0, 1, 2, 3, 4]
        assert merged.hits.astype(int).tolist() == [[0, 1], [1, 0], [0, 0], [1, 1], [0, 0]]
        assert merged.boxed.tolist() == [True, True, True, False, True]
        assert (merged.protocol, merged.thresholds.tolist()) == ("paper", [0, 50])


def test_an_image_in_two_shards_counts_once_if_that_is_expected() -> None:
    shards = [scores([[1, 0], [1, 1]], [1, 3], indices=[1, 2]), scores([[0, 0], [1, 0]], [4, 1], indices=[0, 1])]
    with pytest.raises(ValueError, match="image 1 was scored more than once"):
        Scores.merge(shards)
    merged = Scores.merge(shards, repeats=True)
    assert merged.indices is not None and merged.ranks is not None
    assert merged.indices.tolist() == [0, 1, 2] and merged.ranks.tolist() == [4, 1, 3]
    assert merged.hits.astype(int).tolist() == [[0, 0], [1, 0], [1, 1]]


def test_summary_of_merged_shards_is_that_of_all_images() -> None:
    rng = np.random.default_rng(0)
    hits, contours, ranks = rng.random((60, 4)) < 0.5, rng.random((60, 3, 4)) < 0.5, rng.integers(0, 8, 60)
    whole = Scores("wsolevaluation", LEVELS, ranks, rng.random(60) < 0.9, hits, contours, np.arange(60))
    shards = [
        Scores(whole.protocol, LEVELS, ranks[p], whole.boxed[p], hits[p], contours[p], np.arange(60)[p])
        for p in np.array_split(rng.permutation(60), [5, 6, 41])
    ]
    assert Scores.merge(shards).summary() == whole.summary()
    # Merging merged ones changes nothing.
    assert Scores.merge([Scores.merge(shards[2:]), Scores.merge(shards[:2])]).summary() == whole.summary()


def test_shards_that_do_not_know_indices_follow_each_other() -> None:
    merged = Scores.merge([scores([[1]], [5]), scores([[0], [1]], [1, 2])])
    assert merged.indices is None
    assert merged.ranks.tolist() == [5, 1, 2]


def test_a_shard_may_be_alone_or_empty() -> None:
    one = scores([[1, 0]], [2], indices=[7])
    empty = Scores("paper", LEVELS[:2], one.ranks[:0], one.boxed[:0], one.hits[:0], None, np.arange(0))
    for shards in ([one], [empty, one], [one, empty]):
        assert Scores.merge(shards).indices.tolist() == [7]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (scores([[1]], indices=[1], protocol="wsolevaluation"), "do not mix"),
        (scores([[1, 1]], indices=[1]), "do not mix"),
        (scores([[1]]), "some shards"),
        (scores([[1]], indices=[0]), "image 0 was scored more than once"),
    ],
)
def test_shards_that_do_not_fit_are_refused(other: Scores, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scores.merge([scores([[1]], indices=[0]), other])


# Thresholds of another split


def test_errors_at_thresholds_chosen_elsewhere() -> None:
    # Here level 100 serves best, there 50 (Gt-known) and 0 (Top-1).
    here = scores([[0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]], [0, 0, 0, 0])
    there = scores([[0, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0]], [9, 0, 9])
    found = here.summary(thresholds_from=there)
    assert found["gt_known"] == {"error": 75, "threshold": 50, "error_at_gt_known_threshold": 75}
    assert found["loc_top1"] == {"error": 75, "threshold": 0, "error_at_gt_known_threshold": 75}
    assert found["thresholds_chosen_on"] == "another split"
    own = here.summary()
    assert own["gt_known"] == {"error": 25, "threshold": 100, "error_at_gt_known_threshold": 25}
    assert "thresholds_chosen_on" not in own
    assert found["cls_top1"] == own["cls_top1"]


def test_thresholds_of_the_very_same_scores_change_nothing() -> None:
    rng = np.random.default_rng(1)
    found = Scores("paper", LEVELS, rng.integers(0, 7, 40), np.ones(40, bool), rng.random((40, 4)) < 0.6)
    honest = found.summary(thresholds_from=found)
    assert honest.pop("thresholds_chosen_on") and honest == found.summary()


def test_honest_errors_are_never_below_the_best() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        one, other = (
            Scores("paper", LEVELS, rng.integers(0, 7, n), np.ones(n, bool), rng.random((n, 4)) < 0.6) for n in (9, 14)
        )
        honest, best = one.summary(thresholds_from=other), one.summary()
        for metric in ("gt_known", "loc_top1", "loc_top5"):
            assert honest[metric]["error"] >= best[metric]["error"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (scores([[1]], protocol="wsolevaluation"), "do not mix"),
        (scores([[1, 1]]), "do not mix"),
        (scores([[0]], boxed=[False]), "no boxes"),
    ],
)
def test_thresholds_that_do_not_fit_are_refused(other: Scores, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scores([[1]]).summary(thresholds_from=other)


# MaxBoxAccV2

CONTOURS = [  # four images, the last without a box; IoU .3, .5, .7; four levels
    [[1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]],
    [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]],
    [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
    [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
]


def judged() -> Scores:
    hits = [[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    boxed = [True, True, True, False]
    return scores(hits, [0, 9, 0, 0], contours=CONTOURS, boxed=boxed, protocol="wsolevaluation")


def test_v2_is_the_mean_of_each_ious_best() -> None:
    found = judged().summary()
    third = 100 / 3
    assert found["max_box_acc"] == pytest.approx(2 * third)
    assert found["max_box_acc_v2"] == {
        "accuracy": pytest.approx((100 + 2 * third + 2 * third) / 3),
        "iou_30": {"accuracy": 100, "threshold": 0},
        "iou_50": {"accuracy": pytest.approx(2 * third), "threshold": 50},  # 50 and 100 are equal
        "iou_70": {"accuracy": pytest.approx(2 * third), "threshold": 150},
    }
    assert json.loads(json.dumps(found)) == found
    assert headline(found).endswith("accuracy %: MaxBoxAccV2 77.78")


def test_v2_at_thresholds_chosen_elsewhere() -> None:
    always_last = [[[0, 0, 0, 1]] * 3]
    there = scores([[0, 0, 1, 0]], contours=always_last, protocol="wsolevaluation")
    found = judged().summary(thresholds_from=there)
    assert found["max_box_acc"] == pytest.approx(100 / 3)  # at level 100
    v2 = found["max_box_acc_v2"]
    assert [v2[f"iou_{iou}"]["accuracy"] for iou in (30, 50, 70)] == pytest.approx([0, 0, 200 / 3])
    assert v2["accuracy"] == pytest.approx(200 / 9)


def test_protocol_without_contours_has_no_v2() -> None:
    found = scores([[1]])
    assert "max_box_acc" not in found.summary() and "max_box_acc_v2" not in found.summary()
    assert "MaxBoxAcc" not in headline(found.summary())
    with pytest.raises(ValueError, match="'paper' does not judge"):
        found.contour_accuracies()
