"""Promises about GPU times are judged from a results file, as far as it can tell."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from benchmarks.bars import judge
from benchmarks.sizes import BASE, Size


def row(op: str, provider: str, size: Size = BASE, **phases: dict[str, float]) -> dict[str, Any]:
    floor = {"read_us": 0.0, "copy_us": 60.0, "linear_us": 4.0}
    return {
        "op": op, "provider": provider, "size": asdict(size), "changes": size.changes(), "phases": phases,
        "floors": {"backward": floor}, "peak_memory": 0,
    }  # fmt: skip


def objective(graph: float, **others: float) -> list[dict[str, Any]]:
    times = {"loops": 4000, "eager+graph": 320, "plain tap+graph": 80, "eager": 600, "compile": 400, "fused": 200}
    # Of the latencies of single calls nothing is promised: they are hidden behind the eviction.
    return [
        row("objective", name, full={"median_us": 1.0 if name in ("eager", "fused") else us, "back_to_back_us": us})
        for name, us in {"fused+graph": graph, **times, **others}.items()
    ]


def bars(rows: list[dict[str, Any]]) -> dict[str, bool | None]:
    return {bar["promise"]: bar["kept"] for bar in judge(rows)}


def of_objective(rows: list[dict[str, Any]]) -> dict[str, bool | None]:
    found = bars(rows).items()
    return {name.removeprefix("objective: "): kept for name, kept in found if name.startswith("objective")}


def test_all_promises_of_a_fast_objective_are_kept() -> None:
    found = of_objective(objective(40))
    assert len(found) == 6 and all(found.values())


@pytest.mark.parametrize(
    ("rows", "missed"),
    [
        (objective(41), {"fused+graph against eager+graph", "fused+graph against plain tap+graph",
                         "fused+graph against loops", "fused+graph, µs"}),
        (objective(40, loops=3999), {"fused+graph against loops"}),
        (objective(40, **{"eager+graph": 319}), {"fused+graph against eager+graph"}),
        (objective(40, **{"plain tap+graph": 79}), {"fused+graph against plain tap+graph"}),
        (objective(40, fused=201), {"fused against eager"}),
    ],
)  # fmt: skip
def test_a_missed_promise_is_named(rows: list[dict[str, Any]], missed: set[str]) -> None:
    names = {name for name, kept in of_objective(rows).items() if not kept}
    assert {name.partition(", latency")[0].partition(", back to back")[0] for name in names} == missed


def test_graphs_are_held_against_graphs_alone() -> None:
    rows = [one for one in objective(40) if one["provider"] not in ("eager+graph", "plain tap+graph")]
    found = of_objective(rows)
    assert found["fused+graph against eager+graph, latency, times faster"] is None
    assert found["fused+graph against plain tap+graph, latency, times faster"] is None


def test_memory_beyond_the_inputs_is_judged() -> None:
    rows = objective(40)
    rows[-1]["peak_memory"] = 9_000_000
    assert not of_objective(rows)["fused, bytes beyond its inputs"]


def reader(size: Size, share: float, backward: float) -> dict[str, Any]:
    forward = {"median_us": 50.0, "fraction_of_read": share}
    return row("label_cam", "fused+graph", size, forward=forward, full={"median_us": 50.0 + backward})


def test_ops_bound_by_reading_are_judged_at_the_usual_size_and_larger_ones() -> None:
    rows = [
        reader(BASE, 0.9, backward=80.0),  # 60 µs of copying and 4 of products are 80 % of it
        reader(replace(BASE, images=320), 0.8, backward=81.0),
        reader(replace(BASE, images=10), 0.1, backward=1000.0),
    ]
    found = {name: kept for name, kept in bars(rows).items() if name.startswith("label_cam")}
    assert found == {
        "label_cam, usual: fraction of a read-only reduction, forward": True,
        "label_cam, usual: fraction of a copy, backward": True,
        "label_cam, images=320: fraction of a read-only reduction, forward": False,
        "label_cam, images=320: fraction of a copy, backward": False,
    }


def test_a_backward_that_the_clock_does_not_tell_is_not_measured() -> None:
    assert bars([reader(BASE, 0.9, backward=0.0)])["label_cam, usual: fraction of a copy, backward"] is None


def test_a_file_of_before_the_second_clock_can_be_read() -> None:
    old = [*objective(40), reader(BASE, 0.9, backward=80.0)]
    for one in old:
        del one["floors"]
        for times in one["phases"].values():
            times.pop("back_to_back_us", None)
    found = bars(old)
    assert found["objective: fused+graph, µs"] is True
    assert found["objective: fused against eager, back to back, times faster"] is None
    assert found["label_cam, usual: fraction of a read-only reduction, forward"] is True
    assert found["label_cam, usual: fraction of a copy, backward"] is None


def test_what_was_not_measured_is_said_so() -> None:
    for rows in ([], [row("objective", "fused"), row("label_cam", "fused+graph")]):
        found = bars(rows)
        assert len(found) == 10 and all(kept is None for kept in found.values())
