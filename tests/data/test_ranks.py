"""The batches of several ranks, put together, are those of one."""

from pathlib import Path

import pytest
import torch

from i2c_fast.data import SAMPLERS, Deal, Loading, TrainBatch, TrainBatches, dali_problem, read_split, train_loader
from i2c_fast.data.generated import write_generated

POSITIONS = [(0, 0), (0, 1), (3, 1)]
LOADERS = [
    "opencv",
    pytest.param("dali", marks=pytest.mark.skipif(bool(dali_problem()), reason=dali_problem() or "there is DALI")),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dealt") / "set"
    write_generated(root, seed=1, classes=4, train_images=4, val_images=1, size=48)
    next(root.glob("**/train/*/*.JPEG")).write_bytes(b"")  # one to replace
    return root


def batches_of(root: Path, loader: object, plan: str, deal: Deal = Deal()) -> list[TrainBatch]:  # noqa: B008
    index = read_split(root, "train")
    sampler = SAMPLERS[plan](index.labels, 8, 2, 5, deal)
    batches = TrainBatches(index, sampler, 40, 44)
    return list(train_loader(batches, POSITIONS, 0, Loading(loader)))  # type: ignore[arg-type]


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("plan", SAMPLERS)
@pytest.mark.parametrize(("ranks", "parts"), [(2, 1), (4, 1), (2, 4)])
def test_batches_of_all_ranks_together_are_one_ranks(
    root: Path, loader: str, plan: str, ranks: int, parts: int
) -> None:
    dealt = [batches_of(root, loader, plan, Deal(parts, ranks, rank)) for rank in range(ranks)]
    for whole, *of_ranks in zip(batches_of(root, loader, plan), *dealt, strict=True):
        assert {len(part.labels) for part in of_ranks} == {len(whole.labels) // ranks}
        together = [torch.cat([part[field] for part in of_ranks]) for field in range(4)]
        order = together[3].argsort()  # places in the global batch
        for field in range(4):
            assert torch.equal(together[field][order], whole[field])
        assert {met for part in of_ranks for met in part.unreadable} == set(whole.unreadable)


def test_a_part_over_all_ranks_is_the_part_of_one(root: Path) -> None:
    """A micro-batch is divided over ranks, not a rank's images into micro-batches: a part has whole classes."""
    (whole, *_), *of_ranks = (
        batches_of(root, "opencv", "class_paired", deal) for deal in (Deal(4), Deal(4, 2, 0), Deal(4, 2, 1))
    )
    for number, part in enumerate(whole.split(4)):
        shares = [batches[0].split(4)[number] for batches in of_ranks]
        assert torch.equal(torch.cat([share.image_ids for share in shares]), part.image_ids)
        assert torch.equal(torch.cat([share.labels for share in shares]), part.labels)
