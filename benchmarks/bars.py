"""What the repository promises of its kernels on a GPU, held against a results file."""

from typing import Any

Row = dict[str, Any]

# The objective at the usual size: provider, other provider, how many times faster at least.
SPEEDUPS = (
    ("fused+graph", "eager", 15),
    ("fused+graph", "compile", 10),
    ("fused", "eager", 3),
    ("fused+graph", "loops", 100),
)
OBJECTIVE_US = 40  # fused+graph
OBJECTIVE_PEAK_BYTES = 8e6  # fused, beyond its inputs
# Forward of the ops that are bound by reading x, at the usual size and larger ones.
READERS, FRACTION_OF_READ = ("label_cam", "pooled_head"), 0.85
LARGE = ("usual", "height=40 width=40", "images=320")


def judge(rows: list[Row]) -> list[Row]:
    """Each promise that `rows` can tell of: what was asked, what was measured, and whether it is kept."""
    found = []

    def add(promise: str, bound: float, measured: float, kept: bool) -> None:
        found.append({"promise": promise, "bound": bound, "measured": measured, "kept": kept})

    timed = {row["provider"]: row for row in _timed(rows, "objective") if row["changes"] == "usual"}
    times = {provider: row["phases"]["full"]["median_us"] for provider, row in timed.items()}
    for ours, other, least in SPEEDUPS:
        if ours in times and other in times:
            ratio = times[other] / times[ours]
            add(f"objective: {ours} against {other}, times faster", least, ratio, ratio >= least)
    if "fused+graph" in times:
        median = times["fused+graph"]
        add("objective: fused+graph, µs", OBJECTIVE_US, median, median <= OBJECTIVE_US)
    if "fused" in timed:
        peak = timed["fused"]["peak_memory"]
        add("objective: fused, bytes beyond its inputs", OBJECTIVE_PEAK_BYTES, peak, peak <= OBJECTIVE_PEAK_BYTES)
    for name in READERS:
        for row in _timed(rows, name):
            if row["provider"] == "fused+graph" and row["changes"] in LARGE:
                fraction = row["phases"]["forward"]["fraction_of_read"]
                promise = f"{name}, {row['changes']}: fraction of a read-only reduction"
                add(promise, FRACTION_OF_READ, fraction, fraction >= FRACTION_OF_READ)
    return found


def _timed(rows: list[Row], op: str) -> list[Row]:
    return [row for row in rows if row["op"] == op and row["phases"]]
