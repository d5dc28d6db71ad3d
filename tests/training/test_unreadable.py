"""Training goes on past rotten files, names each once, and changes nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console

from i2c_fast.config import Config
from i2c_fast.data import ClassPairedSampler, TrainBatches, read_split
from i2c_fast.errors import UserError
from i2c_fast.training import start_run


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(2000))


def gif(path: Path) -> None:
    # A whole image, of one white pixel, in a format that only some versions of OpenCV read.
    path.write_bytes(
        b"GIF89a\x01\x00\x01\x00\x80\x00\x00\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
    )


@pytest.fixture
def rotten(tiny_set: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """The tiny set with 4 of its 24 training images spoilt, each in its own way, and their names."""
    root = tmp_path / "set"
    shutil.copytree(tiny_set, root)
    images = sorted((root / "Data/CLS-LOC/train").rglob("*.JPEG"))
    spoilt = {images[0]: truncate, images[5]: gif, images[9]: empty, images[17]: garbage}
    for path, spoil in spoilt.items():
        spoil(path)
    return root, [path.relative_to(root).as_posix() for path in spoilt]


def test_each_is_named_once_and_training_goes_on(
    rotten: tuple[Path, list[str]], tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    root, names = rotten
    console = Console(record=True, width=300)
    run = tmp_path / "run"
    scores = start_run(tiny_config(f"data.root={root}", "stage0.epochs=4", "data.workers=2"), run, console)
    assert scores is not None
    text = console.export_text()
    assert [text.count(name) for name in names] == [1, 1, 1, 1]
    listed = [line.split("\t")[0] for line in (run / "unreadable.txt").read_text().splitlines()]
    assert sorted(listed) == sorted(names)


def test_all_other_images_of_a_batch_are_unchanged(rotten: tuple[Path, list[str]], tiny_set: Path) -> None:
    root, names = rotten
    whole, spoilt = read_split(tiny_set, "train"), read_split(root, "train")
    sampler = ClassPairedSampler(whole.labels, 3, 2, 0)
    replaced = 0
    for step in range(8):
        plan = sampler.plan(0, step)
        a = TrainBatches(whole, sampler, 32, 36)[0, step]
        b = TrainBatches(spoilt, sampler, 32, 36)[0, step]
        bad = torch.tensor([whole.paths[i] in names for i in plan.indices])
        assert torch.equal(a.images[~bad], b.images[~bad])
        assert torch.equal(a.labels, b.labels)
        assert {spoilt.paths[i] for i, _ in b.unreadable} == {whole.paths[i] for i in plan.indices[bad.numpy()]}
        replaced += int(bad.sum())
    assert replaced > 0


def test_the_replacement_is_the_next_image_of_its_class(tmp_path: Path) -> None:
    for label, name in enumerate("ab"):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for number in range(3):
            cv2.imwrite(str(folder / f"{number}.png"), np.full((40, 40, 3), 100 * label + 10 * number, np.uint8))
    garbage(tmp_path / "train/a/2.png")
    index = read_split(tmp_path, "train")
    batches = TrainBatches(index, ClassPairedSampler(index.labels, 2, 3, 0), 32, 32)
    batch = batches[0, 0]
    values = batch.images[batch.labels == 0][:, 0, 0, 0].tolist()
    assert sorted(values) == [0, 0, 10]  # after the last of the class comes its first


def test_above_the_limit_the_run_stops_with_the_list(
    rotten: tuple[Path, list[str]], tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    root, names = rotten
    config = tiny_config(f"data.root={root}", "stage0.epochs=4", "data.max_unreadable=3")
    with pytest.raises(UserError, match=r"data\.max_unreadable is 3") as caught:
        start_run(config, tmp_path / "run", Console(quiet=True))
    assert all(name in str(caught.value) for name in names)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_class_without_a_readable_image_is_one_line(
    tiny_set: Path, tiny_config: Callable[..., Config], tmp_path: Path, workers: int
) -> None:
    root = tmp_path / "set"
    shutil.copytree(tiny_set, root)
    folder = sorted((root / "Data/CLS-LOC/train").iterdir())[1]
    for path in folder.iterdir():
        garbage(path)
    with pytest.raises(UserError, match=f"no image of class {folder.name}") as caught:
        start_run(tiny_config(f"data.root={root}", f"data.workers={workers}"), tmp_path / "run", Console(quiet=True))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_validation_image_is_one_line(
    tiny_set: Path, tiny_config: Callable[..., Config], tmp_path: Path, workers: int
) -> None:
    root = tmp_path / "set"
    shutil.copytree(tiny_set, root)
    victim = sorted((root / "Data/CLS-LOC/val").iterdir())[5]
    truncate(victim)
    with pytest.raises(UserError, match=victim.name) as caught:
        start_run(tiny_config(f"data.root={root}", f"data.workers={workers}"), tmp_path / "run", Console(quiet=True))
    assert "\n" not in str(caught.value)
