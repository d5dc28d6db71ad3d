"""What the machine at hand can do at best: the ceilings that measured times are held against."""

from functools import cache

import torch

from i2c_fast.kernels._triton import tl, triton

from .timing import Timed, measure

# 64 bytes a thread in flight, as four 16-byte loads.
READ_BLOCK = 2048
READ_STEPS = 8


@triton.jit
def _read(p_words, p_sums, words, BLOCK: tl.constexpr, STEPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sum STEPS blocks of fp32: the least that whoever needs every byte must do."""
    i_program = tl.program_id(0).to(tl.int64)
    b_sum = tl.zeros([BLOCK], tl.float32)
    for i_step in tl.static_range(STEPS):
        o_word = (i_program * STEPS + i_step) * BLOCK + tl.arange(0, BLOCK)
        b_sum += tl.load(p_words + o_word, mask=o_word < words, other=0.0)
    tl.store(p_sums + i_program, tl.sum(b_sum, 0))


@cache
def read_us(size: int) -> float:
    """Median time to read and sum `size` bytes that no cache holds: the faster of torch's sum and `_read`."""
    words = torch.randn(max(size // 4, 1), device="cuda")
    programs = triton.cdiv(len(words), READ_BLOCK * READ_STEPS)
    sums = torch.empty(programs, device="cuda")
    total = torch.empty((), device="cuda")
    sizes = {"BLOCK": READ_BLOCK, "STEPS": READ_STEPS, "num_warps": 4}
    by_torch = Timed(lambda _: torch.sum(words, 0, out=total))
    by_kernel = Timed(lambda _: _read[(programs,)](words, sums, len(words), **sizes))
    times = measure({"torch": by_torch, "kernel": by_kernel})
    return min(time.median_us for time in times.values())


@cache
def copy_us(size: int) -> float:
    """Median time of a copy that moves `size` bytes, half of them read and half written, and none of them cached."""
    source = torch.randn(max(size // 8, 1), device="cuda")
    target = torch.empty_like(source)
    return measure({"copy": Timed(lambda _: target.copy_(source))})["copy"].median_us


@cache
def linear_us(images: int, channels: int, classes: int, dtype: torch.dtype) -> dict[str, float]:
    """Median times of the products of [N, C] and [Y, C]: the forward's one, the backward's two, and all three."""
    x, weight, gradient = (
        torch.randn(*shape, device="cuda", dtype=dtype)
        for shape in ((images, channels), (classes, channels), (images, classes))
    )
    calls = {
        "forward": Timed(lambda _: x @ weight.t()),
        "backward": Timed(lambda _: (gradient @ weight, gradient.t() @ x)),
    }
    times = {name: time.median_us for name, time in measure(calls).items()}
    return {**times, "full": times["forward"] + times["backward"]}


def ceilings() -> dict[str, float]:
    """GB/s of a reduction and of a copy (bytes read plus written) of 1 GiB, and TFLOP/s of a bf16 product of 8192²."""
    size = 1 << 30
    source = torch.randn(size // 4, device="cuda")
    target = torch.empty_like(source)
    left, right = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    calls = {"copy": Timed(lambda _: target.copy_(source)), "matmul": Timed(lambda _: left @ right)}
    times = measure(calls, repeats=20)
    return {
        "read_GB_per_s": size / read_us(size) / 1e3,
        "copy_GB_per_s": 2 * size / times["copy"].median_us / 1e3,
        "matmul_bf16_TFLOP_per_s": 2 * 8192**3 / times["matmul"].median_us / 1e6,
    }
