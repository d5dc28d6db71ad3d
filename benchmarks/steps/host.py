"""What the host does in a step: the time in which a GPU would wait for it, if it were infinitely fast.

No GPU is needed. Triton launches are noted and not run, and the model has its real number of layers at a sixteenth of
its channels, on two classes' images of 32 pixels, on the CPU: what is left is Python, torch's dispatcher, autograd and
the allocator, and of each torch call a little arithmetic in place of a launch. So it is an estimate of the host's part,
and says nothing of what the launches themselves would cost. Only ratios within one run mean something: all figures are
fractions of the step of `ours cam`, which takes turns with the others.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any, cast

import torch
from rich.table import Table
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from i2c_fast import kernels
from i2c_fast.errors import UserError
from i2c_fast.kernels._triton import HAS_TRITON
from i2c_fast.models.backbones import BACKBONES, Body, find_backbone, register_backbone

from .phases import PHASES, Clock, watched
from .providers import PROVIDERS
from .setting import Setting, Trainer, synthetic_batch

Row = dict[str, Any]
NARROW = 16  # divides every width of the three bodies
CPU = torch.device("cpu")
TRAINERS = ("ours cam", "ours i2c", "eager+amp")
# What surrounds the model's forward and backward.
AROUND = ("I²C", "guard", "optimizer", "rest")


def narrow_backbone(name: str) -> str:
    """Registers the backbone at a sixteenth of its width; returns its name."""
    narrow = f"{name}/{NARROW}"
    if narrow not in BACKBONES:
        wide = find_backbone(name)
        register_backbone(narrow, partial(_narrow_body, name), head_width=wide.head_width // NARROW)
    return narrow


def _narrow_body(name: str) -> Body:
    body = cast(Any, find_backbone(name).build())
    for module in list(body.modules()):
        for key, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(module, key, nn.Conv2d(
                    _width(child.in_channels), _width(child.out_channels), cast(Any, child.kernel_size),
                    cast(Any, child.stride), cast(Any, child.padding), bias=child.bias is not None,
                ))  # fmt: skip
            elif isinstance(child, nn.BatchNorm2d):
                setattr(module, key, nn.BatchNorm2d(_width(child.num_features), child.eps, child.momentum))
    body.out_channels = _width(body.out_channels)
    return cast(Body, body)


def _width(channels: int) -> int:
    return channels if channels == 3 else channels // NARROW


@contextmanager
def stubbed_kernels() -> Iterator[list[str]]:
    """The Triton path on CPU tensors, its launches noted in the list that is given and not run.

    Raises:
        UserError: triton is not installed.
    """
    if not HAS_TRITON:
        raise UserError("--host notes Triton launches, and triton is not installed: pip install triton")
    from triton.runtime.jit import JITFunction

    launched: list[str] = []
    with ExitStack() as undo:
        for name in (f"{kernels.__name__}.{module.name}" for module in pkgutil.iter_modules(kernels.__path__)):
            module = importlib.import_module(name)
            if hasattr(module, "runs_triton"):
                undo.callback(setattr, module, "runs_triton", module.runs_triton)
                setattr(module, "runs_triton", lambda tensor: True)  # noqa: B010
        undo.callback(setattr, JITFunction, "run", JITFunction.run)
        JITFunction.run = lambda kernel, *_, **__: launched.append(kernel.__name__)
        yield launched


class Calls(TorchDispatchMode):
    """Counts torch calls."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def measure_host(backbone: str, rounds: int, steps: int) -> list[Row]:
    """One row a trainer: fractions of the step of `ours cam`, torch calls, Triton launches."""
    setting = Setting(narrow_backbone(backbone), images=4, image_size=32, classes=1000)
    with stubbed_kernels() as launched:
        running = {name: PROVIDERS[name](replace(setting), CPU) for name in TRAINERS}
        batch = synthetic_batch(setting, CPU)
        rows = {}
        for name, trainer in running.items():
            _never_skip(trainer)
            for _ in range(3):
                trainer.step(batch)
            launched.clear()
            with Calls() as calls:
                trainer.step(batch)
            rows[name] = {
                "backbone": backbone, "provider": name, "torch_calls": calls.count, "triton_launches": len(launched),
            }  # fmt: skip
        seconds: dict[str, list[dict[str, float]]] = {name: [] for name in running}
        for _ in range(rounds):
            for name, trainer in running.items():
                seconds[name] += [_phases(trainer, batch) for _ in range(steps)]
    base = [sum(one.values()) for one in seconds[TRAINERS[0]]]
    for name, found in seconds.items():

        def fraction(phases: tuple[str, ...], found: list[dict[str, float]] = found) -> float:
            return median(sum(one.get(p, 0.0) for p in phases) / whole for one, whole in zip(found, base, strict=True))

        rows[name] |= {
            "step": fraction(PHASES),
            "around_the_model": fraction(AROUND),
            "phases": {phase: fraction((phase,)) for phase in PHASES},
        }
    return list(rows.values())


def _never_skip(trainer: Trainer) -> None:
    """Kernels that do not run leave what memory held, which the guard may find not finite. On a GPU the optimizer's
    kernel is launched all the same; on a CPU it would return at once."""
    optimizer: Any = trainer.optimizer
    step = optimizer.step

    def always() -> None:
        optimizer.found_inf = None
        step()

    optimizer.step = always


def _phases(trainer: Trainer, batch: Any) -> dict[str, float]:
    clock = Clock(CPU)
    with watched(trainer.sites, clock):
        clock.start()
        trainer.step(batch)
        return clock.stop()


def host_table(backbone: str, rows: list[Row]) -> Table:
    """Fractions of the step of `ours cam`."""
    title = f"{backbone}: host time with stubbed kernels, as fractions of the step of {TRAINERS[0]}"
    out = Table(title=title, title_justify="left")
    for heading in ("provider", "step", *PHASES, "around the model", "torch calls", "Triton launches"):
        out.add_column(heading, justify="left" if heading == "provider" else "right")
    for row in rows:
        fractions = (row["step"], *row["phases"].values(), row["around_the_model"])
        counts = str(row["torch_calls"]), str(row["triton_launches"])
        out.add_row(row["provider"], *(f"{fraction:.3f}" for fraction in fractions), *counts)
    return out
