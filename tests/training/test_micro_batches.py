"""Gradient accumulation: micro-batches of a batch train what the whole batch does."""

import pytest
import torch

from i2c_fast.data import ClassPairedSampler, Deal
from i2c_fast.data.sampler import PlainSampler
from i2c_fast.errors import UserError

from .small import paired_batch, small_localizer, step_over, take, tensors_of


@pytest.mark.parametrize(("slots", "classes", "parts"), [(6, 6, 3), (6, 3, 3), (12, 4, 2)])
def test_micro_batches_train_what_the_whole_batch_trains(slots: int, classes: int, parts: int) -> None:
    """Also where a class has several slots, to rounding in fp64: weights, momentum, centers, counters, terms."""
    found = []
    for micro_batches in (1, parts):
        step = step_over(small_localizer(classes).double(), micro_batches=micro_batches)
        terms = [take(step, number, slots, classes) for number in range(4)]
        found.append((terms, tensors_of(step)))
    (terms, state), (terms_of_parts, state_of_parts) = found
    for whole, of_parts in zip(terms, terms_of_parts, strict=True):
        assert of_parts == pytest.approx(whole, rel=1e-5)
    torch.testing.assert_close(state_of_parts, state, rtol=1e-10, atol=1e-12)


def test_parts_are_views_of_the_batch_in_order() -> None:
    batch = paired_batch(0, 6, 6)
    parts = batch.split(3)
    assert [len(part.labels) for part in parts] == [4, 4, 4]
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert parts[1].image_ids.tolist() == [4, 5, 6, 7]
    assert parts[2].images.data_ptr() == batch.images[8:].data_ptr()


@pytest.mark.parametrize(("slots", "parts", "message"), [
    (6, 4, "1, 2, 3, 6 would"),
    (12, 4, "1, 2, 3, 6 would"),  # two slots a class: a part of 3 slots would share one
    (8, 2, "1 would"),  # two of six classes have a slot more
])  # fmt: skip
def test_parts_that_are_not_alike_are_refused(slots: int, parts: int, message: str) -> None:
    labels = torch.arange(6).repeat_interleave(5).numpy()
    with pytest.raises(UserError, match=f"batch.micro_batches={parts} .*{message}"):
        ClassPairedSampler(labels, slots, 2, 0, Deal(parts))


def test_plain_batches_divide_by_images() -> None:
    labels = torch.arange(30).numpy() % 6
    PlainSampler(labels, 3, 2, 0, Deal(2))
    with pytest.raises(UserError, match="1, 2, 3, 6 would"):
        PlainSampler(labels, 3, 2, 0, Deal(4))
