"""How a call on a GPU is measured: by two clocks, and by its kernels, waits of the host and memory.

Latency is the time between two CUDA events around one call. Before each call a buffer several times the size of the
second cache level is read, so that the call finds none of its inputs there; while the GPU reads, about 0.1 ms, the host
begins to issue the call, so that up to as much of the host's time is hidden.

Throughput is the time of many calls issued one after the other without waiting, until the GPU has done the last,
divided by their number: the slower of host and GPU decides, nothing is hidden, and what the cache can hold stays there.

Providers take turns in both: a drifting clock meets them all.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

REPEATS = 50
WARMUP = 5
# Throughput: rounds, and seconds and calls of one provider in each.
ROUNDS = 7
BLOCK_SECONDS = 0.02
BLOCK_CALLS = (10, 500)


def _nothing() -> None:
    pass


class Timed(NamedTuple):
    """`call`, timed, is given what `prepare`, not timed, returned."""

    call: Callable[[Any], object]
    prepare: Callable[[], Any] = _nothing


class Times(NamedTuple):
    """Microseconds of latency: the median, the middle half of the repeats, and the host's time to issue the call."""

    median_us: float
    low_us: float
    high_us: float
    host_us: float


def measure(calls: dict[str, Timed], repeats: int = REPEATS) -> dict[str, Times]:
    """Latency of all calls, in turns on the current GPU."""
    evict = _eviction()
    device_us: dict[str, list[float]] = {name: [] for name in calls}
    host_us: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(-WARMUP, repeats):
        for name, timed in calls.items():
            prepared = timed.prepare()
            torch.cuda.synchronize()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            evict()
            start.record()
            began = time.perf_counter()
            timed.call(prepared)
            issued = time.perf_counter()
            end.record()
            end.synchronize()
            if repeat >= 0:
                device_us[name].append(start.elapsed_time(end) * 1e3)
                host_us[name].append((issued - began) * 1e6)
    return {name: _summary(device_us[name], host_us[name]) for name in calls}


def _summary(device_us: list[float], host_us: list[float]) -> Times:
    low, median, high = statistics.quantiles(device_us, n=4)
    return Times(median, low, high, statistics.median(host_us))


def back_to_back(
    calls: dict[str, Timed], rounds: int = ROUNDS, synchronize: Callable[[], None] = torch.cuda.synchronize
) -> dict[str, float]:
    """Throughput: median microseconds a call. One that has to be prepared is left out: that would be timed too."""
    alone = {name: timed for name, timed in calls.items() if timed.prepare is _nothing}
    sizes = {name: _block_size(timed, synchronize) for name, timed in alone.items()}
    found: dict[str, list[float]] = {name: [] for name in alone}
    for _ in range(rounds):
        for name, timed in alone.items():
            found[name].append(_block_us(timed, sizes[name], synchronize))
    return {name: statistics.median(times) for name, times in found.items()}


def _block_size(timed: Timed, synchronize: Callable[[], None]) -> int:
    """Calls that take about `BLOCK_SECONDS` together."""
    fewest, most = BLOCK_CALLS
    for _ in range(WARMUP):
        timed.call(None)
    return min(max(int(BLOCK_SECONDS * 1e6 / max(_block_us(timed, fewest, synchronize), 1e-3)), fewest), most)


def _block_us(timed: Timed, count: int, synchronize: Callable[[], None]) -> float:
    synchronize()
    began = time.perf_counter()
    for _ in range(count):
        timed.call(None)
    synchronize()
    return (time.perf_counter() - began) / count * 1e6


def _eviction() -> Callable[[], object]:
    """A call that leaves nothing of what came before in the cache. It reads: written lines would still wait there to go
    to memory while the next call runs."""
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    buffer = torch.zeros(max(4 * cache, 256 << 20) // 4, device="cuda")
    total = torch.empty((), device="cuda")
    return lambda: torch.sum(buffer, 0, out=total)


def count_kernels(call: Callable[[], object]) -> int:
    """Kernels, copies and fills that the GPU ran for the call, replayed graphs included."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in profiler.events())


def count_synchronizations(call: Callable[[], object]) -> int:
    """How often the host waited for the GPU, as torch sees it."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in caught)


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes allocated at most during the call, beyond those before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    return peak


def captured(call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
    """A graph of the call, which has to be warm, and the tensors that each replay fills."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result
