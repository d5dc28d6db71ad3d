"""Where a step lies in a run."""

from collections.abc import Callable

import pytest

from i2c_fast.config import Config
from i2c_fast.errors import UserError
from i2c_fast.training.timeline import Position, Timeline


def test_stages_follow_each_other(tiny_config: Callable[..., Config]) -> None:
    timeline = Timeline(tiny_config("stage0.epochs=2", "stage1.epochs=3"), steps_per_epoch=4)
    assert timeline.epochs == 5
    assert timeline.steps == 20
    assert timeline.position(0) == Position("stage0", 0, 0, 0)
    assert timeline.position(7) == Position("stage0", 1, 3, 7)
    assert timeline.position(8) == Position("stage1", 2, 0, 0)
    assert timeline.position(19) == Position("stage1", 4, 3, 11)
    assert timeline.position(20).stage == "stage1"
    assert [timeline.end_of_stage(stage) for stage in timeline.stages] == [8, 20]


def test_a_stage_of_no_epochs_is_left_out(tiny_config: Callable[..., Config]) -> None:
    only_i2c = Timeline(tiny_config("stage0.epochs=0", "stage1.epochs=1"), steps_per_epoch=4)
    assert [only_i2c.position(step).stage for step in range(only_i2c.steps)] == ["stage1"] * 4
    only_stage0 = Timeline(tiny_config("stage0.epochs=1", "stage1.epochs=0"), steps_per_epoch=4)
    assert [only_stage0.position(step).stage for step in range(only_stage0.steps)] == ["stage0"] * 4


def test_any_number_of_stages_may_follow_in_the_order_of_their_numbers(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config("stage10.method=has", "stage10.epochs=2", "stage2.method=cutmix", "stage2.epochs=1")
    timeline = Timeline(config, steps_per_epoch=3)
    assert list(timeline.stages) == ["stage0", "stage1", "stage2", "stage10"]
    stages = [timeline.position(step).stage for step in range(timeline.steps)]
    assert stages == ["stage0"] * 3 + ["stage1"] * 3 + ["stage2"] * 3 + ["stage10"] * 6
    assert timeline.position(12) == Position("stage10", 4, 0, 3)


def test_a_configuration_without_stages_is_refused() -> None:
    with pytest.raises(UserError, match=r"no stage to train; give stage0\.method"):
        Timeline(Config(), steps_per_epoch=3)
