"""No kernel of the objective reads a byte before or behind a tensor: pages there end the process that touches them."""

import ctypes
import mmap
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from i2c_fast.kernels import inter_image_loss, tap
from i2c_fast.kernels._common import Distance

BATCHES = {
    "unpaired": [0, 0, 1],
    "ignored": [-100, 0, 0, -100],
    "many members": [2] * 37 + [1] * 4,
    "out of range": [0, 2**40, -7, 0],
}


def guarded(tensor: Tensor, at_end: bool) -> Tensor:
    """A copy that starts where a page starts, or ends where one ends, between two pages without access."""
    size = tensor.numel() * tensor.element_size()
    pages = max(1, -(-size // mmap.PAGESIZE)) * mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, *[ctypes.c_size_t] * 5]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    start = libc.mmap(None, pages + 2 * mmap.PAGESIZE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 2**64 - 1, 0)
    for guard in (start, start + mmap.PAGESIZE + pages):
        assert libc.mprotect(guard, mmap.PAGESIZE, 0) == 0
    address = start + mmap.PAGESIZE + (pages - size if at_end else 0)
    memory = (ctypes.c_char * max(size, 1)).from_address(address)
    return torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape).copy_(tensor)


def _train(labels: list[int], at_end: bool, distances: Sequence[Distance]) -> None:
    """Forward and backward with every input, and all that the launchers allocate, between guards."""

    def guard(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocated(*arguments: Any, **options: Any) -> Tensor:
            memory = allocate(*arguments, **options)
            return guarded(memory, at_end) if memory.numel() and memory.is_contiguous() else memory

        return allocated

    features = guarded(torch.randn(len(labels), 5, 2, 3), at_end).requires_grad_()
    indices = guarded(torch.randint(6, (len(labels), 3), dtype=torch.int32), at_end)
    centers, classes = guarded(torch.randn(3, 5), at_end), guarded(torch.tensor(labels), at_end)
    torch.empty, torch.Tensor.new_empty = guard(torch.empty), guard(torch.Tensor.new_empty)  # type: ignore[method-assign]
    for distance in distances:
        slots = tap(features, 3)[1]
        out = inter_image_loss(features, indices, classes, centers, slots=slots, groups=classes, distance=distance)
        (out.sc + out.gc).backward()


def _train_all(exhaustive: bool) -> None:
    # Addresses do not depend on the distance: one is guarded at the start, the other at the end.
    both = get_args(Distance)
    allocations = torch.empty, torch.Tensor.new_empty
    for name, labels in BATCHES.items():
        for at_end in (False, True):
            print(f"{name}, {at_end=}", flush=True)  # the last line names the batch that ended the process
            _train(labels, at_end, both if exhaustive else both[at_end : at_end + 1])
            torch.empty, torch.Tensor.new_empty = allocations  # type: ignore[method-assign]


def _read_outside(_: bool) -> None:
    ctypes.string_at(guarded(torch.zeros(3), True).data_ptr() + 12, 4)


@pytest.mark.parametrize(("function", "ends"), [(_train_all, False), (_read_outside, True)])
def test_no_read_outside_of_a_tensor(function: Callable[[bool], None], ends: bool, exhaustive: bool) -> None:
    process = multiprocessing.get_context("spawn").Process(target=function, args=(exhaustive,))
    process.start()
    process.join()
    assert (process.exitcode == -signal.SIGSEGV) == ends and process.exitcode is not None and process.exitcode <= 0
