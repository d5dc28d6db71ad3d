"""Where a global step lies: stage, epoch and step within them."""

from typing import NamedTuple

from ..config import Config, StageConfig


class Place(NamedTuple):
    """Position of one step of a run; epochs count on over the stages, so no batch of one returns in another."""

    stage: str
    epoch: int
    step_in_epoch: int
    step_in_stage: int


class Timeline:
    """The steps of a run: stage 0 (cross-entropy), then the I²C stage, a fixed number of steps an epoch."""

    def __init__(self, config: Config, steps_per_epoch: int) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.stages: dict[str, StageConfig] = {"stage0": config.stage0, "i2c": config.i2c}
        self.epochs = sum(stage.epochs for stage in self.stages.values())
        self.steps = self.epochs * steps_per_epoch

    def place(self, step: int) -> Place:
        """Place of the step-th step (from 0); the run's end lies after the last step of its last stage."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        name = "stage0" if epoch < self.stages["stage0"].epochs else "i2c"
        first = 0 if name == "stage0" else self.stages["stage0"].epochs * self.steps_per_epoch
        return Place(name, epoch, step_in_epoch, step - first)

    def starts_stage(self, step: int) -> bool:
        """Whether a stage begins with this step."""
        return step < self.steps and self.place(step).step_in_stage == 0
