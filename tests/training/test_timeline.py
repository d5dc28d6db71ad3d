"""Where a step lies in a run."""

from collections.abc import Callable

from i2c_fast.config import Config
from i2c_fast.training.timeline import Place, Timeline


def test_stages_follow_each_other(tiny_config: Callable[..., Config]) -> None:
    timeline = Timeline(tiny_config("stage0.epochs=2", "i2c.epochs=3"), steps_per_epoch=4)
    assert timeline.epochs == 5
    assert timeline.steps == 20
    assert timeline.place(0) == Place("stage0", 0, 0, 0)
    assert timeline.place(7) == Place("stage0", 1, 3, 7)
    assert timeline.place(8) == Place("i2c", 2, 0, 0)
    assert timeline.place(19) == Place("i2c", 4, 3, 11)


def test_a_stage_of_no_epochs_is_left_out(tiny_config: Callable[..., Config]) -> None:
    only_i2c = Timeline(tiny_config("stage0.epochs=0", "i2c.epochs=1"), steps_per_epoch=4)
    assert [only_i2c.place(step).stage for step in range(only_i2c.steps)] == ["i2c"] * 4
    only_stage0 = Timeline(tiny_config("stage0.epochs=1", "i2c.epochs=0"), steps_per_epoch=4)
    assert [only_stage0.place(step).stage for step in range(only_stage0.steps)] == ["stage0"] * 4
