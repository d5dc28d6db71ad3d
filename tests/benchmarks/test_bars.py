"""Promises about GPU times are judged from a results file, as far as it can tell."""

from typing import Any

import pytest

from benchmarks.bars import judge


def row(op: str, provider: str, phase: str = "full", changes: str = "usual", **values: Any) -> dict[str, Any]:
    times = {"median_us": values.pop("us", 1.0), "fraction_of_read": values.pop("share", 1.0)}
    return {"op": op, "provider": provider, "changes": changes, "phases": {phase: times}, "peak_memory": 0, **values}


def objective(graph: float, **others: Any) -> list[dict[str, Any]]:
    times = {"loops": 5000, "eager": 600, "compile": 400, "fused": 200} | others
    return [row("objective", "fused+graph", us=graph)] + [row("objective", name, us=us) for name, us in times.items()]


def kept(rows: list[dict[str, Any]]) -> dict[str, bool]:
    return {bar["promise"]: bar["kept"] for bar in judge(rows)}


def test_all_promises_of_a_fast_objective_are_kept() -> None:
    found = kept(objective(40))
    assert len(found) == 6 and all(found.values())


@pytest.mark.parametrize(
    ("rows", "missed"),
    [
        (objective(41), {"fused+graph against eager", "fused+graph against compile", "fused+graph, µs"}),
        (objective(40, loops=3999), {"fused+graph against loops"}),
        (objective(40, fused=201), {"fused against eager"}),
    ],
)
def test_a_missed_promise_is_named(rows: list[dict[str, Any]], missed: set[str]) -> None:
    found = {
        promise.removeprefix("objective: ").partition(", times")[0] for promise, ok in kept(rows).items() if not ok
    }
    assert found == missed


def test_memory_beyond_the_inputs_is_judged() -> None:
    rows = objective(40)
    rows[-1]["peak_memory"] = 9_000_000
    assert not kept(rows)["objective: fused, bytes beyond its inputs"]


def test_ops_bound_by_reading_are_judged_at_the_usual_size_and_larger_ones() -> None:
    sizes = {"usual": 0.9, "images=320": 0.8, "images=10": 0.1}
    rows = [row("label_cam", "fused+graph", "forward", changes, share=share) for changes, share in sizes.items()]
    assert kept(rows) == {
        "label_cam, usual: fraction of a read-only reduction": True,
        "label_cam, images=320: fraction of a read-only reduction": False,
    }


def test_what_was_not_measured_is_not_judged() -> None:
    assert judge([{**row("objective", "fused"), "phases": {}}]) == []
