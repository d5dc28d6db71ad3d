"""A batch over R ranks trains what one rank trains: terms, gradients after DDP's mean, and a bank equal bit for bit."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from i2c_fast import InterImageLoss
from i2c_fast.kernels import ClassMeans
from i2c_fast.models import Localizer
from i2c_fast.models.head import LocalizationHead
from i2c_fast.ranks import exchange_means

CHANNELS, STEPS = 6, 3
# Of each rank in each step: slots of one class lie side by side, classes come on several ranks, some images are
# ignored or alone, and a step's pairs are not shared out equally.
LABELS = torch.tensor(
    [
        [[0, 0, 2, 2, 1, 1], [1, 1, 2, 3, -100, 0]],
        [[3, 3, 3, 3, 0, 0], [0, 1, 2, 3, 4, -100]],
        [[4, 4, 1, 1, 2, 2], [4, 4, 1, 1, 2, 2]],
    ]
)
GROUPS = torch.tensor([0, 0, 1, 1, 2, 2])
EXACT = {"rtol": 1e-10, "atol": 1e-12}


class Settings(NamedTuple):
    """Few classes make sums go through a table, many are gathered row by row."""

    classes: int = 5
    distance: Any = "squared_l2"
    center_update: Any = "momentum"
    slots: bool = True


CASES = [
    Settings(),
    Settings(classes=50),
    Settings(distance="l2"),
    Settings(classes=50, distance="l2", slots=False),
    Settings(center_update="backprop"),
    Settings(classes=50, center_update="backprop"),
]


class State(NamedTuple):
    terms: list[list[float]]  # SC, GC of each step
    gradients: list[Tensor]  # of the model, after each step
    to_centers: list[Tensor]
    bank: dict[str, Tensor]


def batch_of(step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and groups of the global batch, rank after rank."""
    images = torch.randn(12, 3, 12, 12, generator=torch.Generator().manual_seed(step)).double()
    return images, LABELS[step].flatten(), torch.cat([GROUPS, GROUPS + 3])


def train(settings: Settings, mine: slice, ranks: int) -> State:
    torch.manual_seed(0)
    head = LocalizationHead(CHANNELS, settings.classes, width=8, dropout=0.0)
    model: nn.Module = Localizer(nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1), head).double()
    criterion = InterImageLoss(
        settings.classes,
        CHANNELS,
        distance=settings.distance,
        center_update=settings.center_update,
        alpha=0.3,
        auto_commit=False,
        process_group=dist.group.WORLD if ranks > 1 else None,
    ).double()
    if ranks > 1:
        model = DistributedDataParallel(model)
    optimizer = torch.optim.SGD([*model.parameters(), *criterion.parameters()], lr=1e-3)
    state = State([], [], [], {})
    for step in range(STEPS):
        images, labels, groups = (whole[mine] for whole in batch_of(step))
        logits, maps, features, slots = model(images, labels, criterion.k if settings.slots else 0)
        terms = criterion(features, maps, labels, slots=slots, groups=groups)
        # Equal ranks: the mean of their means is the whole batch's.
        (logits.square().mean() + terms.sc + 0.5 * terms.gc).backward()
        state.terms.append([terms.sc.item(), terms.gc.item()])
        state.gradients.extend(p.grad.clone() for p in model.parameters() if p.grad is not None)
        state.to_centers.extend(p.grad.clone() for p in criterion.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
        criterion.commit()
    state.bank.update(criterion.state_dict())
    return state


def _train_rank(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    per_rank = 12 // ranks
    mine = slice(rank * per_rank, (rank + 1) * per_rank)
    found = [train(settings, mine, ranks)._asdict() for settings in CASES]
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 6])
def on_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[list[State]]:
    """State by case and rank. With six ranks a slot of two images is all that a rank has."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_train_rank, (request.param, str(folder)), nprocs=request.param)
    by_rank = [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]
    return [[State(**found[case]) for found in by_rank] for case in range(len(CASES))]


@pytest.mark.parametrize("case", range(len(CASES)), ids=map(str, CASES))
def test_ranks_train_what_one_rank_trains(on_ranks: list[list[State]], case: int) -> None:
    alone = train(CASES[case], slice(None), 1)
    assert all(sc > 0 and gc > 0 for sc, gc in alone.terms)
    for state in on_ranks[case]:
        torch.testing.assert_close(torch.tensor(state.terms), torch.tensor(alone.terms), **EXACT)
        torch.testing.assert_close(state.gradients, alone.gradients, **EXACT)
        torch.testing.assert_close(state.to_centers, alone.to_centers, **EXACT)
        torch.testing.assert_close(state.bank, alone.bank, **EXACT)


@pytest.mark.parametrize("case", range(len(CASES)), ids=map(str, CASES))
def test_the_bank_is_the_same_on_all_ranks_to_the_bit(on_ranks: list[list[State]], case: int) -> None:
    first, *others = on_ranks[case]
    for other in others:
        assert all(torch.equal(first.bank[name], other.bank[name]) for name in first.bank)
        assert other.terms == first.terms


def _exchange_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    nan = torch.nan
    means = torch.tensor([[[1.0], [3.0], [nan]], [[5.0], [nan], [0.0]]])[rank]
    # A broken mean of class 2, a label that is none on the second rank of the second exchange.
    for name, last in (("nan", -100), ("wrong", 77)):
        labels = torch.tensor([[0, 1, 2], [0, 2, -100]])[rank]
        if name == "wrong" and rank == 1:
            labels[2] = last
        local = ClassMeans(means, labels, torch.tensor([[1, 1, 1], [3, 1, int(name == "wrong")]])[rank])
        found = {classes: exchange_means(local, classes, dist.group.WORLD) for classes in (3, 20)}
        torch.save({classes: tuple(of_class) for classes, of_class in found.items()}, f"{folder}/{name}{rank}.pt")
    dist.destroy_process_group()


def test_a_broken_mean_stays_in_its_class_and_a_wrong_label_is_not_lost(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_exchange_rank, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        for of_class in map(lambda found: ClassMeans(*found), torch.load(tmp_path / f"nan{rank}.pt").values()):
            rows = {int(y): of_class.means[i].item() for i, y in enumerate(of_class.labels) if y >= 0}
            assert rows[0] == 4.0 and rows[1] == 3.0  # (1·1 + 3·5) / 4
            assert rows[2] != rows[2] and len(rows) == 3
        table, gathered = torch.load(tmp_path / f"wrong{rank}.pt").values()
        assert ClassMeans(*table).means.isnan().all()
        assert 77 in ClassMeans(*gathered).labels  # `center_loss` answers it with NaN
