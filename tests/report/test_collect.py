"""What is kept of a scored run agrees with its scores, in both protocols, and stays small."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from i2c_fast.evaluation import FAILURES, Outcome, PaperProtocol, WsolEvaluationProtocol
from i2c_fast.evaluation.boxes import highest_overlaps
from i2c_fast.report.collect import Collector, RunFacts, collect
from i2c_fast.report.galleries import OF_A_RUN, common_galleries, run_galleries
from i2c_fast.report.runs import open_runs

from .small_run import write_run

QUIET = Console(quiet=True)
PROTOCOLS = ("paper", "wsolevaluation")


@pytest.fixture(scope="module")
def run(tiny_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run", tiny_set, "i2c.threshold=0.6")


def scored(run: Path, *overrides: str) -> RunFacts:
    (opened,) = open_runs([run], overrides, QUIET)
    return collect(opened, QUIET, overrides)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_image_is_judged_as_it_was_scored(run: Path, protocol: str) -> None:
    facts = scored(run, f"eval.protocol={protocol}")
    assert facts.threshold == facts.summary["gt_known"]["threshold"]
    best = facts.scores.thresholds.tolist().index(facts.threshold)
    limit = facts.iou > 0.5 if protocol == "paper" else facts.iou >= 0.5
    np.testing.assert_array_equal(limit, facts.scores.hits[:, best])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_failures_add_up_to_the_error(run: Path, protocol: str) -> None:
    facts = scored(run, f"eval.protocol={protocol}")
    failures = sum(kind in FAILURES for kind in facts.outcomes)
    assert failures + facts.outcomes.count(Outcome.RIGHT) == 12
    error = facts.summary["loc_top1"]["error_at_gt_known_threshold"]
    assert 100 * failures / 12 == pytest.approx(error)


def test_predictions_are_the_model_s(run: Path) -> None:
    facts = scored(run)
    labels = facts.run.index.labels
    np.testing.assert_array_equal(facts.predicted == labels, facts.scores.ranks == 0)
    assert (facts.label_probability <= facts.probability).all() and (facts.probability <= 1).all()
    right = facts.predicted == labels
    np.testing.assert_array_equal(facts.label_probability[right], facts.probability[right])


def test_probabilities_of_ten_crops_are_not_taken_for_logits(run: Path) -> None:
    collector = Collector(np.array([0]), 0.7, are_probabilities=True)
    collector(torch.tensor([0]), torch.rand(1, 4, 4), torch.tensor([[0.9, 0.1]]))
    assert collector.probability.tolist() == pytest.approx([0.9])
    assert scored(run, "eval.ten_crop=true").probability.max() <= 1


def test_object_pixels_are_counted_on_the_raw_map_with_the_run_s_threshold(run: Path) -> None:
    facts = scored(run)
    for raw, count in zip(facts.maps, facts.seed_pixels, strict=True):
        assert (raw > raw.min() + np.float32(0.6) * (raw.max() - raw.min())).sum() == count > 0
    assert scored(run, "i2c.threshold=0.9").seed_pixels.sum() < facts.seed_pixels.sum()


def test_what_is_kept_of_an_image_is_its_raw_map_whatever_the_number_of_classes() -> None:
    images, classes = 64, 2000
    collector = Collector(np.zeros(images, np.int64), 0.7, are_probabilities=False)
    for start in range(0, images, 16):
        indices = torch.arange(start, start + 16)
        collector(indices, torch.rand(16, 14, 14, dtype=torch.float64), torch.rand(16, classes))
    owners = {id(owner): owner.nbytes for owner in (raw if raw.base is None else raw.base for raw in collector.maps)}
    rows = sum(value.nbytes for value in vars(collector).values() if isinstance(value, np.ndarray))
    assert sum(owners.values()) == images * 14 * 14 * 4
    assert rows == images * 5 * 8


def test_box_of_the_standard_protocol_is_scaled_back_to_the_stored_image() -> None:
    raw = np.zeros((224, 224), np.float32)
    raw[56:112, 28:84] = 1
    protocol, gt_boxes = WsolEvaluationProtocol(), np.array([[50, 50, 149, 99]], np.float32)
    box, framed = protocol.box_at(protocol.gray_map(raw, 400, 200), 100), protocol.to_map(gt_boxes, 400, 200)
    assert box.tolist() == [28, 56, 84, 112]  # a pixel more to the right and below
    scaled_back = [28 * 400 / 224, 50, 85 * 400 / 224 - 1, 113 * 200 / 224 - 1]
    np.testing.assert_allclose(protocol.to_image(box, 400, 200), scaled_back)
    assert highest_overlaps(box[None], framed)[0] == pytest.approx(protocol_iou(box, framed[0]))


def test_box_of_the_paper_s_protocol_is_judged_in_the_stored_image() -> None:
    raw = np.zeros((20, 40), np.float32)
    raw[5:10, 10:30] = 1
    gt_boxes = np.array([[10, 5, 29, 9], [0, 0, 1, 1]], np.float32)
    protocol = PaperProtocol()
    box = protocol.box_at(protocol.gray_map(raw, 40, 20), 100)
    assert protocol.to_image(box, 40, 20).tolist() == [10, 5, 29, 9]
    assert highest_overlaps(box[None], protocol.to_map(gt_boxes, 40, 20))[0] == 1


def protocol_iou(a: np.ndarray, b: np.ndarray) -> float:
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1) for i in (0, 1))
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


# Galleries


def test_best_and_worst_are_those_of_highest_and_lowest_iou(run: Path) -> None:
    facts = scored(run)
    known = replace(facts, iou=np.linspace(0, 1, 12), scores=replace(facts.scores, ranks=np.zeros(12, np.int64)))
    best, worst, *_ = run_galleries(known, 0)
    assert [views[0].iou for views in best.images] == sorted(known.iou, reverse=True)[:OF_A_RUN]
    assert [views[0].iou for views in worst.images] == sorted(known.iou)[:OF_A_RUN]


def test_each_kind_of_failure_has_its_gallery(run: Path) -> None:
    facts = scored(run)
    kinds = [*FAILURES, Outcome.RIGHT]
    galleries = run_galleries(replace(facts, outcomes=[kinds[i % 6] for i in range(12)]), 0)[2:]
    assert [gallery.title.lower() for gallery in galleries] == [kind.value for kind in FAILURES]
    for gallery, kind in zip(galleries, FAILURES, strict=True):
        assert [views[0].outcome for views in gallery.images] == [kind.value] * 2


def test_runs_are_shown_side_by_side_where_they_differ_most(run: Path) -> None:
    facts = scored(run)
    other = replace(facts, iou=facts.iou.copy())
    other.iou[7] = facts.iou[7] + 5
    random, different = common_galleries([facts, other])
    assert all([view.run for view in views] == [0, 1] for views in random.images + different.images)
    assert len(random.images) == 12
    assert [views[0].path for views in different.images] == [facts.run.index.paths[7]]


def test_an_image_that_is_gone_is_left_out_with_a_note(run: Path, tmp_path: Path) -> None:
    facts = scored(run)
    gone = replace(facts.run.index, root=tmp_path)
    (gallery,) = common_galleries([replace(facts, run=replace(facts.run, index=gone))])
    assert not gallery.images and len(gallery.left_out) == 12
    assert facts.run.index.paths[0] in gallery.left_out[0]
