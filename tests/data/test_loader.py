"""The loader: whole batches in the planned order, the same from any number of processes, as uint8 channels_last."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from i2c_fast.data import (
    ClassPairedSampler,
    EvalBatch,
    EvalBatches,
    ImageIndex,
    TrainBatch,
    TrainBatches,
    eval_loader,
    read_image,
    read_split,
    resize,
    train_loader,
)
from i2c_fast.data.batches import stack
from i2c_fast.data.generated import write_generated
from i2c_fast.data.images import train_crop
from i2c_fast.errors import UserError

SIZE, SHORT = 40, 44
POSITIONS = [(0, 0), (3, 1), (0, 1), (7, 0), (0, 0)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loader") / "set"
    write_generated(root, seed=1, classes=3, train_images=4, val_images=3, size=48)
    return root


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> Path:
    """A set of one's own, to damage."""
    return Path(shutil.copytree(root, tmp_path / "set"))


def train_batches(root: Path) -> TrainBatches:
    index = read_split(root, "train")
    return TrainBatches(index, ClassPairedSampler(index.labels, 4, 2, seed=5), SIZE, SHORT)


def assert_equal(first: TrainBatch | EvalBatch, second: TrainBatch | EvalBatch) -> None:
    for one, other in zip(first, second, strict=True):
        if isinstance(one, torch.Tensor):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        else:
            assert one == other


def damage(index: ImageIndex, image: int) -> None:
    index.file(image).write_bytes(b"no image any more")


def test_training_batch_is_what_the_plan_says(root: Path) -> None:
    batches = train_batches(root)
    plan = batches.sampler.plan(2, 1)
    (batch,) = train_loader(batches, [(2, 1)], workers=0)
    for i, image in enumerate(plan.indices):
        cut = train_crop(read_image(batches.index.file(image)), SHORT, SIZE, plan.crops[i], plan.flips[i])
        np.testing.assert_array_equal(batch.images[i].permute(1, 2, 0).numpy(), cut)
    assert batch.labels.tolist() == plan.labels.tolist()
    assert batch.groups.tolist() == plan.groups.tolist()
    assert batch.image_ids.tolist() == list(range(8))


def test_training_batches_come_in_the_order_of_their_positions(root: Path) -> None:
    batches = train_batches(root)
    loaded = list(train_loader(batches, POSITIONS, workers=0))
    assert len(loaded) == len(POSITIONS)
    for batch, position in zip(loaded, POSITIONS, strict=True):
        assert_equal(batch, batches[position])


def test_worker_processes_give_the_same_training_batches(root: Path) -> None:
    batches = train_batches(root)
    alone, shared = (list(train_loader(batches, POSITIONS, workers)) for workers in (0, 2))
    assert len(alone) == len(shared) == len(POSITIONS)
    for first, second in zip(alone, shared, strict=True):
        assert_equal(first, second)


def test_worker_processes_give_the_same_evaluation_batches(root: Path) -> None:
    batches = EvalBatches(read_split(root, "val"), SIZE, 2)
    alone, shared = (list(eval_loader(batches, workers)) for workers in (0, 2))
    assert len(alone) == len(shared) == 5
    for first, second in zip(alone, shared, strict=True):
        assert_equal(first, second)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_are_uint8_in_channels_last_memory(root: Path, workers: int) -> None:
    (trained,) = train_loader(train_batches(root), [(0, 0)], workers)
    for batch in (trained, *eval_loader(EvalBatches(read_split(root, "val"), SIZE, 9), workers)):
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape[1:] == (3, SIZE, SIZE)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_stack_keeps_rows_of_pixels_together_and_channels_in_place() -> None:
    images = [np.arange(i, i + 24, dtype=np.uint8).reshape(4, 2, 3) for i in (0, 100)]
    stacked = stack(images)
    assert stacked.stride() == (24, 1, 6, 3)
    assert stacked[1, :, 3, 1].tolist() == images[1][3, 1].tolist()


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 9), (4, [4, 4, 1]), (9, [9]), (50, [9])])
def test_evaluation_covers_each_image_once_in_index_order(root: Path, batch_size: int, sizes: list[int]) -> None:
    index = read_split(root, "val")
    batches = EvalBatches(index, SIZE, batch_size)
    loaded = list(eval_loader(batches, workers=0))
    assert len(batches) == len(loaded) == len(sizes)
    assert [len(batch.images) for batch in loaded] == sizes
    assert torch.cat([batch.indices for batch in loaded]).tolist() == list(range(9))
    assert torch.cat([batch.labels for batch in loaded]).tolist() == index.labels.tolist()


def test_evaluation_images_are_squares_that_remember_the_stored_size(tmp_path: Path) -> None:
    for name, size in {"train/cat/a.png": (8, 8), "val/cat/a.png": (50, 20), "val/cat/b.png": (7, 90)}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
        Pillow.fromarray(picture).save(tmp_path / name)
    index = read_split(tmp_path, "val")
    (batch,) = eval_loader(EvalBatches(index, SIZE, 4), workers=0)
    assert batch.sizes.tolist() == [[50, 20], [7, 90]]
    for i in range(2):
        square = resize(read_image(index.file(i)), SIZE, SIZE)
        np.testing.assert_array_equal(batch.images[i].permute(1, 2, 0).numpy(), square)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_training_image_is_replaced_by_one_of_its_class_and_reported(copied: Path, workers: int) -> None:
    whole = train_batches(copied)
    victim = int(whole.sampler.plan(0, 0).indices[0])
    (before,) = train_loader(whole, [(0, 0)], workers=0)
    damage(whole.index, victim)
    (after,) = train_loader(train_batches(copied), [(0, 0)], workers)
    assert after.labels.tolist() == before.labels.tolist()
    assert [image for image, _ in after.unreadable] == [victim]
    assert (after.images[0] != before.images[0]).any()
    untouched = whole.sampler.plan(0, 0).indices != victim
    assert (after.images[untouched] == before.images[untouched]).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_class_without_a_readable_image_is_an_error_that_names_it(copied: Path, workers: int) -> None:
    batches = train_batches(copied)
    for image in np.flatnonzero(batches.index.labels == 1):
        damage(batches.index, int(image))
    with pytest.raises(UserError, match="n90000002"):
        list(train_loader(batches, [(0, 0)], workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_validation_image_is_an_error_that_names_it(copied: Path, workers: int) -> None:
    index = read_split(copied, "val")
    damage(index, 5)
    with pytest.raises(UserError, match=index.file(5).name):
        list(eval_loader(EvalBatches(index, SIZE, 4), workers))


def test_loaders_in_a_row_do_not_hang_after_opencv_worked_in_the_parent(root: Path) -> None:
    code = f"""
import cv2, numpy as np
from i2c_fast.data import EvalBatches, eval_loader, read_split
index = read_split({str(root)!r}, "val")
for _ in range(2):
    big = np.zeros((1500, 1500, 3), np.uint8)
    cv2.GaussianBlur(cv2.resize(big, (2000, 2000)), (9, 9), 2)
    print(sum(len(batch.images) for batch in eval_loader(EvalBatches(index, 40, 2), workers=2)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["9", "9"]
