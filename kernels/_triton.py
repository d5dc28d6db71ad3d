"""Triton or inert stand-ins for it, and which backend runs the ops.

``I2C_FAST_BACKEND``, read once when this is imported:
``auto`` (default) runs Triton kernels on GPU tensors and the PyTorch references on all others; ``reference`` runs the
references everywhere; ``interpret`` runs the kernels on CPU tensors through Triton's interpreter, to debug and test.
"""

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("auto", "reference", "interpret")
HAS_TRITON = importlib.util.find_spec("triton") is not None
BACKEND = os.environ.get("I2C_FAST_BACKEND", "auto")
if BACKEND not in BACKENDS:
    raise ValueError(f"I2C_FAST_BACKEND={BACKEND} is not one of {', '.join(BACKENDS)}")
if BACKEND == "interpret":
    if not HAS_TRITON:
        raise ImportError("I2C_FAST_BACKEND=interpret needs Triton; install triton, or leave it unset", name="triton")
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when a kernel is defined

if HAS_TRITON:
    import triton
    import triton.language as tl
else:

    class _Inert:
        """Lets kernels be defined, not launched: any attribute is itself, and as a decorator it does nothing."""

        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self, function: Any = None, *_: Any, **__: Any) -> Any:
            return self if function is None else function

    triton = tl = _Inert()

__all__ = ["BACKEND", "HAS_TRITON", "cdiv", "next_power_of_2", "runs_triton", "tl", "triton"]


# Triton's own serve kernels too, which costs the host over a microsecond a call; a training step makes a dozen.
def cdiv(size: int, block: int) -> int:
    """How many blocks cover a size."""
    return -(-size // block)


def next_power_of_2(size: int) -> int:
    """The least power of two that is not less than `size`, at least 1."""
    return 1 << max(size - 1, 0).bit_length()


def runs_triton(tensor: Tensor) -> bool:
    """Whether the ops run their Triton kernel on this tensor; fp64 is the references' alone."""
    if tensor.dtype == torch.float64:
        return False
    if BACKEND == "interpret":
        return tensor.device.type == "cpu"
    return HAS_TRITON and BACKEND == "auto" and tensor.is_cuda
