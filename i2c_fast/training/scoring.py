"""Score a model as a configuration says, with a progress bar."""

import torch
from rich.console import Console
from torch import Tensor

from ..config import Config
from ..data import ImageIndex
from ..errors import UserError
from ..evaluation import BatchObserver, Scores, evaluate, named_protocol, unobserved
from ..models import Localizer
from ..runtime import Runtime
from .loading import loading_of
from .logs import Meter

NOT_FINITE = "class scores that are NaN or infinite: its training diverged"


def score_split(
    model: Localizer,
    index: ImageIndex,
    runtime: Runtime,
    config: Config,
    console: Console,
    observe: BatchObserver = unobserved,
) -> Scores:
    """Evaluate `model` on a split by the configured protocol; `observe` may raise to leave early.

    A prediction that is the same class for all images is told: it is no error, and says nothing of the images.

    Raises:
        UserError: class scores that are not finite: errors computed from them would mean nothing.
    """
    predicted = torch.zeros(len(index.classes), dtype=torch.bool, device=runtime.device)

    def advance(images: Tensor, maps: Tensor, scores: Tensor) -> None:
        meter.advance(len(images), len(images))
        finite = scores.isfinite().all(1)
        if not finite.all():
            first = index.paths[int(images[~finite.cpu()][0])]
            raise UserError(
                f"the model gives {NOT_FINITE} (the first for {first}); lower the stage's lr, its loss weights or "
                "optim.weight_decay, or score an earlier checkpoint"
            )
        predicted[scores.argmax(1)] = True
        observe(images, maps, scores)

    with Meter(console, "evaluation", len(index)) as meter:
        found = evaluate(
            model,
            index,
            runtime,
            named_protocol(config.eval.protocol, config.eval.threshold_step),
            image_size=config.data.image_size,
            batch_size=config.eval.batch,
            workers=config.data.workers,
            ten_crop=config.eval.ten_crop,
            resize=config.data.resize,
            loading=loading_of(config.data, runtime.device),
            observe=advance,
        )
    classes = {label for labels in runtime.world.gather(predicted.nonzero().flatten().tolist()) for label in labels}
    if len(classes) == 1 and len(set(index.labels.tolist())) > 1:
        console.print(
            f"warning: all {len(index)} images are predicted to be {index.classes[classes.pop()]}; the model has "
            "learned nothing yet, or its training diverged (then lower the stage's lr or optim.weight_decay)",
            highlight=False,
        )
    return found
