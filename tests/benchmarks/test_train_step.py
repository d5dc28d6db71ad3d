"""The training step's benchmark on a machine without a GPU: gradients are checked, times are ratios."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from torch import nn

from benchmarks import objective, train_step
from benchmarks.steps import measure, phases
from benchmarks.steps import run as steps_run
from benchmarks.steps.agreement import BOUNDS, check_setting, gradient_error
from benchmarks.steps.bars import judge
from benchmarks.steps.plain import PlainStep
from benchmarks.steps.providers import PAIRS, PROVIDERS
from benchmarks.steps.setting import synthetic_batch
from benchmarks.steps.summary import plot, table
from benchmarks.train_step import earlier, main
from i2c_fast.methods.i2c import I2C

CPU = torch.device("cpu")
SHORT = ("--backbone", "tiny", "--rounds", "2", "--steps", "1")
TOY = replace(train_step.TOY, backbone="tiny")


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def run(output: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    done = CliRunner().invoke(main, [*arguments, "--output", str(output)])
    assert done.exit_code == 0, done.output
    return json.loads(output.read_text()), done.output


def providers(*names: str) -> list[str]:
    return [word for name in names for word in ("--provider", name)]


def test_gradients_are_checked_times_are_ratios_and_other_rows_are_kept(tmp_path: Path) -> None:
    names = ["baseline", "ours cam", "ours i2c"]
    report, _ = run(tmp_path / "out.json", *SHORT, *providers(*names))
    rows = {row["provider"]: row for row in report["rows"]}
    assert list(rows) == names
    assert all(row["status"] == "ok" and row["error"] < 1e-4 and row["step_ms"] is None for row in rows.values())
    assert all(row["ratio"]["to"] == "baseline" for row in rows.values())
    assert rows["ours i2c"]["i2c"]["fraction"]["median"] > -1 and rows["ours cam"]["i2c"] is None
    assert "not measured" in report["measured"] and all(bar["kept"] is None for bar in report["bars"])
    for row in rows.values():
        assert all(row["shares"][phase] > 0 for phase in ("forward", "backward", "optimizer"))
    assert rows["ours i2c"]["shares"]["guard"] > 0 and rows["ours i2c"]["shares"]["I²C"] > 0
    assert rows["ours cam"]["shares"]["I²C"] == 0

    again, _ = run(tmp_path / "out.json", *SHORT, *providers("ours cam"))
    others = [row for row in report["rows"] if row["provider"] != "ours cam"]
    assert again["rows"][:-1] == others and again["rows"][-1]["provider"] == "ours cam"
    machine = report["environment"]
    assert earlier(tmp_path / "out.json", {**machine, "commit": "another"})["rows"] == again["rows"]
    assert earlier(tmp_path / "out.json", {**machine, "torch": "another"})["rows"] == []


def test_a_wrong_gradient_is_told_and_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = objective.loops_losses_at

    def without_gc(*arguments: Any) -> Any:
        sc, gc, means = right(*arguments)
        return sc, 0 * gc, means

    monkeypatch.setattr(objective, "loops_losses_at", without_gc)
    output = tmp_path / "out.json"
    done = CliRunner().invoke(main, [*SHORT, *providers("baseline", "ours cam"), "--output", str(output)])
    wrong, ok = json.loads(output.read_text())["rows"]
    assert done.exit_code == 1
    assert wrong["status"].startswith("wrong: relative error of the gradient") and wrong["ratio"] is None
    assert ok["status"] == "ok"


def test_a_forgotten_term_of_ours_is_told_whatever_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of SC or GC is as large as that of cross-entropy in the check, so neither hides in rounding."""
    forward = I2C.forward

    def without_gc(method: I2C, batch: Any) -> Any:
        terms = forward(method, batch)
        return {**terms, "loss": terms["loss"] - method.gc_weight * terms["gc"]}

    monkeypatch.setattr(I2C, "forward", without_gc)
    assert gradient_error(PROVIDERS["ours i2c"], check_setting(TOY, CPU), CPU) > 3 * max(BOUNDS.values())


@pytest.mark.parametrize("name", ["compile+amp", "eager+amp"])
def test_the_peers_gradients_are_right(name: str) -> None:
    assert gradient_error(PROVIDERS[name], check_setting(TOY, CPU), CPU) < 1e-5


def test_what_this_machine_lacks_is_skipped_with_the_reason(tmp_path: Path) -> None:
    names = ["ours i2c", "ours i2c+graph", "ours i2c+apex"]
    report, output = run(tmp_path / "out.json", *SHORT, *providers(*names))
    rows = {row["provider"]: row["status"] for row in report["rows"]}
    assert rows["ours i2c"] == "ok"
    assert all(rows[name].startswith("skipped: ") for name in names[1:])
    assert output.count("was not measured: skipped") == 2


def test_each_pair_differs_by_the_method_alone() -> None:
    assert PAIRS and all(
        plain.replace("cam", "i2c") == i2c and {plain, i2c} <= {*PROVIDERS} for plain, i2c in PAIRS.items()
    )


