"""The metric for other people's loops: batch by batch, shard by shard, the same scores."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed

from i2c_fast.evaluation import (
    LocalizationMetric,
    PaperProtocol,
    PixelAveragePrecision,
    Scores,
    ScoringProtocol,
    Verdict,
    WsolEvaluationProtocol,
)
from i2c_fast.evaluation.metric import WAITING

from ..processes import start_ranks
from .maps import cam

COUNT, CLASSES = 12, 7


def data() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    maps = torch.from_numpy(np.stack([cam(i, 7, 14) for i in range(COUNT)])).float()
    corners = rng.integers(0, 50, (COUNT, 2, 2))
    boxes = [np.concatenate([c, c + rng.integers(20, 49, (2, 2))], 1).astype(np.float32) for c in corners]
    boxes[4] = boxes[4][:0]
    return {
        "maps": maps,
        "logits": torch.from_numpy(rng.normal(size=(COUNT, CLASSES))),
        "labels": torch.from_numpy(rng.integers(0, CLASSES, COUNT)),
        "gt_boxes": boxes,
        "sizes": torch.tensor([[100, 100]] * COUNT),
    }


def update(metric: LocalizationMetric, chosen: list[int], indices: bool = True) -> LocalizationMetric:
    everything = data()
    part = {
        name: [value[i] for i in chosen] if name == "gt_boxes" else value[chosen] for name, value in everything.items()
    }
    metric.update(**part, indices=torch.tensor(chosen) if indices else None)
    return metric


def fresh(protocol: ScoringProtocol | None = None) -> LocalizationMetric:
    return LocalizationMetric(protocol or WsolEvaluationProtocol(), threads=2)


def assert_equal(found: Scores, expected: Scores) -> None:
    for name in ("ranks", "boxed", "hits", "contour_hits", "indices"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        np.testing.assert_array_equal(one, other, err_msg=name)
    assert found.summary() == expected.summary()


@pytest.mark.parametrize("protocol", [PaperProtocol(), PaperProtocol(10), WsolEvaluationProtocol()])
def test_scores_are_the_protocols_verdicts(protocol: ScoringProtocol) -> None:
    found, given = update(fresh(protocol), list(range(COUNT))).scores(), data()
    assert (found.protocol, found.thresholds.tolist()) == (protocol.name, protocol.thresholds.tolist())
    assert found.boxed.tolist() == [i != 4 for i in range(COUNT)]
    for i in range(COUNT):
        verdict = protocol.verdict(given["maps"][i].numpy(), 100, 100, given["gt_boxes"][i])
        np.testing.assert_array_equal(found.hits[i], verdict.box)
        if verdict.contours is None:
            assert found.contour_hits is None
        else:
            assert found.contour_hits is not None
            np.testing.assert_array_equal(found.contour_hits[i], verdict.contours)
    assert found.hits.any() and not found.hits.all()


def test_ranks_are_positions_among_the_predictions() -> None:
    found, given = update(fresh(), list(range(COUNT))).scores(), data()
    order = given["logits"].argsort(1, descending=True).tolist()
    assert found.ranks.tolist() == [o.index(label) for o, label in zip(order, given["labels"].tolist(), strict=True)]


def test_default_protocol_is_the_papers() -> None:
    assert LocalizationMetric().protocol == PaperProtocol()


@pytest.mark.parametrize("parts", [[range(12)], [range(5), range(5, 12)], [[i] for i in range(12)]])
def test_batches_may_be_of_any_size(parts: list[range]) -> None:
    metric = fresh()
    for part in parts:
        update(metric, list(part))
    assert_equal(metric.scores(), update(fresh(), list(range(COUNT))).scores())


def test_shards_in_any_order_keep_the_order_of_images() -> None:
    whole = update(fresh(), list(range(COUNT))).scores()
    for shards in ([[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]], [[11, 2, 7, 5], [9, 8, 0], [1, 3, 4, 6, 10]]):
        first, *others = (update(fresh(), shard) for shard in shards)
        for other in reversed(others):
            first.merge_state(other)
        assert_equal(first.scores(), whole)


def test_shards_without_indices_follow_each_other() -> None:
    first = update(fresh(), [0, 1, 2, 3], indices=False)
    first.merge_state(update(fresh(), list(range(4, COUNT)), indices=False))
    assert_equal(first.scores(), update(fresh(), list(range(COUNT)), indices=False).scores())


def test_a_metric_without_images_of_its_own_takes_merged_ones() -> None:
    empty = fresh()
    empty.merge_state(update(fresh(), [3, 1]))
    assert_equal(empty.scores(), update(fresh(), [1, 3]).scores())


def test_merging_leaves_the_other_metric_alone() -> None:
    first, second = update(fresh(), [0, 1]), update(fresh(), [2, 3])
    first.merge_state(second)
    update(first, [4])
    assert second.scores().indices.tolist() == [2, 3]
    assert first.scores().indices.tolist() == [0, 1, 2, 3, 4]


def test_reset_forgets_merged_images_too() -> None:
    metric = update(fresh(), [0, 1])
    metric.merge_state(update(fresh(), [2]))
    metric.reset()
    with pytest.raises(ValueError, match="no images"):
        metric.compute()
    assert update(metric, [5]).scores().indices.tolist() == [5]


def test_compute_is_the_summary_and_may_be_called_again_and_again() -> None:
    metric = update(fresh(), [0, 1, 2])
    assert metric.compute() == metric.compute() == metric.scores().summary()
    assert metric.compute()["images"] == 3


def test_buffers_may_be_filled_anew_after_an_update() -> None:
    given, metric = data(), fresh()
    metric.update(**given)
    given["maps"].zero_()
    for boxes in given["gt_boxes"]:
        boxes[:] = 0
    np.testing.assert_array_equal(metric.scores().hits, update(fresh(), list(range(COUNT))).scores().hits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_maps_may_be_of_any_precision_and_need_gradients(dtype: torch.dtype) -> None:
    given = data()
    maps = (given["maps"] * 64).round().to(dtype).requires_grad_()  # whole numbers, equal in all
    found = fresh()
    found.update(**{**given, "maps": maps})
    expected = fresh()
    expected.update(**{**given, "maps": maps.detach().float()})
    np.testing.assert_array_equal(found.scores().hits, expected.scores().hits)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("maps", torch.rand(COUNT, 1, 14, 14)),
        ("maps", torch.rand(COUNT, 0, 14)),
        ("maps", torch.rand(COUNT - 1, 14, 14)),
        ("logits", torch.rand(COUNT - 1, CLASSES)),
        ("logits", torch.rand(COUNT)),
        ("logits", None),
        ("labels", None),
        ("labels", torch.zeros(1, dtype=int)),
        ("gt_boxes", [np.zeros((1, 4))]),
        ("sizes", [[1, 1]]),
        ("sizes", [[0, 100]] * COUNT),
        ("sizes", [[100]] * COUNT),
        ("indices", [1]),
    ],
)
def test_shapes_that_do_not_fit_are_refused_and_leave_nothing_behind(name: str, value: Any) -> None:
    metric = fresh()
    with pytest.raises(ValueError, match=r"maps|sizes|logits"):
        metric.update(**{**data(), name: value})
    with pytest.raises(ValueError, match="no images"):
        metric.compute()


def as_lists(value: Any) -> Any:
    return [part.tolist() for part in value] if isinstance(value, list) else value.tolist()


def as_arrays(value: Any) -> Any:
    return value if isinstance(value, list) else value.numpy()


@pytest.mark.parametrize("form", [as_lists, as_arrays])
def test_numpy_arrays_and_lists_are_scored_as_tensors(form: Any) -> None:
    metric = fresh()
    metric.update(**{name: form(value) for name, value in data().items()}, indices=form(torch.arange(COUNT)))
    assert_equal(metric.scores(), update(fresh(), list(range(COUNT))).scores())


def test_ranks_stand_in_for_logits() -> None:
    metric, whole = fresh(), update(fresh(), list(range(COUNT))).scores()
    assert whole.ranks is not None
    metric.update(**{**data(), "logits": None, "labels": None}, indices=range(COUNT), ranks=whole.ranks)
    assert_equal(metric.scores(), whole)
    with pytest.raises(ValueError, match="logits and labels, or ranks"):
        metric.update(**data(), ranks=whole.ranks)


@pytest.mark.parametrize(
    "box",
    [
        [40, 10, 20, 30],  # upside down
        [10, 40, 30, 20],
        [-1, 10, 20, 30],
        [10, np.nan, 20, 30],
        [10, 10, np.inf, 30],
        [60, 60, 70, 101],  # beyond the image, as a width and height that are taken for a corner may be
        [60, 10, 30, 20],  # x, y, width, height
    ],
)
def test_a_box_that_cannot_be_meant_is_named_with_its_image(box: list[float]) -> None:
    given, metric = data(), fresh()
    given["gt_boxes"][2] = np.array([[0, 0, 100, 100], box], np.float32)
    with pytest.raises(ValueError, match=r"box 1 of image 2 is .* inside its 100 × 100 pixels"):
        metric.update(**given)
    with pytest.raises(ValueError, match="box 1 of image 52 "):
        metric.update(**given, indices=range(50, 50 + COUNT))
    with pytest.raises(ValueError, match="no images"):
        metric.compute()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_map_that_is_not_finite_is_named(value: float) -> None:
    given = data()
    given["maps"][5, 3, 3] = value
    with pytest.raises(ValueError, match="the map of image 5 holds NaN or infinity"):
        fresh().update(**given)
    unchecked = LocalizationMetric(WsolEvaluationProtocol(), threads=2, check=False)
    unchecked.update(**given)
    assert not unchecked.scores().hits[5].any()


def test_indices_in_some_updates_only_are_an_error() -> None:
    metric = update(update(fresh(), [0]), [1], indices=False)
    with pytest.raises(ValueError, match="every update"):
        metric.compute()


def test_an_image_that_came_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="image 3 was scored more than once"):
        update(update(fresh(), [3, 4]), [5, 3]).compute()


def test_without_logits_only_figures_of_boxes_are_given() -> None:
    metric, whole = fresh(), update(fresh(), list(range(COUNT))).scores()
    metric.update(**{**data(), "logits": None, "labels": None})
    found = metric.scores()
    assert found.ranks is None
    np.testing.assert_array_equal(found.hits, whole.hits)
    assert metric.compute()["gt_known"] == whole.summary()["gt_known"]


def test_logits_in_some_updates_only_are_an_error() -> None:
    metric = update(fresh(), [0])
    metric.update(**{**data(), "logits": None, "labels": None}, indices=torch.arange(1, 1 + COUNT))
    with pytest.raises(ValueError, match="`logits` in every update"):
        metric.compute()


def test_updates_wait_while_too_many_maps_are_not_judged() -> None:
    class Held(PaperProtocol):
        def verdict(self, *_: Any) -> Verdict:
            go.wait(10)
            return Verdict(np.zeros(255, np.bool_))

    go, metric = threading.Event(), LocalizationMetric(Held(), threads=1)
    updates = threading.Thread(target=lambda: [metric.update(**data()) for _ in range(20)])
    updates.start()
    updates.join(0.3)
    waits, taken = updates.is_alive(), len(metric._verdicts)
    go.set()
    updates.join(10)
    assert waits and taken == WAITING
    assert metric.compute()["images"] == 20 * COUNT


def test_failure_in_a_thread_is_raised_by_compute() -> None:
    class Failing(PaperProtocol):
        def verdict(self, *_: Any) -> Verdict:
            raise ArithmeticError("no verdict today")

    with pytest.raises(ArithmeticError, match="no verdict today"):
        update(fresh(Failing()), [0, 1]).compute()


def _pixels(images: list[int]) -> tuple[torch.Tensor, list[np.ndarray]]:
    rng = [np.random.default_rng(i) for i in images]
    return torch.tensor(np.stack([r.random((9, 9)) for r in rng])), [
        r.integers(0, 2, (224, 224)).astype(np.uint8) for r in rng
    ]


def _score_rank(rank: int, parts: list[list[int]], folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(parts))
    metric = fresh()
    if parts[rank]:
        update(metric, parts[rank])
    torch.save(vars(metric.gather()), f"{folder}/{rank}.pt")
    pixels = PixelAveragePrecision()
    if parts[rank]:
        pixels.update(*_pixels(parts[rank]))
    torch.save(pixels.gather().compute(), f"{folder}/pxap{rank}.pt")
    distributed.destroy_process_group()


def test_every_rank_gathers_the_scores_of_all(tmp_path: Path) -> None:
    # Images 0 and 1 are given to two ranks, as DistributedSampler does, and one rank has none.
    parts = [[3, 0, 7, 1, 11], [], [1, 2, 4, 5, 6, 8, 9, 10, 0]]
    start_ranks(_score_rank, len(parts), parts, str(tmp_path))
    expected = update(fresh(), list(range(COUNT))).scores()
    for rank in range(len(parts)):
        assert_equal(Scores(**torch.load(tmp_path / f"{rank}.pt", weights_only=False)), expected)
    pixels = PixelAveragePrecision()
    pixels.update(*_pixels([i for part in parts for i in part]))
    assert [torch.load(tmp_path / f"pxap{rank}.pt") for rank in range(len(parts))] == [pixels.compute()] * len(parts)
