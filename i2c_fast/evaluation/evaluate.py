"""Run a model over a split: images → logits and the label's map → boxes → verdicts."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import EvalBatches, ImageIndex, eval_loader, normalize_images
from ..models import Localizer
from ..runtime import Runtime
from .protocols import PaperProtocol
from .scores import Scores


def evaluate(
    model: Localizer,
    index: ImageIndex,
    runtime: Runtime,
    protocol: PaperProtocol,
    *,
    image_size: int,
    batch_size: int,
    workers: int,
    ten_crop: bool = False,
    progress: Callable[[int], None] = lambda images: None,
) -> Scores:
    """Score a model on a split.

    Args:
        model: on the runtime's device; its training mode is restored afterwards.
        index: the split. runtime: device and precision. protocol: how maps become verdicts.
        image_size: side of the square test image, aspect not kept. batch_size, workers: of the loader.
        ten_crop: class scores from ten crops (see `ten_crop_logits`); maps stay those of the whole image.
        progress: called with the number of images after each batch.
    """
    # Ten crops are cut from an image 8/7 as large, as 224 is cut from 256.
    side = round(image_size * 8 / 7) if ten_crop else image_size
    batches = EvalBatches(index, side, batch_size)
    was_training = model.training
    model.eval()
    ranks: list[Tensor] = []
    verdicts: list[Future[NDArray[np.bool_]]] = []
    try:
        with torch.inference_mode(), ThreadPoolExecutor(max(1, workers)) as pool:
            for batch in eval_loader(batches, workers):
                images = normalize_images(batch.images, runtime.device)
                labels = batch.labels.to(runtime.device)
                scores, maps = _scores_and_maps(model, images, labels, runtime, image_size, ten_crop)
                # Ties and NaN count against the label: a model that gives every class one score recognizes nothing.
                ranks.append((~(scores < scores.gather(1, labels[:, None]))).sum(1).cpu() - 1)
                # OpenCV and NumPy leave the interpreter lock, so threads box one batch while the next is computed.
                described = zip(maps.cpu().numpy(), batch.sizes.tolist(), batch.indices.tolist(), strict=True)
                verdicts += [pool.submit(_verdict, protocol, raw, size, index.boxes[i]) for raw, size, i in described]
                progress(len(images))
            hits = np.stack([verdict.result() for verdict in verdicts])
    finally:
        model.train(was_training)
    boxed = np.array([len(boxes) > 0 for boxes in index.boxes])
    return Scores(protocol.name, protocol.thresholds, torch.cat(ranks).numpy(), boxed, hits)


def _scores_and_maps(
    model: Localizer, images: Tensor, labels: Tensor, runtime: Runtime, image_size: int, ten_crop: bool
) -> tuple[Tensor, Tensor]:
    with runtime.autocast():
        if not ten_crop:
            logits, x = model.predict(images)
            return logits.float(), model.head.class_maps(x, labels)
        whole = torch.nn.functional.interpolate(images, (image_size, image_size), mode="bilinear", antialias=False)
        _, x = model.predict(whole)
        return ten_crop_scores(model, images, image_size), model.head.class_maps(x, labels)


def ten_crop_scores(model: Localizer, images: Tensor, size: int) -> Tensor:
    """Mean class probabilities [N, Y] of the four corners, the center and their mirror images.

    Args:
        model: in evaluation mode. images: normalized [N, 3, S, S] with S ≥ size. size: side of the crops.
    """
    far = images.shape[-1] - size
    mid = far // 2
    total = torch.zeros((), device=images.device)
    for y, x in ((0, 0), (0, far), (far, 0), (far, far), (mid, mid)):
        crop = images[..., y : y + size, x : x + size]
        for view in (crop, crop.flip(-1)):
            total = total + model.predict(view)[0].float().softmax(1)
    return total / 10


def _verdict(
    protocol: PaperProtocol, raw: NDArray[np.float32], size: list[int], truth: NDArray[np.float32]
) -> NDArray[np.bool_]:
    if not len(truth):
        return np.zeros(len(protocol.thresholds), np.bool_)
    return protocol.hits(protocol.boxes(protocol.grey(raw, *size)), truth)
