"""What ranks and micro-batches train by `i2c-fast train` is what one process trains; what they score, it scores."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from i2c_fast.methods import METHODS
from i2c_fast.training import checkpoints_of

from .ranks import Job, difference, ended, lines, run_forked, tensors_of, train_job, write_set

EXACT, ROUNDED = 1e-10, 1e-4  # fp64, fp32
FIVE_PARTS = ("batch.classes=20", "stage1.epochs=3")  # four slots a class, a class a part
# Runs of one process without micro-batches, by name.
CASES = {
    "sums of classes": (),
    "a class on two ranks": ("batch.classes=16",),
    "several pairs": ("batch.images=4",),
    "l2": ("batch.classes=16", "i2c.distance=l2"),
    "trained centers": ("batch.classes=16", "i2c.center_update=backprop"),
    "rows of images": ("batch.classes=2",),
    "five parts": FIVE_PARTS,
    "synchronized": ("model.bn=sync",),
    "clipped, averaged": ("optim.clip_norm=0.5", "optim.ema_decay=0.9"),
    "fp32": ("run.precision=fp32",),
}  # fmt: skip
ON_TWO = tuple(CASES)
ON_FOUR = ("sums of classes", "a class on two ranks", "several pairs", "l2", "trained centers", "fp32")
RANDOM = ("model.dropout=0.5", "model.bn=local")
OF_METHODS = {name: (f"stage1.method={name}", "stage0.epochs=0", *RANDOM) for name in METHODS}
SCORED = {"one crop": ["eval.ten_crop=false"], "ten crops": ["eval.ten_crop=true"]}


def score_jobs(folder: Path, run: Path) -> list[Job]:
    return [Job(name, ["evaluate", run, *options, "-o", folder / f"{name}.json"]) for name, options in SCORED.items()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("ranks") / "set")


@pytest.fixture(scope="module")
def one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what one process came to."""
    folder = tmp_path_factory.mktemp("one")
    kept = ("run.checkpoint_every=1", "run.keep_checkpoints=0")
    jobs = [train_job(folder, name, data, *changes, *kept) for name, changes in CASES.items()]
    jobs.append(train_job(folder, "micro-batches", data, *FIVE_PARTS, "batch.micro_batches=5"))
    jobs += score_jobs(folder, folder / "sums of classes")
    run_forked(folder, jobs, 1)
    return folder


