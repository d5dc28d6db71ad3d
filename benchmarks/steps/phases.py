"""Shares of a step: which phase the time between two marks belongs to.

On a GPU a mark is a CUDA event, elsewhere the processor's clock. Marks stand around the calls that a trainer names as
its sites, in a pass of its own: the pass that is timed has none. Of I²C they see the terms' forward and the centers'
update; its backward is part of ``backward``, and its whole cost is the paired difference.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import torch

from .setting import Site

# What no site covers: normalization by the caller, the losses' arithmetic, the log line, gaps.
REST = "rest"
PHASES = ("forward", "I²C", "backward", "guard", "optimizer", REST)


class Clock:
    """Seconds of each phase between `start` and `stop`; a phase inside another counts for itself alone."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = []
        self.open = [REST]

    def start(self) -> None:
        self.marks, self.open = [], [REST]
        self._mark()

    def stop(self) -> dict[str, float]:
        self._mark()
        if self.on_gpu:
            torch.cuda.synchronize()
        seconds: dict[str, float] = {}
        for (phase, begin), (_, end) in zip(self.marks, self.marks[1:], strict=False):
            seconds[phase] = seconds.get(phase, 0.0) + (begin.elapsed_time(end) / 1e3 if self.on_gpu else end - begin)
        return seconds

    def _mark(self) -> None:
        if self.on_gpu:
            event: Any = torch.cuda.Event(enable_timing=True)
            event.record()
        else:
            event = time.perf_counter()
        self.marks.append((self.open[-1], event))

    def inside(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, whose time counts for `phase`."""

        def marked(*arguments: Any, **options: Any) -> Any:
            self.open.append(phase)
            self._mark()
            try:
                return call(*arguments, **options)
            finally:
                self.open.pop()
                self._mark()

        return marked


@contextmanager
def watched(sites: list[Site], clock: Clock) -> Iterator[None]:
    """Sites marked on the clock, and as they were afterwards."""
    with ExitStack() as undo:
        for owner, attribute, phase in sites:
            own = attribute in vars(owner)
            original = getattr(owner, attribute)
            undo.callback(setattr, owner, attribute, original) if own else undo.callback(delattr, owner, attribute)
            setattr(owner, attribute, clock.inside(phase, original))
        yield


def shares(step: Callable[[], object], sites: list[Site], device: torch.device, steps: int = 5) -> dict[str, float]:
    """Fractions of a step, by phase: medians over `steps`, which add up to 1 but for that."""
    clock = Clock(device)
    found: list[dict[str, float]] = []
    with watched(sites, clock):
        step()
        for _ in range(steps):
            clock.start()
            step()
            seconds = clock.stop()
            whole = sum(seconds.values())
            found.append({phase: seconds.get(phase, 0.0) / whole for phase in PHASES})
    return {phase: median(one[phase] for one in found) for phase in PHASES}
