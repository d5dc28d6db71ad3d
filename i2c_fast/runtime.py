"""The machine a run is on: device, precision, determinism and the one source of randomness."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import nn

from .errors import UserError
from .world import ALONE, World

ModuleType = TypeVar("ModuleType", bound=nn.Module)
Precision = Literal["bf16", "fp16", "tf32", "fp32", "fp64"]

# What autocast computes convolutions and products in; the other precisions go without it.
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """Device and precision of a model's forward, and the ranks that compute it together."""

    device: torch.device
    precision: Precision = "fp32"
    world: World = ALONE

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and losses."""
        return torch.float64 if self.precision == "fp64" else torch.float32

    def move(self, model: ModuleType) -> ModuleType:
        """Move a model to the device, in the memory format its convolutions are fastest in."""
        model.to(self.device, self.dtype)
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def autocast(self) -> AbstractContextManager[object]:
        """Context of the model's forward."""
        if self.precision not in AUTOCAST:
            return nullcontext()
        return torch.autocast(self.device.type, AUTOCAST[self.precision])


def open_runtime(
    device: str,
    precision: Literal["auto"] | Precision,
    deterministic: bool = False,
    threads: int = 0,
    world: World = ALONE,
) -> Runtime:
    """Resolve the configured device and precision; set determinism and, if not 0, the threads of this process.

    ``tf32`` and ``fp32`` differ on NVIDIA GPUs alone: products and convolutions of fp32 round their inputs to 10 bits,
    or do not. ``fp64`` is for checks.

    Raises:
        UserError: a device this machine or this torch does not have.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UserError(f"run.device={device} is not one of auto, cpu, cuda, cuda:N")
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    name = f"cuda:{world.local_rank}" if name == "cuda" and not world.alone else name
    try:
        resolved = torch.device(name)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"run.device={device} cannot be used here ({reason}); run.device=cpu always can") from None
    if threads:
        torch.set_num_threads(threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it; without it torch refuses
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    found = fastest_precision(resolved) if precision == "auto" else precision
    if resolved.type == "cuda":
        torch.backends.cudnn.allow_tf32 = found != "fp32"
        torch.set_float32_matmul_precision("highest" if found == "fp32" else "high")
    return Runtime(resolved, found, world)


def fastest_precision(device: torch.device) -> Precision:
    """The fastest precision that trains to the same errors: bf16 where a GPU has it, else fp16; fp32 on processors."""
    if device.type != "cuda":
        return "fp32"
    with torch.cuda.device(device):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


# How the libraries word it: torch of GPUs and of processors, NumPy, OpenCV, cuBLAS.
_OUT_OF_MEMORY = re.compile(r"out of memory|insufficient memory|not enough memory|allocate memory|ALLOC_FAILED", re.I)
_ASKED_FOR = re.compile(r"allocate ([\d.]+ (?:bytes|[KMGTP]i?B))")


@contextmanager
def memory_errors(way_out: str) -> Iterator[None]:
    """Make one line of an allocation that fails inside, on the host or on a GPU.

    Args:
        way_out: what to lower, after a semicolon.

    Raises:
        UserError: memory ran out.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOMEM
        if not (full or isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error))):
            raise
        asked = _ASKED_FOR.search(str(error))
        raise UserError(f"out of memory{f' (asked for {asked[1]})' if asked else ''}; {way_out}") from None


def seed_all(*parts: int) -> None:
    """Seed torch's generators from the given numbers.

    Called before each step with (run seed, step): what a step draws then depends on nothing that went before, so a
    resumed run draws what the undisturbed one would.
    """
    torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]))
