"""Localize objects in new images with a trained checkpoint."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from ..config import Config
from ..data import EvalBatches, UnlabeledFiles, eval_loader, read_image, read_split, resize
from ..data.batches import stack
from ..data.images import Image
from ..data.index import IMAGE_SUFFIXES
from ..errors import UserError
from ..evaluation import PaperProtocol
from ..evaluation.boxes import Gray
from ..files import write_json
from ..report import draw_overlay, save_picture
from ..runtime import Runtime, memory_errors, open_runtime
from ..training import load_checkpoint, restore_predictor, stored_threshold
from ..training.loading import checkpoint_config, loading_of, settle_loader
from ..training.logs import Meter
from ..training.scoring import NOT_FINITE


@dataclass(frozen=True)
class Localization:
    """What the model says of one image."""

    image: Image  # uint8 RGB [H, W, 3]
    label: int  # predicted class, or the one asked for
    score: float  # its probability
    gray: Gray  # uint8 [H, W] its normalized map
    box: tuple[int, int, int, int]  # x0, y0, x1, y1, inclusive; (0, 0, −1, −1) for none


class Predictor:
    """A checkpoint's model ready for images.

    Args:
        state: from `load_checkpoint`. device: as ``run.device``.
        threshold: gray level 0…254 of the boxes; None takes the one training's final evaluation stored.
        ema: see `restore_predictor`.
        say: told, in a line, where another loader than the run's takes over.

    Raises:
        UserError: no threshold stored and none given, a device that does not exist, or an EMA that was not kept.
    """

    def __init__(
        self,
        state: dict[str, Any],
        device: str = "auto",
        threshold: int | None = None,
        ema: bool | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        config = checkpoint_config(state, (), say)
        self.classes: list[str] = state["classes"]
        self.runtime: Runtime = open_runtime(device, config.run.precision)
        self.config: Config = settle_loader(config, self.runtime.device, say)
        if threshold is None:
            threshold = stored_threshold(state)
        if threshold is None:
            raise UserError(
                "the checkpoint stores no threshold of the paper protocol (its run was not evaluated on boxes by it); "
                "give --threshold"
            )
        self.threshold: int = threshold
        self.protocol = PaperProtocol()
        self.model = self.runtime.move(restore_predictor(state, ema)).eval()

    def __call__(self, images: Sequence[Image], labels: Sequence[int] | None = None) -> list[Localization]:
        """Localize a few images of any sizes.

        Args:
            images: uint8 RGB [H, W, 3] each.
            labels: classes to localize; by default each image's first prediction.
        """
        side, flavor = self.config.data.image_size, self.config.data.resize
        return self._localize(stack([resize(image, side, side, flavor) for image in images]), images, labels)

    def files(self, files: Sequence[Path], labels: Sequence[int] | None = None) -> Iterator[Localization]:
        """Localize image files one by one; the model sees them as the run's loader makes them.

        Raises:
            UserError: a file that is no image.
        """
        data = self.config.data
        batches = EvalBatches(UnlabeledFiles(tuple(files)), data.image_size, 1, flavor=data.resize)
        for batch in eval_loader(batches, 0, loading_of(data, self.runtime.device)):
            (number,) = batch.indices.tolist()
            chosen = None if labels is None else [labels[number]]
            yield from self._localize(batch.images, [read_image(files[number])], chosen)

    @memory_errors("take smaller images, or another --device")
    @torch.inference_mode()
    def _localize(self, inputs: Tensor, images: Sequence[Image], labels: Sequence[int] | None) -> list[Localization]:
        """What the model says of `inputs` [N, 3, S, S], which show `images`."""
        batch = inputs.to(self.runtime.device)
        with self.runtime.autocast():
            logits, maps = self.model.class_maps(batch)
        if not logits.isfinite().all():
            raise UserError(f"the checkpoint's model gives {NOT_FINITE}; take an earlier checkpoint")
        probabilities = logits.float().softmax(1)
        chosen = probabilities.argmax(1) if labels is None else torch.tensor(labels, device=batch.device)
        maps = maps[torch.arange(len(images)), chosen]
        scores = probabilities.gather(1, chosen[:, None]).squeeze(1).tolist()
        found = []
        for image, label, score, raw in zip(images, chosen.tolist(), scores, maps.cpu().numpy(), strict=True):
            gray = self.protocol.gray_map(raw, image.shape[1], image.shape[0])
            x0, y0, x1, y1 = self.protocol.box_at(gray, self.threshold).tolist()
            found.append(Localization(image, label, score, gray, (x0, y0, x1, y1)))
        return found


def open_predictor(
    checkpoint: Path,
    device: str = "auto",
    threshold: int | None = None,
    ema: bool | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Predictor:
    """Predictor of a checkpoint file or of a run folder's newest checkpoint."""
    state = load_checkpoint(checkpoint, lambda text: say(f"warning: {text}"))
    return Predictor(state, device, threshold, ema, say)


def write_predictions(
    predictor: Predictor, paths: Sequence[Path], output: Path, data_root: Path | None, console: Console
) -> int:
    """Localize files and folders of images; write ``boxes.json`` and ``overlays/``.

    Args:
        data_root: a data set whose validation boxes are drawn, and listed, beside the predictions for its images.

    Returns:
        How many images there were.

    Raises:
        UserError: a path that is not there, a file that is no image, or an output that cannot be written.
    """
    files = list(find_images(paths))
    gt_boxes: dict[Path, NDArray[np.float32]] = {}
    if data_root is not None:
        index = read_split(data_root, "val")
        gt_boxes = {index.file(i).resolve(): boxes for i, boxes in enumerate(index.boxes)}
    records = []
    with Meter(console, "predicting", len(files)) as meter:
        for number, (file, found) in enumerate(zip(files, predictor.files(files), strict=True)):
            boxes = gt_boxes.get(file.resolve())
            # Names of different folders may be equal; the running number keeps their pictures apart.
            overlay = Path("overlays") / f"{number:05d}_{file.stem}.png"
            save_picture(output / overlay, draw_overlay(found.image, found.gray, found.box, boxes, side=224))
            records.append(
                {
                    "image": str(file),
                    "class": predictor.classes[found.label],
                    "score": round(found.score, 6),
                    "box": found.box if found.box[2] >= found.box[0] else None,
                    **({} if boxes is None else {"gt_boxes": boxes.tolist()}),
                    "overlay": str(overlay),
                }
            )
            meter.advance(1, 1)
    result = {
        "box_format": "x0, y0, x1, y1 in pixels, inclusive",
        "protocol": predictor.protocol.name,
        "threshold": predictor.threshold,
        "predictions": records,
    }
    write_json(output / "boxes.json", result)
    return len(files)


def find_images(paths: Sequence[Path]) -> Iterator[Path]:
    """Image files among the given files and, recursively, in the given folders, sorted within each.

    Raises:
        UserError: a path that does not exist, or a folder without images.
    """
    for path in paths:
        if path.is_file():
            yield path
            continue
        if not path.is_dir():
            raise UserError(f"{path} is neither an image file nor a folder")
        found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        if not found:
            raise UserError(f"{path} holds no image files ({', '.join(sorted(IMAGE_SUFFIXES))})")
        yield from found
