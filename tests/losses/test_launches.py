"""What one step of the loss asks of a device: kernels, torch calls and collectives, on one rank and on two."""

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from triton.runtime.jit import JITFunction

from i2c_fast import InterImageLoss, kernels

from ..processes import start_ranks

KERNELS = [
    "_sample_few_pixels", "write_pair_rows", "_class_means", "total_losses", "_inter_image_backward",
    "_add_columns", "_update_centers",
]  # fmt: skip


class Calls(TorchDispatchMode):
    """Names of the torch calls made under it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **kwargs or {})


def step(classes: int, group: dist.ProcessGroup | None, patch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Kernels that one step launches, which are noted and not run, and its torch calls."""
    launched: list[str] = []
    patch.setattr(JITFunction, "run", lambda kernel, *_, **__: launched.append(kernel.__name__))
    for name in (f"{kernels.__name__}.{module.name}" for module in pkgutil.iter_modules(kernels.__path__)):
        patch.setattr(importlib.import_module(name), "runs_triton", lambda tensor: True, raising=False)
    loss = InterImageLoss(classes, 8, auto_commit=False, process_group=group)
    features, maps = torch.randn(4, 8, 3, 3, requires_grad=True), torch.rand(4, 3, 3)
    labels, skipped = torch.tensor([0, 0, 1, 1]), torch.zeros(())
    with Calls() as calls:
        terms = loss(features, maps, labels, groups=labels)
        torch.autograd.backward([terms.sc, terms.gc], [skipped, skipped])
        loss.commit(found_inf=skipped)
    return launched, calls.names


def test_a_step_on_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    launched, calls = step(5, None, monkeypatch)
    assert launched == KERNELS
    assert len(calls) <= 36, calls


def _step_on_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for classes in (5, 50):
        with pytest.MonkeyPatch.context() as patch:
            found[classes] = step(classes, dist.group.WORLD, patch)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_a_step_on_two_ranks_adds_one_collective(tmp_path: Path) -> None:
    start_ranks(_step_on_rank, 2, str(tmp_path))
    for rank in range(2):
        for classes, (launched, calls) in torch.load(tmp_path / f"{rank}.pt").items():
            assert launched == KERNELS
            assert len([name for name in calls if name.startswith("c10d")]) == 1, calls
            assert len(calls) <= {5: 70, 50: 40}[classes], calls
