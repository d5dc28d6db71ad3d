"""Run a model over a split: images → logits and the label's map → boxes → verdicts."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..data import BY_OPENCV, EvalBatches, Flavor, ImageIndex, Loading, eval_loader
from ..errors import UserError
from ..models import Localizer
from ..runtime import Runtime
from .metric import LocalizationMetric
from .pixels import PixelAveragePrecision, read_mask
from .protocols import ScoringProtocol
from .scores import Scores

# Called after each batch with the images' positions in the split [N], raw maps of their labels' classes fp32 [N,h,w]
# and class scores fp32 [N,Y], all on the device.
BatchObserver = Callable[[Tensor, Tensor, Tensor], None]


def unobserved(images: Tensor, maps: Tensor, scores: Tensor) -> None:
    """The observer that looks at nothing."""


def evaluate(
    model: Localizer,
    index: ImageIndex,
    runtime: Runtime,
    protocol: ScoringProtocol,
    *,
    image_size: int,
    batch_size: int,
    workers: int,
    ten_crop: bool = False,
    resize: Flavor = "linear",
    loading: Loading = BY_OPENCV,
    observe: BatchObserver = unobserved,
) -> Scores:
    """Score a model on a split.

    Args:
        model: on the runtime's device; anything with two of `Localizer`'s calls will do, ``model(images)`` → logits and
            ``model.class_maps(images, classes)`` → logits and maps. Its training mode is restored afterwards.
        index: the split. runtime: device and precision. protocol: how maps become verdicts.
        image_size: side of the square test image, aspect not kept. batch_size, workers, loading: of the loader.
        ten_crop: class scores from ten crops (see `ten_crop_scores`); maps stay those of the whole image.
        resize: the flavor the model was trained with.
        observe: sees what was computed of each batch of this rank, see `BatchObserver`.

    Where the split has masks, the scores have their PxAP, by wsolevaluation's thresholds whatever the protocol.

    Over several ranks each takes every R-th batch, so that batches are the same for any number of them, and all get the
    scores of the whole split.

    Raises:
        UserError: a mask that cannot be read, or masks without any object.
    """
    # Ten crops are cut from an image 8/7 as large, as 224 is cut from 256.
    batches = EvalBatches(index, image_size, batch_size, round(image_size * 8 / 7) if ten_crop else 0, resize)
    world = runtime.world
    modes = [(module, module.training) for module in model.modules()]  # some may be frozen in evaluation mode
    model.eval()
    metric = LocalizationMetric(protocol, threads=max(1, workers), check=False)
    pixels = PixelAveragePrecision()
    try:
        with torch.inference_mode(), ThreadPoolExecutor(max(1, workers)) as pool:
            for batch in eval_loader(batches, workers, loading, range(world.rank, len(batches), world.size)):
                labels = batch.labels.to(runtime.device)
                with runtime.autocast():
                    logits, maps = model.class_maps(batch.images.to(runtime.device, non_blocking=True), labels)
                    scores = logits.float()
                    if batch.enlarged is not None:
                        scores = ten_crop_scores(model, batch.enlarged.to(runtime.device), image_size)
                boxes = [index.boxes[i] for i in batch.indices.tolist()]
                metric.update(maps, scores, labels, boxes, batch.sizes, batch.indices)
                if index.masks is not None:
                    own = [index.masks[i] for i in batch.indices.tolist()]
                    pixels.update(maps, list(pool.map(partial(read_mask, index.mask_root or index.root), own)))
                observe(batch.indices, maps, scores)
        found = metric.scores() if world.alone else metric.gather(world.group)
        if index.masks is None:
            return found
        return replace(found, pxap=_pxap(pixels if world.alone else pixels.gather(world.group), index))
    finally:
        for module, mode in modes:
            module.training = mode


def _pxap(pixels: PixelAveragePrecision, index: ImageIndex) -> float:
    try:
        return pixels.compute()
    except ValueError as error:
        raise UserError(f"masks under {index.mask_root}: {error}") from None


def ten_crop_scores(model: Localizer, images: Tensor, size: int) -> Tensor:
    """Mean class probabilities [N, Y] of the four corners, the center and their mirror images.

    Args:
        model: in evaluation mode. images: [N, 3, S, S] with S ≥ size, as the model takes them. size: side of the crops.
    """
    far = images.shape[-1] - size
    mid = far // 2
    total = torch.zeros((), device=images.device)
    for y, x in ((0, 0), (0, far), (far, 0), (far, far), (mid, mid)):
        crop = images[..., y : y + size, x : x + size]
        for view in (crop, crop.flip(-1)):
            total = total + model(view).float().softmax(1)
    return total / 10
