"""How a call on a GPU is measured: time with a cold cache, kernels, waits of the host, memory.

A time is that between two CUDA events around the call. Before each call a buffer several times the size of the second
cache level is read, so that the call finds none of its inputs there; while the GPU reads, about 0.1 ms, the host begins
to issue the call, as a host that runs ahead in training does. Providers take turns: a drifting clock meets them all.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

REPEATS = 50
WARMUP = 5


class Timed(NamedTuple):
    """`call`, timed, is given what `prepare`, not timed, returned."""

    call: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None


class Times(NamedTuple):
    """Microseconds: the median, the middle half of the repeats, and what the host needed to issue the call."""

    median_us: float
    low_us: float
    high_us: float
    host_us: float


def measure(calls: dict[str, Timed], repeats: int = REPEATS) -> dict[str, Times]:
    """Time all calls in turns on the current GPU."""
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
