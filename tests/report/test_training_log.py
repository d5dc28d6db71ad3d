"""Logs as killed processes, long runs and other programs leave them."""

import json
from pathlib import Path

import numpy as np

from i2c_fast.report.training_log import MAX_SERIES, POINTS, TrainingLog, read_log

from .small_run import log_entries


def write(path: Path, *lines: object) -> TrainingLog:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("\n".join(texts) + "\n")
    return read_log(path)


def train(step: int, **values: object) -> dict[str, object]:
    return {"kind": "train", "step": step, "stage": "stage0", **values}


def test_missing_log_is_empty(tmp_path: Path) -> None:
    for path in (tmp_path / "log.jsonl", tmp_path):  # not there; a folder
        log = read_log(path)
        assert not len(log.steps) and not len(log.curve("loss").y)


def test_stages_evaluations_and_series_are_found(tmp_path: Path) -> None:
    log = write(tmp_path / "log", *log_entries(8))
    assert log.stage_start == (4, "stage1: i2c")
    assert log.curve("lr").y.tolist() == [0.01] * 8
    assert [values.tolist() for values in log.evaluations["gt_known"]] == [[7.0], [40.0]]
    assert log.protocols == {"paper"} and log.unread == 0


def test_terms_are_left_out_where_they_were_no_part_of_the_objective(tmp_path: Path) -> None:
    log = write(tmp_path / "log", *log_entries(8))
    assert log.curve("sc").x.tolist() == [4, 5, 6, 7]
    assert len(log.curve("ce").x) == 8


def test_terms_that_only_their_method_knows_are_read_as_they_come(tmp_path: Path) -> None:
    log = write(tmp_path / "log", train(0, loss=1.0), train(1, loss=2.0, kept=0.5), train(2, loss=3.0))
    assert log.curve("kept").x.tolist() == [1] and log.curve("kept").y.tolist() == [0.5]
    many = write(tmp_path / "many", train(0, **{f"name{i}": 1.0 for i in range(1000)}))
    assert len(many.series) < MAX_SERIES


def test_null_is_no_value_and_a_skipped_step_is_counted(tmp_path: Path) -> None:
    log = write(tmp_path / "log", train(0, loss=1.0), train(1, loss=None, skipped=1.0), train(2, loss=3.0))
    assert log.curve("loss").y.tolist() == [1.0, 3.0]
    assert log.skipped == 1


def test_cut_and_foreign_lines_are_counted_and_passed_over(tmp_path: Path) -> None:
    lines = ['{"kind": "train", "st', "[1, 2]", "null", '{"kind": "else", "step": 1}', '{"kind": "train"}', "\x00\x01"]
    lines += ['{"kind": "train", "step": "1"}', '{"kind": "train", "step": true}', "[" * 100_000, '{"step": 1e999}']
    log = write(tmp_path / "log", train(0, loss=1.0), *lines)
    assert log.steps.tolist() == [0]
    assert log.unread == len(lines)


def test_values_of_other_types_are_no_values(tmp_path: Path) -> None:
    log = write(tmp_path / "log", train(0, loss="<script>", ce=[1], sc={}, gc=10**400, lr=0.1))
    assert [len(log.curve(name).y) for name in ("loss", "ce", "sc", "gc", "lr")] == [0, 0, 0, 0, 1]
    odd = {"kind": "evaluation", "step": 1, "scores": {"gt_known": "bad", "cls_top1": None, "loc_top1": {"error": []}}}
    assert all(not len(errors) for _, errors in write(tmp_path / "odd", odd).evaluations.values())


def test_the_last_of_equal_steps_counts_and_steps_are_in_order(tmp_path: Path) -> None:
    log = write(tmp_path / "log", train(2, loss=3.0), train(0, loss=1.0), train(2, loss=4.0))
    assert log.steps.tolist() == [0, 2]
    assert log.curve("loss").y.tolist() == [1.0, 4.0]


def test_long_logs_become_few_points_that_keep_the_mean(tmp_path: Path) -> None:
    path, count = tmp_path / "log", 120_000
    values = np.sin(np.arange(count))
    with path.open("w") as file:
        file.writelines(
            f'{{"kind": "train", "step": {step}, "loss": {value:.6f}}}\n' for step, value in enumerate(values)
        )
    log = read_log(path)
    curve = log.curve("loss")
    assert len(log.steps) == count and len(curve.y) <= POINTS and log.bin == count // POINTS
    assert abs(curve.y.mean() - values.mean()) < 1e-3
    assert (curve.low <= curve.y).all() and (curve.y <= curve.high).all()
