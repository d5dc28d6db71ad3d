"""From files on disk to uint8 batches: layouts → index → class-paired plans → loader."""

from .images import RESIZE, UnreadableImageError, read_image, resize
from .index import ImageIndex
from .layouts import Split, read_split, recognize
from .loader import EvalBatch, EvalBatches, TrainBatch, TrainBatches, eval_loader, train_loader
from .sampler import SAMPLERS, ClassPairedSampler, Sampler

__all__ = [
    "RESIZE",
    "SAMPLERS",
    "ClassPairedSampler",
    "EvalBatch",
    "EvalBatches",
    "ImageIndex",
    "Sampler",
    "Split",
    "TrainBatch",
    "TrainBatches",
    "UnreadableImageError",
    "eval_loader",
    "read_image",
    "read_split",
    "recognize",
    "resize",
    "train_loader",
]
