"""What the repository promises of a training step on a GPU, held against a results file.

Ratios are of rows that took turns in one run. Where our step exists in several ways (as it is, compiled, as a graph),
the fastest of the run is meant.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Row = dict[str, Any]
USUAL = ("resnet50", 80)


class Promise(NamedTuple):
    """`measured` finds the figures in rows of one run; the worst of all runs counts."""

    text: str
    bound: float
    at_most: bool
    measured: Callable[[dict[str, Row]], list[float]]
    case: tuple[str, int] | None = USUAL  # backbone and images; None: all cases


def _fastest(rows: dict[str, Row]) -> Row | None:
    ours = [row for name, row in rows.items() if name.startswith("ours i2c")]
    return min(ours, key=lambda row: row["step_ms"]["median"], default=None)


def _against(other: str) -> Callable[[dict[str, Row]], list[float]]:
    def times_faster(rows: dict[str, Row]) -> list[float]:
        ours = _fastest(rows)
        both = ours is not None and other in rows
        return [rows[other]["step_ms"]["median"] / ours["step_ms"]["median"]] if ours and both else []

    return times_faster


def _of(provider: str, *path: str) -> Callable[[dict[str, Row]], list[float]]:
    def value(rows: dict[str, Row]) -> list[float]:
        found: Any = rows.get(provider)
        for key in path:
            found = found and found[key]
        return [] if found is None else [found]

    return value


def _mfu(rows: dict[str, Row]) -> list[float]:
    ours = _fastest(rows)
    return [ours["mfu"]] if ours else []


def _peak(rows: dict[str, Row]) -> list[float]:
    peaks = [rows[name]["peak_memory"] for name in ("ours cam", "ours i2c") if name in rows]
    return [peaks[1] / peaks[0] - 1] if len(peaks) == 2 and all(peaks) else []


def _waits(rows: dict[str, Row]) -> list[float]:
    return [row["synchronizations"] for name, row in rows.items() if name.startswith("ours")]


PROMISES = (
    Promise("I²C, N 80: µs of GPU time a step", 150, True, _of("ours i2c", "i2c", "us", "median")),
    Promise("I²C, N 80: fraction of the paired step", 0.003, True, _of("ours i2c", "i2c", "fraction", "median")),
    Promise(
        "I²C, N 10, in a graph: fraction of the paired step", 0.01, True,
        _of("ours i2c+graph", "i2c", "fraction", "median"), ("resnet50", 10),
    ),
    Promise("I²C, N 80: fraction of peak memory it adds", 0.01, True, _peak),
    Promise("ResNet50, N 80: times faster than the baseline (TF32)", 2, False, _against("baseline")),
    Promise("ResNet50, N 80: times faster than it in strict fp32", 4, False, _against("baseline strict fp32")),
    Promise("ResNet50, N 80: times faster than compile+amp", 1, False, _against("compile+amp")),
    Promise("ResNet50, N 80: MFU", 0.35, False, _mfu),
    Promise("ResNet50, N 80: MFU, the goal", 0.45, False, _mfu),
    Promise("waits for the GPU between logged steps", 0, True, _waits, None),
)  # fmt: skip
LOADER = "loader: images/s over those that the ResNet50 step consumes"
LOADER_BOUND = 1.3


def judge(rows: list[Row], loader_images_per_s: float | None = None) -> list[Row]:
    """Every promise: what was asked, what was measured, whether it is kept; None where it was not measured.

    Args:
        rows: of a results file of `train_step`.
        loader_images_per_s: of the fastest loader measured on the same machine.
    """
    found = []
    for text, bound, at_most, measured, case in PROMISES:
        values = [value for run in _runs(rows, case) for value in measured(run)]
        found.append(_verdict(text, bound, at_most, (max if at_most else min)(values, default=None)))
    consumed = max((ours["images_per_s"] for run in _runs(rows, USUAL) if (ours := _fastest(run))), default=None)
    ratio = loader_images_per_s / consumed if loader_images_per_s and consumed else None
    return [*found, _verdict(LOADER, LOADER_BOUND, False, ratio)]


def _verdict(text: str, bound: float, at_most: bool, measured: float | None) -> Row:
    kept = None if measured is None else measured <= bound if at_most else measured >= bound
    return {"promise": text, "bound": bound, "measured": measured, "kept": kept}


def _runs(rows: list[Row], case: tuple[str, int] | None) -> Iterator[dict[str, Row]]:
    """Timed rows of synthetic batches at 224 pixels, by provider, of each run and case."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        usual = row["image_size"] == 224 and row["data"] == "synthetic"
        if row.get("step_ms") and usual and case in (None, (row["backbone"], row["images"])):
            groups.setdefault((row["run"], row["backbone"], row["images"]), {})[row["provider"]] = row
    yield from groups.values()


def describe(bar: Row) -> str:
    """One line for the reader."""
    if bar["kept"] is None:
        return f"not measured: {bar['promise']} (bound {bar['bound']:.3g})"
    verdict = "kept" if bar["kept"] else "MISSED"
    return f"{verdict}: {bar['promise']} {bar['measured']:.3g} (bound {bar['bound']:.3g})"
