"""The loss inside other people's training loops: beside DistributedDataParallel, compiled, under GradScaler."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from i2c_fast import InterImageLoss
from i2c_fast.models import Localizer
from i2c_fast.models.head import LocalizationHead

from ..processes import start_ranks

LABELS = torch.tensor([[0, 0, 2, 2, 1], [1, 2, 1, 2, 0]])  # of each rank


def localizer() -> Localizer:
    torch.manual_seed(0)
    return Localizer(nn.Conv2d(3, 6, 3, stride=2, padding=1), LocalizationHead(6, 3, width=8, dropout=0.0)).double()


def images(rank: int) -> Tensor:
    return torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(rank)).double()


def criterion() -> InterImageLoss:
    return InterImageLoss(3, 6, auto_commit=False, seed=3).double()


def loss_of(model: nn.Module, criterion: InterImageLoss, images: Tensor, labels: Tensor) -> Tensor:
    logits, maps, features, slots = model(images, labels, criterion.k)
    terms = criterion(features, maps, labels, slots=slots)
    loss: Tensor = nn.functional.cross_entropy(logits, labels) + terms.sc + terms.gc
    return loss


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def _train_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model, terms = DistributedDataParallel(localizer()), criterion()
    loss_of(model, terms, images(rank), LABELS[rank]).backward()
    terms.commit()
    torch.save((gradients(model), terms.state_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_ddp_averages_the_gradients_that_come_through_slots_and_leaves_the_bank_alone(tmp_path: Path) -> None:
    """Each rank's terms are those of its own batch."""
    start_ranks(_train_rank, 2, str(tmp_path))
    alone = []
    for rank in range(2):
        model, terms = localizer(), criterion()
        loss_of(model, terms, images(rank), LABELS[rank]).backward()
        terms.commit()
        alone.append(gradients(model))
        found, bank = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(bank, terms.state_dict(), rtol=0, atol=0)
    mean = [(first + second) / 2 for first, second in zip(*alone, strict=True)]
    torch.testing.assert_close(found, mean)
    assert len(mean) == len(list(localizer().parameters()))


def test_a_localizer_and_its_loss_compile_into_one_graph() -> None:
    found = []
    for compiled in (False, True):
        model, terms = localizer(), criterion()
        loss = torch.compile(loss_of, fullgraph=True, backend="aot_eager") if compiled else loss_of
        for rank in (0, 1, 0):
            loss(model, terms, images(rank), LABELS[rank]).backward()
            terms.commit()
        found.append((gradients(model), terms.state_dict()))
    torch.testing.assert_close(*found)


def test_gradscaler_skips_a_step_and_the_centers_with_it() -> None:
    model, terms = localizer().float(), criterion().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step(scale: float) -> None:
        optimizer.zero_grad()
        scaler.scale(loss_of(model, terms, images(0).float() * scale, LABELS[0])).backward()
        scaler.unscale_(optimizer)
        (found_inf,) = scaler._found_inf_per_device(optimizer).values()
        scaler.step(optimizer)
        scaler.update()
        terms.commit(found_inf=found_inf)

    start = terms.centers.clone()
    step(1.0)
    assert scaler.get_scale() == 2.0**10
    assert (terms.centers != start).any(1).all()
    after, weights = terms.centers.clone(), [parameter.clone() for parameter in model.parameters()]
    step(float("inf"))
    assert scaler.get_scale() < 2.0**10
    assert torch.equal(terms.centers, after)
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), weights, strict=True))
    assert terms.steps.tolist() == [1, 1, 1] and terms.draws[1] == 2
