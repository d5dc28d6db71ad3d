"""Kernels that are launched without Triton's binder: the same as with it. No GPU: the driver is a stub."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

from benchmarks.host_time import stub
from benchmarks.objective import fused, make_batch
from benchmarks.sizes import Size
from i2c_fast.kernels import _launch
from i2c_fast.kernels._launch import launch

Launched = list[tuple[Any, ...]]


@triton.jit
def _scale(p_x, p_y, factor, size, stride, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b = tl.load(p_x + o * stride, mask=o < size, other=0.0)
    if p_y is not None:
        tl.store(p_y + o, (b * factor).to(p_y.dtype.element_ty), mask=o < size)


NOTES: Launched = []
STUB = stub(NOTES)  # one for all tests: Triton's compiled kernels stay with the driver that loaded them


@pytest.fixture
def launched() -> Iterator[Launched]:
    """What came to the driver, with nothing kept from before."""
    before = triton.runtime.driver._active
    NOTES.clear()
    _launch._kept.clear()
    triton.runtime.driver.set_active(STUB)
    try:
        yield NOTES
    finally:
        triton.runtime.driver.set_active(before)
        _launch._kept.clear()


X, HALF = torch.zeros(64), torch.zeros(64, dtype=torch.float16)
# Of each two neighbors, one thing that Triton specializes for is different, or looks the same and is not.
CASES: list[tuple[Any, ...]] = [
    (X, X, 2.0, 32, 2), (X[1:], X, 2.0, 32, 2), (X, X[1:], 2.0, 32, 2), (X, X, 2.0, 33, 2), (X, X, 2.0, 33, 1),
    (X, X, 1.0, 33, 1), (X, X, 1, 33, 1), (X, X, 0, 33, 1), (X, X, 0.0, 33, 1), (X, None, 0.0, 33, 1),
    (X, HALF, 0.0, 33, 1), (HALF, HALF, 0.0, 33, 1), (HALF, HALF, 0.0, 33, 1 << 31), (HALF, HALF, 0.0, 33, 1 << 32),
]  # fmt: skip

GRIDS = (((3, 2), 16), ((3, 2), 32), ((5,), 32))


def plain(note: tuple[Any, ...]) -> tuple[Any, ...]:
    """Tensors as places in memory, so that notes can be compared."""
    return tuple((one.data_ptr(), one.dtype) if isinstance(one, Tensor) else one for one in note)


def test_kept_kernels_are_launched_as_triton_launches_them(launched: Launched) -> None:
    def run(how: Any) -> list[tuple[Any, ...]]:
        launched.clear()
        for grid, block in GRIDS:
            for case in CASES:
                how(_scale, grid, *case, BLOCK=block, num_warps=1)
        return [plain(note) for note in launched]

    expected = run(lambda kernel, grid, *arguments, **options: kernel[grid](*arguments, **options))
    assert run(launch) == expected
    assert len(_launch._kept) == len(GRIDS) * (len(CASES) - 2)  # two cases differ in the value of a float alone
    assert run(launch) == expected


def test_a_step_launches_the_same_again_and_no_kernel_passes_the_binder_twice(
    launched: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in _modules_that_run_triton():
        monkeypatch.setattr(module, "runs_triton", lambda _: True)
    size, device = Size(8, 20, 3, 64, 7, 7, 64), torch.device("cpu")
    step, problem = fused(size, device, in_place=True), make_batch(size, device)
    step(*problem)
    first = [_without_addresses(note) for note in launched]
    launched.clear()
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", None)  # raises if it is called
    step(*problem)
    assert [_without_addresses(note) for note in launched] == first
    assert len(first) == 7


def _modules_that_run_triton() -> list[Any]:
    import importlib
    import pkgutil

    from i2c_fast import kernels

    modules = [importlib.import_module(f"{kernels.__name__}.{m.name}") for m in pkgutil.iter_modules(kernels.__path__)]
    return [module for module in modules if hasattr(module, "runs_triton")]


def _without_addresses(note: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple((one.shape, one.stride(), one.dtype) if isinstance(one, Tensor) else one for one in note)


def test_where_triton_is_not_one_that_was_read_its_binder_is_used(
    launched: Launched, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, hip, keeps in (("3.6.0", None, True), ("3.7.1", None, True), ("3.8.0", None, False),
                                ("3.7.1", "6.4", False)):  # fmt: skip
        monkeypatch.setattr(triton, "__version__", version)
        monkeypatch.setattr(torch.version, "hip", hip)
        assert _launch._keeps() is keeps
    monkeypatch.setattr(_launch, "KEEPS", False)
    for _ in range(2):
        launch(_scale, (1,), *CASES[0], BLOCK=16, num_warps=1)
    assert not _launch._kept
    assert plain(launched[0]) == plain(launched[1])


def test_a_launch_that_gives_no_compiled_kernel_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _launch._kept.clear()
    monkeypatch.setattr(triton.runtime.jit.JITFunction, "run", lambda *_, **__: object())
    launch(_scale, (1,), *CASES[0], BLOCK=16, num_warps=1)
    assert not _launch._kept


def test_sizes_that_never_repeat_do_not_fill_memory(launched: Launched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "MAX_KEPT", 3)
    for size in range(33, 40, 2):
        launch(_scale, (1,), X, X, 2.0, size, 2, BLOCK=16, num_warps=1)
        assert 0 < len(_launch._kept) <= 3
    assert len(launched) == 4
