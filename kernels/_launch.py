"""How kernels are launched: by Triton the first time, and from then on without its binder.

Triton finds out at each launch what it has specialized a kernel for: the dtypes of tensors, which addresses and numbers
16 divides, which numbers are 1. That takes the host longer than anything else in a launch. Here the compiled kernel
that it came to is kept under all that this depends on, the numbers as they are, and later launches go to it directly,
in the way of Triton's tutorials: ``compiled[grid](*arguments)``. A knob of Triton that is turned after a kernel's first
launch has no effect on the kept one.
"""

from typing import Any

import torch
from torch import Tensor

from ._triton import HAS_TRITON, triton

# Those whose sources were read: a compiled kernel takes all parameters, constants too, and looks up device and stream
# itself. Others launch each time as the first time.
VERSIONS = ("3.6", "3.7")
# A loop whose sizes never repeat would fill memory.
MAX_KEPT = 4096

_kept: dict[Any, tuple[Any, tuple[Any, ...]]] = {}


def _keeps() -> bool:
    """Not on AMD GPUs, where a kernel is also specialized for the size of each tensor's memory."""
    return HAS_TRITON and not torch.version.hip and str(triton.__version__).rpartition(".")[0] in VERSIONS


KEEPS = _keeps()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Tensor | float | None, **options: Any) -> None:
    """``kernel[grid](*arguments, **options)``.

    Args:
        kernel: a function under ``triton.jit``, whose ``constexpr`` parameters come last.
        grid: programs, in one to three dimensions.
        arguments: all parameters but those, in order; tensors on the current device.
        options: those, and options of Triton such as ``num_warps``; of each name always one type.
    """
    # A float is no number that kernels are specialized for, and may not be found under an equal integer.
    key = (
        kernel.fn, grid, *options.items(),  # a JITFunction hashes its source
        *[
            one if one is None or one.__class__ is int
            else float if one.__class__ is float
            else (one.dtype, one.get_device(), one.data_ptr() % 16)  # type: ignore[union-attr]
            for one in arguments
        ],
    )  # fmt: skip
    kept = _kept.get(key)
    if kept is not None:
        run, constants = kept
        run(*arguments, *constants)
        return
    compiled = kernel[grid](*arguments, **options)
    if KEEPS and isinstance(compiled, triton.compiler.CompiledKernel) and not kernel.pre_run_hooks:
        if len(_kept) >= MAX_KEPT:
            _kept.clear()
        names = kernel.arg_names[len(arguments) :]
        _kept[key] = compiled[(*grid, 1, 1)[:3]], tuple(options[name] for name in names)
