"""From files on disk to uint8 batches: layouts → index → class-paired plans → loader."""

# ruff: noqa: F401 (what is imported here is what the package offers)

from .batches import EvalBatch, EvalBatches, TrainBatch, TrainBatches, UnlabeledFiles
from .images import Flavor, UnreadableImageError, read_gray, read_image, resize
from .index import ImageIndex, MaskPaths
from .layouts import Split, read_split, recognize
from .loader import BY_OPENCV, Loading, check_loader, choose_loader, dali_problem, eval_loader, train_loader
from .sampler import SAMPLERS, BatchPlan, ClassPairedSampler, Deal, Sampler
