"""Promises about training steps are judged from a results file, as far as it can tell."""

from typing import Any

from benchmarks.steps.bars import describe, judge
from benchmarks.steps.loader_results import loader_rate

Row = dict[str, Any]


def row(provider: str, ms: float, images: int = 80, run: str = "1", **values: Any) -> Row:
    return {
        "backbone": "resnet50", "images": images, "image_size": 224, "data": "synthetic", "provider": provider,
        "run": run, "step_ms": {"median": ms}, "images_per_s": images / ms * 1e3, "mfu": 10 / ms, "i2c": None,
        "peak_memory": None, "synchronizations": 0, **values,
    }  # fmt: skip


def i2c(us: float, fraction: float) -> Row:
    return {"us": {"median": us}, "fraction": {"median": fraction}}


def fast(**changes: Row) -> list[Row]:
    rows = {
        "baseline": row("baseline", 40.0),
        "baseline strict fp32": row("baseline strict fp32", 80.0),
        "compile+amp": row("compile+amp", 20.0),
        "ours cam": row("ours cam", 20.0, peak_memory=10_000),
        "ours i2c": row("ours i2c", 20.0, peak_memory=10_099, i2c=i2c(150, 0.003)),
        "ours i2c+graph": row("ours i2c+graph", 20.0, images=10, i2c=i2c(40, 0.01)),
    }
    return list({**rows, **changes}.values())


def missed(rows: list[Row], loader: float | None = 5200.0) -> list[str]:
    return [bar["promise"] for bar in judge(rows, loader) if bar["kept"] is False]


def test_all_promises_of_a_fast_step_are_kept() -> None:
    found = judge(fast(), 5200.0)
    assert len(found) == 11 and all(bar["kept"] for bar in found)


def test_a_missed_promise_is_named() -> None:
    slow = {
        "I²C, N 80: µs": {"ours i2c": row("ours i2c", 20, i2c=i2c(151, 0.003))},
        "I²C, N 80: fraction of the paired": {"ours i2c": row("ours i2c", 20, i2c=i2c(150, 0.0031))},
        "I²C, N 10": {"ours i2c+graph": row("ours i2c+graph", 20, images=10, i2c=i2c(40, 0.011))},
        "I²C, N 80: fraction of peak": {"ours cam": row("ours cam", 20, peak_memory=9_990)},
        "ResNet50, N 80: times faster than the baseline": {"baseline": row("baseline", 39)},
        "ResNet50, N 80: times faster than it in strict": {"baseline strict fp32": row("baseline strict fp32", 79)},
        "ResNet50, N 80: times faster than compile": {"compile+amp": row("compile+amp", 19)},
        "waits": {"ours cam": row("ours cam", 20, synchronizations=1)},
    }
    for promise, changes in slow.items():
        assert [text[: len(promise)] for text in missed(fast(**changes))] == [promise]


def test_mfu_has_a_bound_and_a_goal() -> None:
    assert missed(fast(**{"ours i2c": row("ours i2c", 20, mfu=0.4)})) == ["ResNet50, N 80: MFU, the goal"]


def test_a_loader_that_delivers_too_little_is_told() -> None:
    assert missed(fast(), 5199.0) == ["loader: images/s over those that the ResNet50 step consumes"]


def test_the_fastest_of_our_ways_counts() -> None:
    rows = fast(**{"baseline": row("baseline", 30.0)})
    assert "ResNet50, N 80: times faster than the baseline (TF32)" in missed(rows)
    assert missed([*rows, row("ours i2c+compile", 15.0)], 1e9) == []


def test_ratios_are_of_one_run() -> None:
    rows = [row("baseline", 40.0, run="1"), row("ours i2c", 30.0, run="2")]
    judged = {bar["promise"]: bar["measured"] for bar in judge(rows)}
    assert judged["ResNet50, N 80: times faster than the baseline (TF32)"] is None


def test_what_was_not_measured_is_said_so() -> None:
    found = judge([{**row("ours i2c", 1.0), "step_ms": None}, {**row("ours cam", 1.0), "image_size": 32}])
    assert all(bar["kept"] is None and describe(bar).startswith("not measured: ") for bar in found)


def test_of_the_loaders_the_fastest_of_ours_counts() -> None:
    rates = {"pil": 900.0, "opencv": 300.0, "dali gpu": 700.0}
    rows = [{"provider": name, "images_per_second": {"median": rate}} for name, rate in rates.items()]
    assert loader_rate({"rows": rows}) == 700.0
    assert loader_rate(None) is None