def test_a_batch_must_be_pairs_of_the_classes(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--batch", "5"])
    assert done.exit_code == 2 and "--batch 5" in done.output


def test_training_from_files_tells_how_long_it_waits(tmp_path: Path, tiny_set: Path) -> None:
    arguments = [*SHORT, "--data", str(tiny_set), *providers("ours i2c", "baseline"), "data.workers=0"]
    report, output = run(tmp_path / "out.json", *arguments)
    for row in report["rows"]:
        assert row["data"] == str(tiny_set) and row["status"] == "ok" and row["images_per_s"] is None
        assert 0 < row["waiting"] < 1 and 0 <= row["lost"] < 1
    assert [row["loader"] for row in report["rows"]] == ["opencv, 0 processes", "pil, 0 processes"]
    assert "lost to loading" in output


def test_floating_point_operations_are_those_of_a_hand_count() -> None:
    """Forward, and the gradient of the weight; the images take none."""
    model = nn.Conv2d(3, 5, kernel_size=3, padding=1, bias=False)
    assert measure.flops(model, 2, 8) == 2 * (2 * 2 * 8 * 8 * 5 * 3 * 9)


def test_time_inside_a_phase_inside_another_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: Iterator[float] = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0])
    monkeypatch.setattr(phases.time, "perf_counter", lambda: next(ticks))
    clock = phases.Clock(CPU)
    inner = clock.inside("guard", lambda: None)
    outer = clock.inside("forward", inner)
    clock.start()  # 0
    outer()  # 1: outer, 3: inner, 7: back in outer, 15: out
    assert clock.stop() == {phases.REST: 1 + 16, "forward": 2 + 8, "guard": 4}  # 31


def test_watched_calls_are_as_before_afterwards() -> None:
    owner, original = SimpleNamespace(call=lambda: 1), torch.Tensor.backward
    model = nn.Linear(1, 1)
    sites = [phases.Site(owner, "call", "guard"), phases.Site(model, "forward", "forward")]
    sites.append(phases.Site(torch.Tensor, "backward", "backward"))
    called = owner.call
    with phases.watched(sites, phases.Clock(CPU)):
        assert owner.call is not called and torch.Tensor.backward is not original
    assert owner.call is called and "forward" not in vars(model) and torch.Tensor.backward is original


def test_trainers_take_turns() -> None:
    order: list[str] = []
    found = measure.rounds({name: lambda name=name: order.append(name) for name in "ab"}, 2, 3, CPU)
    assert "".join(order) == "aaaabbbbaaaabbbb"  # the first of each block is not timed
    assert {name: len(values) for name, values in found.items()} == {"a": 2, "b": 2}


def test_the_host_alone_is_measured_with_the_launches_stubbed(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    report, output = run(tmp_path / "out.json", "--host", "--backbone", "resnet18", *SHORT[2:])
    rows = {row["provider"]: row for row in report["host"]}
    assert rows["ours cam"]["step"] == 1 and rows["ours cam"]["triton_launches"] == 0
    # Head, seeds, rows, means, losses, backward, columns, centers: what tests/losses/test_launches.py counts, and two.
    assert rows["ours i2c"]["triton_launches"] == 9
    assert 0 < rows["ours i2c"]["around_the_model"] < rows["ours i2c"]["step"]
    assert rows["ours i2c"]["torch_calls"] > rows["ours cam"]["torch_calls"]
    assert "fractions of the step of ours cam" in output


def test_the_plain_trainer_moves_its_centers() -> None:
    trainer = PROVIDERS["eager+amp"](TOY, CPU)
    step = trainer.step
    assert isinstance(step, PlainStep)
    before = step.bank.centers.clone()
    batch = synthetic_batch(TOY, CPU)
    step(batch)
    moved = (step.bank.centers != before).any(1)
    assert (
        moved.nonzero().flatten().tolist()
        == batch.labels.unique().tolist()
        == step.bank.steps.nonzero().flatten().tolist()
    )


def test_times_of_a_gpu_are_all_there_for_table_picture_and_bars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What only a GPU can tell is made up; the rest of the way is the real one."""
    monkeypatch.setattr(measure, "host_seconds", lambda call: 0.002)
    monkeypatch.setattr(measure, "busy", lambda call: (0.001, 7))
    monkeypatch.setattr(steps_run, "count_synchronizations", lambda call: 0)
    monkeypatch.setattr(steps_run, "peak_memory", lambda call: 10**9)
    rows = steps_run.run_case(TOY, ("baseline", "ours cam", "ours i2c"), CPU, 2, 1, matmul_rate=1e12)
    rows = [{**row, "run": "1", "commit": "0"} for row in rows]
    for row in rows:
        assert row["images_per_s"] == pytest.approx(4 / row["step_ms"]["median"] * 1e3)
        assert row["mfu"] == pytest.approx(row["flops"] / row["step_ms"]["median"] * 1e3 / 1e12)
    usual = [{**row, "backbone": "resnet50", "images": 80, "image_size": 224} for row in rows]
    told = {bar["promise"]: bar["measured"] for bar in judge(usual)}
    assert told["I²C, N 80: µs of GPU time a step"] == rows[2]["i2c"]["us"]["median"]
    assert told["I²C, N 80: fraction of peak memory it adds"] == 0 and rows[2]["i2c"]["busy_us"] == 0
    assert sum(measured is not None for measured in told.values()) == 7
    with (console := Console(width=200, quiet=False)).capture() as shown:
        console.print(table("title", rows))
    assert f"{rows[2]['i2c']['us']['median']:.0f}" in shown.get() and "not measured" not in shown.get()
    pytest.importorskip("matplotlib")
    picture = tmp_path / "picture.png"
    assert plot({"rows": rows, "environment": {"gpu": "a GPU"}}, picture) == f"drawn to {picture}"
    assert picture.stat().st_size > 10_000
    assert "nothing was measured" in plot({"rows": []}, picture)
