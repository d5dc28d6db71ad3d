"""Compile the kernels without a GPU, as launches on one would, and report what each takes of a multiprocessor.

    python -m benchmarks.codegen                  all sizes for sm_80, sm_90 and sm_100
    python -m benchmarks.codegen --arch 90 --op label_cam

Every op runs forward and backward on tensors without memory (``device="meta"``); its launches are caught on their way
to the GPU and go through Triton's own path of specialization (divisibility by 16, arguments that are 1, None or
constant) and compilation for another target. So what is compiled is what the launchers choose, no signature written by
hand.
"""

import functools
import importlib
import os
import pkgutil
import re
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, get_args

import click
import torch
import triton
from rich.console import Console
from rich.table import Table
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from i2c_fast import kernels
from i2c_fast.kernels._common import Distance, Reduction, TotalReduction
from i2c_fast.kernels.sample_pixels import SeedChoice

from . import candidates
from .objective import ALPHA, THRESHOLD, fused, make_bank, make_batch
from .ops import OPS, gradients_of, upstream_of
from .sizes import ODD, SIZES, Size

ARCHITECTURES = (80, 90, 100)
# Bytes of shared memory that one block may use (CUDA C++ Programming Guide, compute capabilities).
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
META = torch.device("meta")


class Launch(NamedTuple):
    """A kernel as a launcher called it."""

    kernel: JITFunction
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def key(self) -> str:
        """Equal for launches that Triton specializes alike."""
        arguments = [_kind(argument) for argument in self.arguments]
        return f"{self.kernel.__name__} {arguments} {sorted(self.options.items())}"


class Resources(NamedTuple):
    """What one compiled kernel takes: registers a thread, bytes of stack, spills and shared memory, and its machine
    instructions (each once, in a loop or not; padding left out)."""

    kernel: str
    architecture: int
    constants: str
    registers: int
    stack: int
    local: int
    shared: int
    instructions: int


