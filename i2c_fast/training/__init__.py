"""Training: step → loop → run, with optimizer, timeline, logs and checkpoints beside them."""

# ruff: noqa: F401 (what is imported here is what the package offers)

from .checkpoint import checkpoints_of, load_checkpoint, restore_predictor, save_checkpoint, stored_threshold
from .loop import RunStopped, Trainer
from .run import build_trainer, open_split, score_checkpoint, start_run
from .signals import STOPPED_STATUS
from .step import TrainStep
