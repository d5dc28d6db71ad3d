"""What the launchers choose is compiled for GPUs that are not here. ``pytest -s`` shows the table of registers."""

import os
import sys

import pytest

pytest.importorskip("triton")

from rich.console import Console

import i2c_fast.kernels
from benchmarks import codegen
from benchmarks.codegen import ARCHITECTURES, Resources
from benchmarks.sizes import BASE, ODD, SIZES, Size

ALL = (*SIZES, *ODD)


@pytest.fixture(scope="module")
def compiled() -> list[Resources]:
    everything = codegen.compile_all(sizes=ALL, processes=os.cpu_count() or 1)
    Console(width=160).print(codegen.table(everything))
    return everything


@pytest.mark.timeout(600)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_without_spills_and_fit_into_shared_memory(
    compiled: list[Resources], architecture: int
) -> None:
    mine = [one for one in compiled if one.architecture == architecture]
    assert len(mine) == len(codegen.all_launches(codegen.NAMES, ALL))
    assert not codegen.problems(mine)


def test_every_file_with_a_kernel_is_compiled() -> None:
    launched = {launch.kernel.__module__ for launch in codegen.all_launches(codegen.NAMES, ALL)}
    here = f"{i2c_fast.kernels.__name__}."
    modules = {name: module for name, module in sys.modules.items() if name.startswith(here)}
    with_launcher = {name for name, module in modules.items() if hasattr(module, "runs_triton")} - {f"{here}_triton"}
    assert launched == with_launcher


@pytest.mark.parametrize("bad", [{"local": 8}, {"stack": 16}, {"shared": 164 << 10}])
def test_spills_and_too_much_shared_memory_are_told(bad: dict[str, int]) -> None:
    good = Resources("op.kernel", 80, "BLOCK=8", 32, 0, 0, 163 << 10)
    assert not codegen.problems([good])
    assert len(codegen.problems([good, good._replace(**bad)])) == 1


@pytest.mark.parametrize("size", SIZES, ids=Size.changes)
def test_a_step_of_the_objective_is_seven_launches(size: Size) -> None:
    in_place, functional = codegen.launches_of("objective", size)[:7], codegen.launches_of("objective", size)[7:]
    names = [launch.kernel.__name__ for launch in in_place]
    assert names == [
        "_sample_pixels", "write_pair_rows", "_class_means", "total_losses", "_inter_image_backward", "_add_columns",
        "_update_centers",
    ]  # fmt: skip
    assert [launch.kernel.__name__ for launch in functional] == names


FEW = {"normalize_cam": 2, "label_cam": 4, "pooled_head": 2, "sample_pixels": 1, "gather_pixels": 2, "tap": 2}


@pytest.mark.parametrize("name", FEW)
def test_an_op_is_few_launches(name: str) -> None:
    assert len(codegen.launches_of(name, BASE)) == FEW[name]