def _kind(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return str(argument.dtype), argument.data_ptr() % 16 == 0
    if isinstance(argument, int):
        return argument == 1, argument % 16 == 0, argument < 1 << 31
    return type(argument).__name__


class _Target:
    """Stands in for the driver of a GPU that is not there."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return self.architecture  # Triton keeps its compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def _launches() -> Iterator[list[Launch]]:
    """Catch launches, and let tensors without memory count as a GPU's."""
    caught: list[Launch] = []

    def catch(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        caught.append(Launch(kernel, arguments, options))

    run = JITFunction.run
    modules = [importlib.import_module(f"{kernels.__name__}.{m.name}") for m in pkgutil.iter_modules(kernels.__path__)]
    patched = {module: module.runs_triton for module in modules if hasattr(module, "runs_triton")}
    try:
        JITFunction.run = catch
        for module in patched:
            module.runs_triton = lambda tensor: tensor.dtype != torch.float64  # type: ignore[attr-defined]
        yield caught
    finally:
        JITFunction.run = run
        for module, original in patched.items():
            module.runs_triton = original  # type: ignore[attr-defined]


def launches_of(name: str, size: Size) -> list[Launch]:
    """All launches of an op's forward and backward, or of a step of the objective."""
    with _launches() as caught:
        if name in VARIANTS:
            VARIANTS[name](size)
        elif name == "objective":
            batch, bank = make_batch(size, META)
            for in_place in (True, False):
                fused(size, META, in_place)(batch, bank)
        else:
            problem = OPS[name].build(size, META)
            outputs = problem.providers["fused"](*problem.inputs)
            gradients_of(problem.inputs, outputs, upstream_of(outputs))
    return caught


def _variants_of_cam(size: Size) -> None:
    """Several labels an image, without bias, weights in half precision."""
    x = size.random(size.images, size.head, size.height, size.width, device=META).requires_grad_()
    weight, labels = torch.randn(size.classes, size.head, device=META), size.labels(META)
    for tensor in (weight, weight.to(size.torch_dtype)):
        tensor.requires_grad_()
        maps = kernels.label_cam(x, tensor, None, labels[:, None].expand(-1, 5), normalize=True)
        maps.backward(torch.randn_like(maps))
        kernels.pooled_head(x, tensor, None, labels)


def _variants_of_sampling(size: Size) -> None:
    """Image ids, half-precision maps, the first pixels."""
    maps = torch.rand(size.images, size.height, size.width, device=META).to(size.torch_dtype)
    seed, image_ids = torch.zeros(2, dtype=torch.int64, device=META), torch.arange(size.images, device=META)
    for choice in get_args(SeedChoice):
        kernels.sample_pixels(maps, size.seeds, THRESHOLD, seed, image_ids, choice)


def _variants_of_losses(size: Size) -> None:
    """Plain distances, groups, trained centers, one loss without gradient, masked updates."""
    centers, steps = make_bank(size, META)
    trained, labels = centers.clone().requires_grad_(), size.labels(META)
    features = size.random(size.images, size.features, size.height, size.width, device=META).requires_grad_()
    values = size.random(size.images, size.seeds, size.features, device=META).requires_grad_()
    indices = torch.zeros(size.images, size.seeds, dtype=torch.int32, device=META)
    of_class = kernels.class_means(values, labels)
    for distance in get_args(Distance):
        for each in get_args(Reduction):
            kernels.pair_consistency_loss(values, labels, labels, distance, each)[0].sum().backward()
            kernels.center_loss(of_class.means.detach(), of_class.labels, trained, distance, each)[0].sum().backward()
        for reduction in get_args(TotalReduction):
            sums = kernels.inter_image_loss(
                features, indices, labels, trained, groups=labels, distance=distance, reduction=reduction
            )
            for loss in (sums.sc + sums.gc, sums.sc, sums.gc):
                loss.backward(retain_graph=True)
    skip, draws = torch.zeros((), device=META), torch.zeros(2, dtype=torch.int64, device=META)
    for means in (of_class.means.detach(), values.detach()[:, 0]):
        kernels.update_centers(centers, steps, labels, means, ALPHA, skip=skip, draws=draws)


# Arguments that the benchmark does not vary.
VARIANTS: dict[str, Callable[[Size], None]] = {
    "variants of class maps": _variants_of_cam,
    "variants of sampling": _variants_of_sampling,
    "variants of losses": _variants_of_losses,
}
NAMES = (*candidates.NAMES, *VARIANTS)


def _sizes_of(name: str, sizes: tuple[Size, ...]) -> list[Size]:
    return list(sizes) if name in VARIANTS else candidates.sizes_of(name, sizes)


@functools.cache
def all_launches(names: tuple[str, ...], sizes: tuple[Size, ...]) -> list[Launch]:
    """Those of all ops at all sizes, one for each specialization, in one order."""
    found = [launch for name in names for size in _sizes_of(name, sizes) for launch in launches_of(name, size)]
    return list({launch.key(): launch for launch in found}.values())


# Triton parses a kernel as Python, and CPython counts how deep that parser is nested in all threads together: where
# they change places within it, it fails with SystemError (seen with 3.11.7).
_PARSING = threading.Lock()


@contextmanager
def _compiling_for(architecture: int) -> Iterator[None]:
    """Let Triton believe that it is on a GPU of this architecture."""
    driver, parse = triton.runtime.driver, JITFunction.parse
    before = driver._active

    def parse_alone(kernel: JITFunction) -> Any:
        with _PARSING:
            return parse(kernel)

    driver.set_active(_Target(architecture))
    JITFunction.parse = parse_alone
    try:
        yield
    finally:
        JITFunction.parse = parse
        driver.set_active(before)


def compile_all(launches: Sequence[Launch], architecture: int, threads: int | None = None) -> list[CompiledKernel]:
    """Compile as the launches would on a GPU of this architecture; whatever the compiler raises is raised here.

    Threads suffice: Triton's passes release Python's lock, and ptxas is a process of its own.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise ValueError("TRITON_INTERPRET=1 leaves nothing to compile: start without it")

    def compile_one(launch: Launch) -> CompiledKernel:
        return launch.kernel.run(*launch.arguments, grid=None, warmup=True, **launch.options)

    with _compiling_for(architecture), ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        return list(pool.map(compile_one, launches))


def resources_of(launches: Sequence[Launch], architecture: int, threads: int | None = None) -> list[Resources]:
    """Compile launches, and read the machine code's own records."""
    compiled = compile_all(launches, architecture, threads)
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        return list(pool.map(_resources, launches, compiled))


def _resources(launch: Launch, compiled: CompiledKernel) -> Resources:
    record = _resource_usage(compiled.asm["cubin"])
    constants = " ".join(f"{name}={value}" for name, value in launch.options.items())
    name = f"{launch.kernel.__module__.rpartition('.')[2]}.{launch.kernel.__name__}"
    tensors = [argument for argument in launch.arguments if isinstance(argument, Tensor)]
    dtypes = dict.fromkeys(str(one.dtype).partition(".")[2] for one in tensors if one.is_floating_point())
    return Resources(
        name, compiled.metadata.target.arch, f"{'/'.join(dtypes)} {constants}",
        record["REG"], record["STACK"], record["LOCAL"], compiled.metadata.shared, _instructions(compiled.asm["cubin"]),
    )  # fmt: skip


def _resource_usage(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(\w+)(?:\[0\])?:(\d+)", printed)}


def _instructions(cubin: bytes) -> int:
    """Instructions in the code sections of an ELF file, 16 bytes each since sm_70; a disassembler would take a second.

    Without those that do nothing (opcode 0x918, in the low 12 bits), with which code is filled up.
    """
    (table,), (size, number, names) = struct.unpack_from("<Q", cubin, 40), struct.unpack_from("<3H", cubin, 58)
    # Of a section's header: where its name stands, its offset and its length.
    headers = [struct.unpack_from("<I20xQQ", cubin, table + i * size) for i in range(number)]
    first_name = headers[names][1]
    code = [(start, length) for name, start, length in headers if cubin.startswith(b".text.", first_name + name)]
    words = [word for start, length in code for (word,) in struct.iter_unpack("<H14x", cubin[start : start + length])]
    return sum(word & 0xFFF != 0x918 for word in words)


def problems(compiled: list[Resources]) -> list[str]:
    """What is wrong with compiled kernels: registers spilled to memory, more shared memory than there is."""
    return [
        f"{one.kernel} sm_{one.architecture} {one.constants}: LOCAL {one.local} STACK {one.stack} SHARED {one.shared}"
        for one in compiled
        if one.local or one.stack or one.shared > SHARED_LIMIT[one.architecture]
    ]


def table(compiled: list[Resources]) -> Table:
    """A line for each kernel and configuration: registers by architecture, then the worst of the rest."""
    out = Table(title="Registers a thread; bytes; machine instructions", title_justify="left")
    architectures = sorted({one.architecture for one in compiled})
    fields = ("shared", "stack", "local", "instructions")
    for heading in ("kernel", "configuration", *(f"sm_{a}" for a in architectures), *fields):
        out.add_column(heading, justify="left" if heading in ("kernel", "configuration") else "right", overflow="fold")
    lines: dict[tuple[str, str], list[Resources]] = {}
    for one in compiled:
        lines.setdefault((one.kernel, one.constants), []).append(one)
    for (kernel, constants), group in sorted(lines.items()):
        registers = (max((one.registers for one in group if one.architecture == a), default=0) for a in architectures)
        worst = (max(getattr(one, field) for one in group) for field in fields)
        out.add_row(kernel, constants, *map(str, registers), *map(str, worst))
    return out


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--op", "names", multiple=True, type=click.Choice(NAMES), help="Only this op; may be repeated.")
@click.option("--arch", "architectures", multiple=True, type=click.Choice([str(a) for a in ARCHITECTURES]))
@click.option("--threads", type=click.IntRange(min=1), default=os.cpu_count(), show_default=True)
def main(names: tuple[str, ...], architectures: tuple[str, ...], threads: int) -> None:
    """Print what every kernel takes of a multiprocessor; exit status 1 if one spills or does not fit."""
    chosen = [int(architecture) for architecture in architectures] or ARCHITECTURES
    launches = all_launches(names or NAMES, (*SIZES, *ODD))
    compiled = [one for architecture in chosen for one in resources_of(launches, architecture, threads)]
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(compiled))
    for problem in problems(compiled):
        console.print(problem)
    console.print(f"{len(compiled)} kernels compiled")
    if problems(compiled):
        sys.exit(1)


if __name__ == "__main__":
    main()
