"""Tables: a path is never cut or folded, whatever the terminal's width."""

import io

import pytest
from rich.console import Console

from i2c_fast.commands.tables import print_differences, print_scores

LONG = "/data/somebody/experiments/of_the_year/" + "a_run_with_a_long_name_" * 4
SUMMARY = {
    "images_with_boxes": 3, "cls_top1": 1.0, "cls_top5": 2.0,
    **{metric: {"error": 3.0, "threshold": 7} for metric in ("loc_top1", "loc_top5", "gt_known")},
}  # fmt: skip
ROW = {"gt_known": {"difference": 1.0, "interval_95": [0.0, 2.0]}}


@pytest.mark.parametrize("width", [60, 80, 300])
def test_long_names_stay_on_one_line_with_their_figures_in_order(width: int) -> None:
    file = io.StringIO()
    console = Console(file=file, width=width, soft_wrap=True)
    print_scores(console, {f"{LONG}1": SUMMARY, f"{LONG}2": {**SUMMARY, "cls_top1": 9.0}})
    print_differences(console, f"{LONG}2 minus {LONG}1", ROW)
    lines = file.getvalue().splitlines()
    assert all(any(f"{LONG}{number}" in line for line in lines) for number in (1, 2))
    assert any(f"{LONG}2 minus {LONG}1" in line for line in lines)
    labels = [f"{LONG}1", f"{LONG}2"] if width == 300 else ["1", "2"]
    rows = [line.split() for line in lines if line.split()[-1:] == ["7"]]
    assert [(row[0], row[1]) for row in rows] == list(zip(labels, ["1.00", "9.00"], strict=True))
