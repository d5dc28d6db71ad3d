"""What the launchers choose is compiled for GPUs that are not here. ``pytest -s`` shows the table of registers."""

import functools
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("triton")

import triton
from rich.console import Console
from torch import Tensor

import i2c_fast.kernels
from benchmarks import codegen
from benchmarks.codegen import ARCHITECTURES, Launch, Resources
from benchmarks.sizes import BASE, ODD, SIZES, Size
from i2c_fast.kernels.sample_pixels import MAX_ROUNDS

ALL = (*SIZES, *ODD)
MANY_SEEDS = next(size for size in SIZES if size.seeds > MAX_ROUNDS)  # which are drawn by a kernel of their own
# The architecture of the GPUs that the kernels are written for.
MAIN = 90
_PACKAGE = f"{i2c_fast.kernels.__name__}."
FILES = sorted(
    name.removeprefix(_PACKAGE)
    for name, module in sys.modules.items()
    if name.startswith(_PACKAGE) and hasattr(module, "runs_triton") and name != f"{_PACKAGE}_triton"
)


@pytest.fixture(scope="module", autouse=True)
def _empty_cache() -> Iterator[None]:
    """Kernels kept from an earlier run would hide what the compiler says now."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", folder)
        yield


def _dtypes(launch: Launch) -> tuple[Any, ...]:
    """Kernel, and of each argument the dtype, or that it is None: what alters more than addresses."""
    kinds = (str(one.dtype) if isinstance(one, Tensor) else one is None for one in launch.arguments)
    return launch.kernel.__name__, *kinds


def _constants(launch: Launch) -> tuple[Any, ...]:
    return launch.kernel.__name__, *sorted(launch.options.items())


@functools.cache
def launches_at(sizes: tuple[Size, ...]) -> list[Launch]:
    return codegen.all_launches(codegen.NAMES, sizes)


@functools.cache
def launches_for(architecture: int, exhaustive: bool) -> list[Launch]:
    """All of them, or a sample.

    The sample has, for one architecture, each kernel once with each set of dtypes and once with each set of block sizes
    and warps that the usual and the odd sizes lead to: these decide on registers and shared memory, and sizes that
    differ only in what 16 divides take the same. For the other architectures it has each kernel with each set of dtypes
    at the usual size, and the draw of many seeds: block sizes and warps do not depend on the architecture.
    """
    if exhaustive:
        return launches_at(ALL)
    if architecture == MAIN:
        launches, kinds = launches_at((BASE, *ODD)), (_dtypes, _constants)
    else:
        launches, kinds = launches_at((BASE,)), (_dtypes,)
        launches = launches + codegen.all_launches(("sample_pixels",), (MANY_SEEDS,))
    chosen, covered = [], set()
    for launch in launches:
        mine = {kind(launch) for kind in kinds}
        if not mine <= covered:
            chosen.append(launch)
            covered |= mine
    return chosen


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", FILES)
def test_kernels_compile_without_spills_and_fit_into_shared_memory(
    file: str, architecture: int, exhaustive: bool
) -> None:
    launches = [one for one in launches_for(architecture, exhaustive) if one.kernel.__module__ == _PACKAGE + file]
    assert launches, f"no launch in benchmarks/codegen.py reaches {file}.py"
    compiled = codegen.resources_of(launches, architecture)
    Console(width=160).print(codegen.table(compiled))
    assert len(compiled) == len(launches)
    assert not codegen.problems(compiled)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_sample_has_every_kernel(architecture: int) -> None:
    everything, sample = (
        {launch.kernel.__name__ for launch in launches_for(architecture, exhaustive)} for exhaustive in (True, False)
    )
    assert sample == everything


def test_launches_that_triton_specializes_alike_are_compiled_once_and_no_others_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys: list[str] = []

    def refuse(*, key: str, fn: Any, **_: Any) -> bool:
        keys.append(f"{fn.name} {key}")
        return True  # without compiling

    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", refuse)
    caught = [launch for name in codegen.NAMES for launch in codegen.launches_of(name, ODD[2])]
    codegen.compile_all(caught, 75, threads=1)  # an architecture for which no other test compiles
    assert len({launch.key() for launch in caught}) == len(set(keys))


def test_no_warp_of_update_centers_reads_a_counter_that_another_has_written(exhaustive: bool) -> None:
    """Nothing else shows a race without a GPU. Counters and labels are the kernel's only 64-bit values."""
    launches = [one for one in launches_for(MAIN, exhaustive) if one.kernel.__name__ == "_update_centers"]
    for compiled in codegen.compile_all(launches, MAIN):
        loads, barriers, stores = (
            [match.start() for match in re.finditer(instruction, compiled.asm["ptx"])]
            for instruction in (r"\bld\.global\.b64\b", r"\bbar\.sync\b", r"\bst\.global\.b64\b")
        )
        assert any(loads[-1] < barrier < stores[0] for barrier in barriers)


def test_compiling_leaves_no_trace_in_tritons_choice_of_driver() -> None:
    driver = triton.runtime.driver
    before = driver._active
    codegen.compile_all(codegen.launches_of("normalize_cam", BASE), MAIN)
    assert driver._active is before


@pytest.mark.parametrize("bad", [{"local": 8}, {"stack": 16}, {"shared": 164 << 10}])
def test_spills_and_too_much_shared_memory_are_told(bad: dict[str, int]) -> None:
    good = Resources("op.kernel", 80, "BLOCK=8", 32, 0, 0, 163 << 10, 100)
    assert not codegen.problems([good])
    assert len(codegen.problems([good, good._replace(**bad)])) == 1


@pytest.mark.parametrize("size", SIZES, ids=Size.changes)
def test_a_step_of_the_objective_is_seven_launches(size: Size) -> None:
    in_place, functional = codegen.launches_of("objective", size)[:7], codegen.launches_of("objective", size)[7:]
    names = [launch.kernel.__name__ for launch in in_place]
    assert names == [
        "_sample_few_pixels" if size.seeds <= MAX_ROUNDS else "_sample_pixels", "write_pair_rows", "_class_means",
        "total_losses", "_inter_image_backward", "_add_columns", "_update_centers",
    ]  # fmt: skip
    assert [launch.kernel.__name__ for launch in functional] == names


FEW = {"normalize_cam": 2, "label_cam": 4, "pooled_head": 2, "sample_pixels": 1, "gather_pixels": 2, "tap": 2}


@pytest.mark.parametrize("name", FEW)
def test_an_op_is_few_launches(name: str) -> None:
    assert len(codegen.launches_of(name, BASE)) == FEW[name]
