"""Score a model as a configuration says, with a progress bar."""

from collections.abc import Callable

from rich.console import Console

from ..config import Config, EvalConfig
from ..data import ImageIndex
from ..evaluation import PaperProtocol, Scores, ScoringProtocol, WsolEvaluationProtocol, evaluate
from ..models import Localizer
from ..runtime import Runtime
from .logs import Meter


def score_split(
    model: Localizer,
    index: ImageIndex,
    runtime: Runtime,
    config: Config,
    console: Console,
    between_batches: Callable[[], None] = lambda: None,
) -> Scores:
    """Evaluate `model` on a split by the configured protocol; `between_batches` may raise to leave early."""

    def progress(images: int) -> None:
        meter.advance(images, images)
        between_batches()

    with Meter(console, "evaluation", len(index)) as meter:
        return evaluate(
            model,
            index,
            runtime,
            _protocol(config.eval),
            image_size=config.data.image_size,
            batch_size=config.eval.batch,
            workers=config.data.workers,
            ten_crop=config.eval.ten_crop,
            progress=progress,
        )


def _protocol(config: EvalConfig) -> ScoringProtocol:
    return WsolEvaluationProtocol() if config.protocol == "wsolevaluation" else PaperProtocol(config.threshold_step)
