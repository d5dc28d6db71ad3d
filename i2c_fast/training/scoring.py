"""Score a model as a configuration says, with a progress bar."""

from rich.console import Console
from torch import Tensor

from ..config import Config
from ..data import ImageIndex
from ..evaluation import BatchObserver, Scores, evaluate, named_protocol, unobserved
from ..models import Localizer
from ..runtime import Runtime
from .loading import loading_of
from .logs import Meter


def score_split(
    model: Localizer,
    index: ImageIndex,
    runtime: Runtime,
    config: Config,
    console: Console,
    observe: BatchObserver = unobserved,
) -> Scores:
    """Evaluate `model` on a split by the configured protocol; `observe` may raise to leave early."""

    def advance(images: Tensor, maps: Tensor, scores: Tensor) -> None:
        meter.advance(len(images), len(images))
        observe(images, maps, scores)

    with Meter(console, "evaluation", len(index)) as meter:
        return evaluate(
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
