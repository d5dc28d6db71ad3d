"""Training: step → loop → run, with optimizer, timeline, logs and checkpoints beside them."""

from .checkpoint import checkpoints_of, load_checkpoint, restore_predictor, save_checkpoint, stored_threshold
from .loop import RunStopped, Trainer
from .run import build_trainer, open_split, score_checkpoint, start_run
from .signals import STOPPED_STATUS
from .step import TrainStep

__all__ = [
    "STOPPED_STATUS",
    "RunStopped",
    "TrainStep",
    "Trainer",
    "build_trainer",
    "checkpoints_of",
    "load_checkpoint",
    "open_split",
    "restore_predictor",
    "save_checkpoint",
    "score_checkpoint",
    "start_run",
    "stored_threshold",
]
