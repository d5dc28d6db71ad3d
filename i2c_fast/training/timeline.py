"""Where a step lies in a run: stage, epoch and step within them."""

from typing import NamedTuple

from ..config import Config, StageConfig
from ..errors import UserError


class Position(NamedTuple):
    """Position of one step of a run; epochs count on over the stages, so no batch of one returns in another."""

    stage: str
    epoch: int
    step_in_epoch: int
    step_in_stage: int


class Timeline:
    """The steps of a run: its stages one after the other, a fixed number of steps an epoch.

    Raises:
        UserError: the configuration has no stage to train.
    """

    def __init__(self, config: Config, steps_per_epoch: int) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.stages: dict[str, StageConfig] = {name: stage for name, stage in config.stages.items() if stage.epochs}
        if not self.stages:
            raise UserError("the configuration has no stage to train; give stage0.method and stage0.epochs")
        self.epochs = sum(stage.epochs for stage in self.stages.values())
        self.steps = self.epochs * steps_per_epoch

    def position(self, step: int) -> Position:
        """Position of the step-th step (from 0); the run's end lies after the last step of its last stage."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        stage = next((name for name in self.stages if step < self.end_of_stage(name)), list(self.stages)[-1])
        first = self.end_of_stage(stage) - self.stages[stage].epochs * self.steps_per_epoch
        return Position(stage, epoch, step_in_epoch, step - first)

    def end_of_stage(self, stage: str) -> int:
        """The number of steps done when a stage ends."""
        names = list(self.stages)
        return self.steps_per_epoch * sum(self.stages[name].epochs for name in names[: names.index(stage) + 1])
