"""Charts as geometry: everything inside the drawing, gaps where values are missing, labels apart."""

import re

import numpy as np
import pytest

from i2c_fast.report.charts import (
    BOTTOM,
    LABEL_GAP,
    LEFT,
    RIGHT,
    TOP,
    Series,
    histogram,
    line_chart,
    nice_ticks,
    number,
)


def points(path: str) -> np.ndarray:
    return np.array([[float(v) for v in pair.split()] for pair in re.findall(r"[ML]([^MLZ]+)", path)])


def chart(*series: Series, **options: object):  # type: ignore[no-untyped-def]
    return line_chart("title", series, "x", alt="words", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 100, [0, 25, 50, 75, 100]),
        (0, 51.8, [0, 20, 40, 60]),
        (0, 0, [0, 0.25, 0.5, 0.75, 1]),
        (0, 3e-8, [0, 1e-8, 2e-8, 3e-8]),
        (-1, 2, [-1, 0, 1, 2]),
    ],
)
def test_ticks_are_round_and_span_the_values(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == ticks


def test_numbers_are_short() -> None:
    assert [number(v) for v in (0, 0.005, 2500, 20000, 2.5e6)] == ["0", "0.005", "2500", "20k", "2.5M"]


def test_line_spans_the_plot() -> None:
    drawn = points(chart(Series(0, np.array([0.0, 5, 10]), np.array([0.0, 50, 100]))).lines[0].path)
    np.testing.assert_allclose(drawn, [[LEFT, BOTTOM], [(LEFT + RIGHT) / 2, (BOTTOM + TOP) / 2], [RIGHT, TOP]])


def test_unknown_values_interrupt_the_line() -> None:
    path = chart(Series(0, np.arange(5.0), np.array([1, 2, np.nan, 3, 4.0]))).lines[0].path
    assert [len(points(part)) for part in re.findall("M[^M]+", path)] == [2, 2]


def test_a_series_without_values_is_left_out() -> None:
    assert not chart(Series(0, np.zeros(0), np.zeros(0)), Series(1, np.arange(2.0), np.full(2, np.nan))).lines


def test_a_single_point_is_drawn() -> None:
    (line,) = chart(Series(0, np.array([7.0]), np.array([3.0]), "last")).lines
    assert len(line.dots) == 1 and line.label is not None


def test_bands_stay_inside_the_plot() -> None:
    x, y = np.arange(3.0), np.array([1.0, 2, 1])
    band = points(chart(Series(0, x, y, low=y - 100, high=y + 100)).lines[0].band)
    assert band[:, 1].min() == TOP and band[:, 1].max() == BOTTOM


def test_labels_of_equal_lines_do_not_cover_each_other() -> None:
    x, y = np.arange(2.0), np.array([5.0, 5])
    heights = sorted(line.label.y for line in chart(*(Series(run, x, y, f"run {run}") for run in range(6))).lines)
    assert np.diff(heights).min() >= LABEL_GAP
    assert heights[0] >= 0 and heights[-1] <= BOTTOM


def test_small_differences_are_not_blown_up() -> None:
    series = Series(0, np.arange(2.0), np.array([50.0, 50.4]))
    ticks = [float(tick.text) for tick in chart(series, least_span=10).y_ticks]
    assert ticks[-1] - ticks[0] >= 10 and ticks[0] > 0


def test_histogram_counts_every_image_once() -> None:
    counts = [np.array([0, 0, 1, 99]), np.array([5, 5])]
    corners, stairs, width = histogram(counts, 40)
    assert width == 3 and len(corners) == len(stairs[0]) == len(stairs[1])
    assert [heights[::2].sum() for heights in stairs] == [100, 100]
    assert stairs[0][0] == 75 and corners[0] == 0


def test_histogram_of_maps_without_a_pixel_above_has_a_bin() -> None:
    corners, stairs, width = histogram([np.zeros(3, np.int64)], 40)
    assert (corners.tolist(), stairs[0].tolist(), width) == ([0, 1], [100, 100], 1)
