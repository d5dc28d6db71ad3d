"""A batch over R ranks trains what one rank trains: terms, gradients after DDP's mean, and a bank equal bit for bit."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from i2c_fast import InterImageLoss
from i2c_fast.kernels import class_means_reference
from i2c_fast.kernels._pairs import Rows, unpack
from i2c_fast.kernels.pair_consistency_loss import pair_rows
from i2c_fast.models import Localizer
from i2c_fast.models.head import LocalizationHead
from i2c_fast.ranks import RankExchange

from ..processes import start_ranks

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
    start_ranks(_train_rank, request.param, request.param, str(folder))
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
    values = torch.tensor([[1.0, 3.0, torch.nan, 7.0], [5.0, torch.nan, 2.0, 6.0]])[rank].view(4, 1, 1)
    found = {}
    # A broken mean of class 2; then a label that is none on the second rank. The last label takes all of 64 bits.
    for name, labels in (
        ("nan", [[0, 1, 2, -100], [0, 2, -100, 0]]),
        ("wrong", [[0, 1, 2, -100], [0, 2, 2**40, 0]]),
    ):
        _, rows = pair_rows(values, torch.tensor(labels[rank]), None, "squared_l2")
        for classes in (3, 20):
            everyone = RankExchange(dist.group.WORLD, classes)(rows, 1, 1, "squared_l2")
            parts = unpack(everyone, 1, 1, "squared_l2")._asdict()
            found[name, classes] = {part: tensor.clone() for part, tensor in parts.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_a_nan_stays_in_its_class_and_a_wrong_label_is_not_lost(tmp_path: Path) -> None:
    start_ranks(_exchange_rank, 2, str(tmp_path))
    for rank in range(2):
        for (name, classes), parts in torch.load(tmp_path / f"{rank}.pt").items():
            rows = Rows(**parts)
            of_class = class_means_reference(rows.sums[:, None], rows.labels, images=rows.images, k=1)
            mean = {int(y): of_class.means[i].item() for i, y in enumerate(of_class.labels) if y != -100}
            assert mean[1] == 3.0 and mean[0] == (1 + 5 + 6) / 3
            assert mean[2] != mean[2]
            # The table has no row for a wrong label, only one for all of them, whose number is none of the classes.
            wrong = {"nan": set(), "wrong": {3 if classes == 3 else 2**40}}[name]
            assert set(mean) == {0, 1, 2} | wrong
