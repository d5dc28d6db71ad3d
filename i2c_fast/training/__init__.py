"""Training: step → loop, with optimizer, timeline, logs and checkpoints beside them."""

from .checkpoint import checkpoint_path, checkpoints_of, load_checkpoint, save_checkpoint
from .loop import Trainer, headline, load_model_state
from .step import TERMS, TrainStep

__all__ = [
    "TERMS",
    "TrainStep",
    "Trainer",
    "checkpoint_path",
    "checkpoints_of",
    "headline",
    "load_checkpoint",
    "load_model_state",
    "save_checkpoint",
]
