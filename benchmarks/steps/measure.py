"""How training steps are timed: blocks of steps one after the other, trainers in turns.

Each turn begins with a step that is not timed: while the GPU works on it, the host runs ahead, as it does in training.
The time of a block is that between two CUDA events, divided by its steps. A drifting clock meets all trainers alike.
"""

import statistics
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


def rounds(calls: dict[str, Call], count: int, steps: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of a step: one figure a trainer and round. `calls` has to be warm."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(count):
        for name, call in calls.items():
            found[name].append(_block(call, steps, device))
    return found


def _block(call: Call, steps: int, device: torch.device) -> float:
    call()
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(steps):
            call()
        return (time.perf_counter() - began) / steps
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(steps):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / steps


def host_seconds(call: Call, repeats: int = 7) -> float:
    """Median time the host needs to issue a step to a GPU that is idle; with whatever it waits for."""
    taken = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    torch.cuda.synchronize()
    return statistics.median(taken)


def busy(call: Call, steps: int = 3) -> tuple[float, float]:
    """Sum of the durations, in seconds, and number of all kernels and copies of a step, replayed graphs included."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            call()
        torch.cuda.synchronize()
    # Ranges that code names for the profiler appear beside the kernels in them.
    kernels = [
        event for event in profiler.events()
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]  # fmt: skip
    return sum(event.time_range.elapsed_us() for event in kernels) / 1e6 / steps, len(kernels) / steps


def spread(values: list[float]) -> dict[str, float]:
    """Median and middle half."""
    if len(values) < 2:
        values = values * 2
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def flops(model: torch.nn.Module, images: int, image_size: int) -> int:
    """Floating-point operations of a training step's products and convolutions, forward and backward, as
    `torch.utils.flop_counter` counts them on the model itself, on tensors without memory. A multiply-add is two."""
    import copy

    from torch.utils.flop_counter import FlopCounterMode

    twin = copy.deepcopy(model).to("meta").train()
    with FlopCounterMode(display=False) as counter:
        twin(torch.empty(images, 3, image_size, image_size, device="meta")).sum().backward()
    return counter.get_total_flops()
