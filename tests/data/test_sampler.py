"""Class-paired and plain plans: what a batch holds, and that nothing but (seed, epoch, step) decides it."""

import hashlib
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from i2c_fast.data import BatchPlan, ClassPairedSampler
from i2c_fast.data.sampler import PlainSampler
from i2c_fast.errors import UserError

# Ten classes of 3 to 12 images, in no order; class 4 has none.
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3, 5, 6, 7, 8, 9], [3, 12, 5, 5, 5, 5, 5, 5, 5]))


def sampler(classes: int = 4, images: int = 2, seed: int = 0, labels: np.ndarray = LABELS) -> ClassPairedSampler:
    return ClassPairedSampler(labels.astype(np.int64), classes, images, seed)


def digest(plan: BatchPlan) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in plan)).hexdigest()


def slots(plan: BatchPlan, images: int) -> list[list[int]]:
    return plan.indices.reshape(-1, images).tolist()


def test_plan_does_not_depend_on_earlier_plans_or_on_the_instance() -> None:
    first, second = sampler(), sampler()
    forward = {step: digest(first.plan(2, step)) for step in range(6)}
    backward = {step: digest(second.plan(2, step)) for step in reversed(range(6))}
    assert forward == backward
    assert digest(first.plan(2, 3)) == forward[3]


def test_plan_does_not_depend_on_numpys_global_generator() -> None:
    np.random.seed(1)
    one = digest(sampler().plan(0, 0))
    np.random.seed(2)
    assert digest(sampler().plan(0, 0)) == one


def test_plan_is_the_same_in_other_threads() -> None:
    shared = sampler()
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda step: digest(shared.plan(0, step)), range(40)))
    assert threaded == [digest(shared.plan(0, step)) for step in range(40)]


