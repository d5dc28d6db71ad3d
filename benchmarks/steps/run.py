"""One case of the benchmark, a backbone and a batch: providers checked, built, and timed in turns."""

import gc
import statistics
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from i2c_fast.data import TrainBatch
from i2c_fast.errors import UserError

from ..timing import count_synchronizations, peak_memory
from . import agreement, measure
from .phases import shares
from .providers import PAIRS, PROVIDERS
from .setting import Setting, Trainer, synthetic_batch

Row = dict[str, Any]
WARMUP = 6  # cuDNN chooses, compilers compile, graphs are captured
PAIR_ROUNDS = 4  # as many rounds for each pair as for all: its difference is a small part of a step


@dataclass
class Running:
    """A trainer that is warm, and its batch."""

    trainer: Trainer
    batch: TrainBatch
    own_memory: int  # bytes that stay allocated between steps

    def __call__(self) -> object:
        self.trainer.set_flags()
        return self.trainer.step(self.batch)


def run_case(
    setting: Setting, chosen: tuple[str, ...], device: torch.device, count: int, steps: int, matmul_rate: float | None
) -> list[Row]:
    """One row a provider; `matmul_rate` in FLOP/s, None without a GPU, where all times are ratios."""
    if any("compile" in name for name in chosen):
        torch._dynamo.reset()  # past a number of compilations of one function it gives up
    rows: dict[str, Row] = {}
    running: dict[str, Running] = {}
    check = agreement.check_setting(setting, device)
    for name in chosen:
        rows[name] = {
            **setting.facts(),
            "data": "synthetic", "provider": name, "step_ms": None, "ratio": None, "i2c": None, "shares": None,
        }  # fmt: skip
        found, ready = _right_and_warm(name, setting, check, device)
        rows[name] |= found
        if ready is not None:
            running[name] = ready
    if not running:
        return list(rows.values())

    calls: dict[str, Callable[[], object]] = dict(running)
    taken = measure.rounds(calls, count, steps, device)
    first = next(iter(taken))
    for name, values in taken.items():
        rows[name]["ratio"] = {
            "to": first, **measure.spread([a / b for a, b in zip(values, taken[first], strict=True)])
        }  # fmt: skip
        if running[name].trainer.sites and "+" not in name.removeprefix("eager+amp"):
            rows[name]["shares"] = shares(running[name], running[name].trainer.sites, device)
    for plain, i2c in PAIRS.items():
        if plain in running and i2c in running:
            pair = {name: calls[name] for name in (plain, i2c)}
            times = measure.rounds(pair, count * PAIR_ROUNDS, steps, device)
            rows[i2c]["i2c"] = _difference(pair, plain, i2c, times, matmul_rate is not None)
    if matmul_rate is not None:
        work = measure.flops(next(iter(running.values())).trainer.model, 1, setting.image_size) * setting.images
        for name, one in running.items():
            seconds, (busy, kernels) = statistics.median(taken[name]), measure.busy(one)
            rows[name] |= {
                "step_ms": {key: value * 1e3 for key, value in measure.spread(taken[name]).items()},
                "images_per_s": setting.images / seconds,
                "flops": work,
                "mfu": work / seconds / matmul_rate,
                "host_ms": measure.host_seconds(one) * 1e3,
                "busy_ms": busy * 1e3,
                "kernels": kernels,
                "synchronizations": count_synchronizations(one),
                # A graph has its memory from its capture on.
                "peak_memory": None if "graph" in name else one.own_memory + peak_memory(one),
            }
    return list(rows.values())


def _right_and_warm(name: str, setting: Setting, check: Setting, device: torch.device) -> tuple[Row, Running | None]:
    build = PROVIDERS[name]
    try:
        error, bound = agreement.gradient_error(build, check, device), _bound(name, setting)
        if not error <= bound:
            return {"status": f"wrong: relative error of the gradient {error:.2g}, allowed {bound:.2g}"}, None
        _free(device)
        before = _allocated(device)
        trainer = build(setting, device)
        trainer.set_flags()
        batch = trainer.prepare(synthetic_batch(setting, device))
        for _ in range(WARMUP):
            trainer.step(batch)
        _free(device)
    except UserError as problem:
        return {"status": f"skipped: {problem}"}, None
    except Exception as problem:  # whatever a provider raises is what the reader has to be told
        return {"status": f"failed: {type(problem).__name__}: {str(problem).partition(chr(10))[0]}"}, None
    return {"status": "ok", "error": error}, Running(trainer, batch, _allocated(device) - before)


def _bound(name: str, setting: Setting) -> float:
    """By the precision that a provider computes in."""
    own = {"baseline": "tf32", "baseline strict fp32": "fp32"}
    return agreement.BOUNDS[own.get(name, setting.precision)]


def _difference(
    pair: dict[str, Callable[[], object]], plain: str, i2c: str, times: dict[str, list[float]], on_gpu: bool
) -> Row:
    """What I²C adds to a step: by the paired times of each round, and by the durations of the kernels."""
    both = list(zip(times[plain], times[i2c], strict=True))
    found: Row = {"fraction": measure.spread([b / a - 1 for a, b in both])}
    if on_gpu:
        busy = {name: measure.busy(call)[0] for name, call in pair.items()}
        found |= {"us": measure.spread([(b - a) * 1e6 for a, b in both]), "busy_us": (busy[i2c] - busy[plain]) * 1e6}
    return found


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        with suppress(RuntimeError):
            torch.cuda.empty_cache()
        torch.cuda.synchronize()


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0
