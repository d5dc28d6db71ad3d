"""The clock of throughput, with a host's clock in place of a GPU."""

import pytest

from benchmarks import timing
from benchmarks.timing import Timed, back_to_back


def test_calls_are_issued_in_blocks_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call takes the host 1 µs to issue and the device 3 µs to do, which it is waited for at the end of a block."""
    now = 0.0
    events: list[str] = []

    def call(name: str) -> None:
        nonlocal now
        now += 1e-6
        events.append(name)

    def synchronize() -> None:
        nonlocal now
        since = len(events) - 1 - max((i for i, event in enumerate(events) if event == "wait"), default=-1)
        now += 2e-6 * since
        events.append("wait")

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now)
    calls = {"a": Timed(lambda _: call("a")), "b": Timed(lambda _: call("b")), "c": Timed(print, prepare=lambda: 1)}
    found = back_to_back(calls, rounds=3, synchronize=synchronize)
    assert found == {"a": pytest.approx(3.0), "b": pytest.approx(3.0)}  # and not the phase that needs another before it
    blocks = [block for block in "".join(event[0] for event in events).split("w") if block]
    assert blocks[-6:] == ["a" * 500, "b" * 500] * 3  # in turns, as many as take 20 ms, 500 at most