def test_plan_is_the_same_in_another_process() -> None:
    code = f"""
import numpy as np, hashlib
from i2c_fast.data import ClassPairedSampler
plan = ClassPairedSampler(np.array({LABELS.tolist()}), 4, 2, 0).plan(5, 17)
print(hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in plan)).hexdigest())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest(sampler().plan(5, 17))


def test_seed_epoch_and_step_each_change_the_plan() -> None:
    plans = [sampler(seed=s).plan(e, t) for s, e, t in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]]
    assert len({digest(plan) for plan in plans}) == 5


def test_plan_has_the_documented_shapes_and_types() -> None:
    plan = sampler(classes=3, images=4).plan(0, 0)
    assert [part.shape for part in plan] == [(12,), (12,), (12,), (12, 2), (12,), (12,)]
    assert [part.dtype for part in plan] == [np.int64, np.int64, np.int64, np.float64, np.bool_, np.int64]


@pytest.mark.parametrize(("classes", "images"), [(1, 1), (4, 2), (9, 2), (9, 5), (20, 2), (40, 3)])
def test_labels_are_those_of_the_drawn_images_and_constant_in_a_slot(classes: int, images: int) -> None:
    for step in range(20):
        plan = sampler(classes, images).plan(0, step)
        assert (LABELS[plan.indices] == plan.labels).all()
        assert (plan.labels.reshape(classes, images) == plan.labels[::images, None]).all()


def test_groups_are_the_slot_numbers() -> None:
    assert sampler(classes=3, images=2).plan(0, 0).groups.tolist() == [0, 0, 1, 1, 2, 2]


def test_classes_are_distinct_while_there_are_enough() -> None:
    for step in range(50):
        labels = sampler(classes=9).plan(0, step).labels[::2]
        assert len(set(labels.tolist())) == 9


@pytest.mark.parametrize("classes", [10, 18, 20, 40])
def test_more_slots_than_classes_repeat_classes_evenly_and_side_by_side(classes: int) -> None:
    for step in range(20):
        labels = sampler(classes=classes).plan(0, step).labels[::2]
        counts = Counter(labels.tolist())
        assert len(counts) == 9
        assert max(counts.values()) - min(counts.values()) == (classes % 9 > 0)
        assert (np.diff(labels) != 0).sum() == 8  # each class is one run of slots


def test_class_without_images_is_never_drawn() -> None:
    assert all(4 not in sampler(classes=9).plan(0, step).labels for step in range(50))


def test_images_of_a_slot_are_distinct_where_the_class_has_enough() -> None:
    for step in range(50):
        assert all(len(set(slot)) == 3 for slot in slots(sampler(classes=9, images=3).plan(0, step), 3))


def test_slots_of_one_class_share_distinct_images() -> None:
    labels = np.zeros(9, np.int64)
    for step in range(20):
        assert len(set(sampler(classes=4, images=2, labels=labels).plan(0, step).indices.tolist())) == 8


def test_too_few_images_repeat_only_after_all_were_drawn() -> None:
    labels = np.zeros(3, np.int64)
    for step in range(20):
        drawn = sampler(classes=2, images=4, labels=labels).plan(0, step).indices.tolist()
        assert set(drawn[:3]) == {0, 1, 2}
        assert drawn[3:6] == drawn[:3] and drawn[6:] == drawn[:2]


def test_repeated_images_get_other_crops() -> None:
    plan = sampler(classes=1, images=8, labels=np.zeros(1, np.int64)).plan(0, 0)
    assert plan.indices.tolist() == [0] * 8
    assert len(np.unique(plan.crops, axis=0)) == 8
    assert 0 < plan.flips.sum() < 8


def test_batch_of_one_class_and_image_works() -> None:
    plan = sampler(classes=1, images=1, labels=np.array([7])).plan(0, 0)
    assert (plan.indices.tolist(), plan.labels.tolist(), plan.groups.tolist()) == ([0], [7], [0])


def test_crops_and_flips_are_uniform() -> None:
    plans = [sampler(classes=40).plan(0, step) for step in range(100)]
    crops, flips = np.concatenate([p.crops for p in plans]), np.concatenate([p.flips for p in plans])
    assert crops.min() >= 0 and crops.max() < 1
    counts = np.histogram2d(*crops.T, bins=4, range=[[0, 1], [0, 1]])[0]
    assert abs(counts - 500).max() < 5 * 500**0.5  # 8000 crops in 16 cells
    assert abs(flips.mean() - 0.5) < 5 * (0.25 / 8000) ** 0.5


def test_classes_are_drawn_equally_often_whatever_their_sizes() -> None:
    drawn = np.concatenate([sampler(seed=3).plan(0, step).labels[::2] for step in range(1800)])
    counts = np.bincount(drawn, minlength=10)
    assert counts[4] == 0
    # 1800 batches of 4 of 9 classes: 800 each, standard deviation √(1800·4/9·5/9) = 21.
    assert abs(np.delete(counts, 4) - 800).max() < 5 * 21


def test_slots_beyond_an_even_share_go_to_all_classes_equally_often() -> None:
    drawn = np.concatenate([sampler(classes=10).plan(0, step).labels[::2] for step in range(900)])
    extra = np.delete(np.bincount(drawn, minlength=10), 4) - 900
    assert extra.sum() == 900
    assert abs(extra - 100).max() < 5 * 10


def test_images_and_pairs_of_a_class_are_drawn_equally_often() -> None:
    labels = np.zeros(5, np.int64)
    one = sampler(1, 2, labels=labels)
    pairs = Counter(tuple(one.plan(epoch, t).indices.tolist()) for epoch in range(4) for t in range(500))
    assert len(pairs) == 20  # ordered pairs of distinct images
    assert max(abs(count - 100) for count in pairs.values()) < 5 * 10


@pytest.mark.parametrize(("count", "steps"), [(1, 1), (7, 1), (8, 1), (9, 2), (16, 2), (17, 3)])
def test_epoch_has_as_many_steps_as_cover_the_images(count: int, steps: int) -> None:
    found = sampler(classes=4, images=2, labels=np.zeros(count, np.int64))
    assert (found.batch_size, found.steps_per_epoch) == (8, steps)


@pytest.mark.parametrize(("classes", "images"), [(0, 2), (4, 0), (-1, 2)])
def test_empty_batch_is_an_error_that_names_the_options(classes: int, images: int) -> None:
    with pytest.raises(UserError, match=rf"batch\.classes and batch\.images must be at least 1, got {classes}"):
        sampler(classes, images)


# Plain batches


def plain(seed: int = 0, slots: int = 4, images: int = 3) -> PlainSampler:
    return PlainSampler(LABELS, slots, images, seed)


def test_a_plain_epoch_has_each_image_once_and_is_filled_up_from_its_start() -> None:
    sampler = plain()
    drawn = np.concatenate([sampler.plan(2, step).indices for step in range(sampler.steps_per_epoch)])
    assert len(drawn) == 12 * sampler.steps_per_epoch
    assert sorted(drawn[: len(LABELS)]) == list(range(len(LABELS)))
    np.testing.assert_array_equal(drawn[len(LABELS) :], drawn[: len(drawn) - len(LABELS)])


def test_a_plain_plan_depends_on_seed_epoch_and_step_alone() -> None:
    sampler = plain()
    expected = {(epoch, step): sampler.plan(epoch, step) for epoch in (0, 1) for step in (0, 1)}
    for position in ((1, 1), (0, 0), (1, 0), (0, 1)):  # in another order, by another sampler
        for found, wanted in zip(plain().plan(*position), expected[position], strict=True):
            np.testing.assert_array_equal(found, wanted)
        for found, wanted in zip(sampler.plan(*position), expected[position], strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert (expected[0, 0].indices != expected[1, 0].indices).any()
    assert (plain(seed=1).plan(0, 0).indices != expected[0, 0].indices).any()


def test_a_plain_batch_is_one_group_with_the_labels_of_its_images() -> None:
    found = plain().plan(0, 1)
    np.testing.assert_array_equal(found.labels, LABELS[found.indices])
    assert not found.groups.any() and len(found.crops) == len(found.flips) == 12


def test_a_plain_batch_larger_than_the_split_repeats_it() -> None:
    found = plain(slots=40).plan(0, 0)
    assert set(np.bincount(found.indices)) <= {2, 3} and len(found.indices) == 120