@pytest.fixture(scope="module")
def two(data: Path, one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two ranks came to."""
    folder = tmp_path_factory.mktemp("two")
    jobs = [train_job(folder, name, data, *CASES[name]) for name in ON_TWO]
    jobs.append(train_job(folder, "micro-batches", data, *FIVE_PARTS, "batch.micro_batches=5"))
    jobs.append(train_job(folder, "local means", data, fault=("local means", 0, 0)))
    jobs.append(train_job(folder, "fifty steps", data, "stage0.epochs=0", "stage1.epochs=10", *RANDOM))
    jobs.append(train_job(folder, "not finite", data, *RANDOM, fault=("nan", 1, 6)))
    jobs += [train_job(folder, name, data, *changes) for name, changes in OF_METHODS.items()]
    resumed = shutil.copytree(one / "sums of classes", folder / "continued")
    for checkpoint in checkpoints_of(resumed):
        if checkpoint.stem > "step-00000007":
            checkpoint.unlink()
    jobs.append(train_job(folder, "continued", data, "--resume"))
    jobs += score_jobs(folder, one / "sums of classes")
    run_forked(folder, jobs, 2)
    return folder


@pytest.fixture(scope="module")
def three(one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    run_forked(folder, score_jobs(folder, one / "sums of classes"), 3)
    return folder


@pytest.fixture(scope="module")
def four(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("four")
    jobs = [train_job(folder, name, data, *CASES[name]) for name in ON_FOUR]
    jobs.append(train_job(folder, "micro-batches", data, *FIVE_PARTS, "batch.micro_batches=5"))
    run_forked(folder, jobs, 4)
    return folder


def assert_same_on_ranks(folder: Path, name: str, ranks: int) -> None:
    """Weights, bank, counters and momentum, to the bit."""
    done = ended(folder, name, ranks)
    assert done.codes == [0] * ranks, done.errors
    first, *others = (tensors_of(folder / f"{name}.{rank}.pt") for rank in range(ranks))
    for other in others:
        assert [key for key in first if not torch.equal(first[key], other[key])] == []


@pytest.mark.parametrize("name", ON_TWO)
def test_two_ranks_train_what_one_process_trains(one: Path, two: Path, name: str) -> None:
    assert_same_on_ranks(two, name, 2)
    assert difference(one / name, two / name) < (ROUNDED if name == "fp32" else EXACT)


@pytest.mark.parametrize("name", ON_FOUR)
def test_four_ranks_train_what_one_process_trains(one: Path, four: Path, name: str) -> None:
    assert_same_on_ranks(four, name, 4)
    assert difference(one / name, four / name) < (ROUNDED if name == "fp32" else EXACT)


@pytest.mark.parametrize("ranks", ["one", "two", "four"])
def test_micro_batches_train_what_the_whole_batch_trains(one: Path, ranks: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(ranks)
    assert difference(one / "five parts", folder / "micro-batches") < EXACT


def test_means_of_each_rank_alone_train_something_else(one: Path, two: Path) -> None:
    """The comparison sees what it is there to see."""
    assert ended(two, "local means", 2).codes == [0, 0]
    assert difference(one / "sums of classes", two / "local means") > 1e-4


def test_fifty_steps_with_dropout_leave_all_ranks_the_same(two: Path) -> None:
    assert len(lines(two / "fifty steps")) == 51
    assert_same_on_ranks(two, "fifty steps", 2)


def test_statistics_of_a_local_batchnorm_become_the_mean_of_the_ranks(two: Path) -> None:
    first, second = (torch.load(two / f"fifty steps.{rank}.pt") for rank in range(2))
    for name in ("body.1.running_mean", "body.1.running_var"):
        own, others = first["own"][name], second["own"][name]
        assert not torch.equal(own, others)
        torch.testing.assert_close(first["model"][name], (own + others) / 2)


def test_ranks_draw_their_dropout_apart(one: Path, two: Path) -> None:
    """The first draws as one process does."""
    seeds = [torch.load(two / f"fp32.{rank}.pt")["seed"] for rank in range(2)]
    assert seeds[0] == torch.load(one / "fp32.0.pt")["seed"] != seeds[1]


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(two: Path) -> None:
    assert_same_on_ranks(two, "not finite", 2)
    skipped = [line["step"] for line in lines(two / "not finite") if line.get("skipped")]
    assert skipped == [6]
    assert all(tensor.isfinite().all() for tensor in tensors_of(two / "not finite").values())


@pytest.mark.parametrize("name", OF_METHODS)
def test_every_method_trains_on_two_ranks(two: Path, name: str) -> None:
    assert_same_on_ranks(two, name, 2)
    assert [line["skipped"] for line in lines(two / name) if line["kind"] == "train"] == [0.0] * 5


def test_a_run_continues_on_another_number_of_ranks(one: Path, two: Path) -> None:
    assert_same_on_ranks(two, "continued", 2)
    assert "continuing after step 7 of 10" in (two / "continued.0.out").read_text()
    assert difference(one / "sums of classes", two / "continued") < EXACT


@pytest.mark.parametrize("ranks", ["two", "three"])
@pytest.mark.parametrize("name", SCORED)
def test_ranks_score_a_split_to_the_digit_as_one_process_does(
    one: Path, ranks: str, name: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(ranks)
    expected, found = (json.loads((where / f"{name}.json").read_text())["errors"] for where in (one, folder))
    assert found == expected
    (errors,) = found.values()
    assert errors["images"] == 25
