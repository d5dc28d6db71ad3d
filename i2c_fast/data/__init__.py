"""From files on disk to uint8 batches: layouts → index → class-paired plans → loader."""

from .images import RESIZE, UnreadableImageError, normalize_images, read_image, resize
from .index import ImageIndex
from .layouts import LAYOUTS, Split, read_split, recognize
from .loader import EvalBatch, EvalBatches, TrainBatch, TrainBatches, eval_loader, train_loader
from .sampler import BatchPlan, ClassPairedSampler

__all__ = [
    "LAYOUTS",
    "RESIZE",
    "BatchPlan",
    "ClassPairedSampler",
    "EvalBatch",
    "EvalBatches",
    "ImageIndex",
    "Split",
    "TrainBatch",
    "TrainBatches",
    "UnreadableImageError",
    "eval_loader",
    "normalize_images",
    "read_image",
    "read_split",
    "recognize",
    "resize",
    "train_loader",
]
