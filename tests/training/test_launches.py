"""What a step costs beside forward, backward and optimizer, in calls of torch, on any machine."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from i2c_fast.config import Config
from i2c_fast.methods import METHODS
from i2c_fast.training import Trainer, build_trainer
from i2c_fast.training.optimizer import set_learning_rate

from ..methods.small import batch

# Calls that make the host wait for a GPU: reading a value back, a shape that depends on data, and a tensor made from
# Python numbers (`torch.tensor`), which is copied to the device.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "equal", "is_nonzero", "unique2")


class Calls(TorchDispatchMode):
    """Names of the torch calls made while it is open and not paused."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.paused:
            self.names.append(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))

    @contextmanager
    def pause(self) -> Iterator[None]:
        self.paused = True
        try:
            yield
        finally:
            self.paused = False


def trainer_of(tiny_config: Callable[..., Config], run: Path, *overrides: str) -> Trainer:
    trainer = build_trainer(tiny_config("stage0.epochs=0", *overrides), run, Console(quiet=True))
    trainer.method.train()
    set_learning_rate(trainer.train_step.optimizer, 0.01)
    return trainer


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_step_never_waits_for_the_device(tiny_config: Callable[..., Config], tmp_path: Path, method: str) -> None:
    trainer = trainer_of(tiny_config, tmp_path, f"stage1.method={method}", "run.precision=bf16")
    given = batch()
    trainer.train_step(given)  # the first step may set things up
    with Calls() as calls:
        trainer.train_step(given)
    assert not set(calls.names) & set(WAITS)


@pytest.mark.gpu
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_step_on_a_gpu_never_waits(tiny_config: Callable[..., Config], tmp_path: Path, method: str) -> None:
    overrides = (f"stage1.method={method}", "run.device=cuda", "run.deterministic=false", "run.precision=bf16")
    trainer = trainer_of(tiny_config, tmp_path, *overrides)
    given = batch()
    pinned = given._replace(
        **{name: part.pin_memory() for name, part in zip(given._fields[:4], given[:4], strict=True)}
    )
    trainer.train_step(pinned)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = trainer.train_step(pinned)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert values.isfinite().all()


def test_these_waits_are_seen() -> None:
    with Calls() as calls:
        values = torch.tensor([1.0, 2.0])
        values[0].item()
        values.nonzero()
    assert {"lift_fresh", "_local_scalar_dense", "nonzero"} <= set(calls.names) & set(WAITS)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_what_surrounds_forward_backward_and_optimizer_is_a_handful_of_calls(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    """As many for the 53 BatchNorms of ResNet50 as for the few of ResNet18."""
    trainer = trainer_of(tiny_config, tmp_path, f"model.backbone={backbone}", "model.head_width=8")
    given = batch()
    trainer.train_step(given)
    calls = Calls()

    def paused(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with calls.pause():
                return function(*arguments, **options)

        return call

    monkeypatch.setattr(trainer.method, "forward", paused(trainer.method.forward))
    monkeypatch.setattr(trainer.method, "after_step", paused(trainer.method.after_step))
    monkeypatch.setattr(Tensor, "backward", paused(Tensor.backward))
    monkeypatch.setattr(trainer.train_step.optimizer, "step", paused(trainer.train_step.optimizer.step))
    with calls:
        trainer.train_step(given)
    assert len(calls.names) < 40, calls.names
