"""What the repository promises of its kernels on a GPU, held against a results file.

Graphs are compared with graphs, and single calls with single calls.
"""

from typing import Any, Literal

Row = dict[str, Any]
Clock = Literal["median_us", "back_to_back_us"]

# The objective at the usual size: clock, provider, other provider, how many times faster at least.
SPEEDUPS: tuple[tuple[Clock, str, str, float], ...] = (
    ("median_us", "fused+graph", "eager+graph", 8),
    ("median_us", "fused+graph", "plain tap+graph", 2),
    ("median_us", "fused+graph", "loops", 100),
    ("back_to_back_us", "fused", "eager", 3),
)
CLOCKS = {"median_us": "latency", "back_to_back_us": "back to back"}
OBJECTIVE_US = 40  # fused+graph
OBJECTIVE_PEAK_BYTES = 8e6  # fused, beyond its inputs
# Ops that are bound by reading x, of that many elements and more; the time of their products is added to what they are
# held against.
READERS = ("label_cam", "pooled_head")
LARGE = 80 * 1024 * 28 * 28
FRACTION_OF_READ = 0.85  # forward
FRACTION_OF_COPY = 0.80  # backward


def judge(rows: list[Row]) -> list[Row]:
    """Every promise: what was asked, what was measured, whether it is kept; None where `rows` cannot tell."""
    found = []
    measured = [row for row in rows if row["phases"]]
    usual = {row["provider"]: row for row in measured if row["op"] == "objective" and row["changes"] == "usual"}

    def of(provider: str, clock: str) -> float | None:
        return usual[provider]["phases"]["full"].get(clock) if provider in usual else None

    for clock, ours, other, least in SPEEDUPS:
        mine, theirs = of(ours, clock), of(other, clock)
        ratio = theirs / mine if mine and theirs else None
        found.append(_verdict(f"objective: {ours} against {other}, {CLOCKS[clock]}, times faster", least, False, ratio))
    found.append(_verdict("objective: fused+graph, µs", OBJECTIVE_US, True, of("fused+graph", "median_us")))
    peak = usual["fused"]["peak_memory"] if "fused" in usual else None
    found.append(_verdict("objective: fused, bytes beyond its inputs", OBJECTIVE_PEAK_BYTES, True, peak))
    for name in READERS:
        large = {row["changes"]: _fractions(row) for row in measured if row["op"] == name and _is_large(row)}
        for changes, (forward, backward) in (large or {"any size": (None, None)}).items():
            text = f"{name}, {changes}: fraction of"
            found.append(_verdict(f"{text} a read-only reduction, forward", FRACTION_OF_READ, False, forward))
            found.append(_verdict(f"{text} a copy, backward", FRACTION_OF_COPY, False, backward))
    return found


def _is_large(row: Row) -> bool:
    size = row["size"]
    elements = size["images"] * size["head"] * size["height"] * size["width"]
    return bool(row["provider"] == "fused+graph" and elements >= LARGE)


def _fractions(row: Row) -> tuple[float | None, float | None]:
    """Of the forward and of the backward. A backward has no graph of its own: it is what the whole takes longer, and
    not measured where the clock does not tell them apart."""
    forward, full, floors = row["phases"]["forward"], row["phases"]["full"], row.get("floors")
    backward_us = full["median_us"] - forward["median_us"]
    if floors is None or backward_us <= 0:  # a file of before has no floors
        return forward["fraction_of_read"], None
    backward = floors["backward"]
    return forward["fraction_of_read"], (backward["copy_us"] + backward["linear_us"]) / backward_us


def _verdict(promise: str, bound: float, at_most: bool, measured: float | None) -> Row:
    kept = None if measured is None else measured <= bound if at_most else measured >= bound
    return {"promise": promise, "bound": bound, "measured": measured, "kept": kept}
