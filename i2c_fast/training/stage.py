"""What a stage of training is built of: its method over the model, the optimizer, and the step that joins them."""

from ..config import Config
from ..errors import UserError
from ..methods import METHODS, Method, Setup
from ..models import Localizer
from ..runtime import Runtime
from ..world import ALONE, World
from .ema import EMA
from .graph import GraphedStep
from .optimizer import build_optimizer
from .step import TrainStep


def build_method(config: Config, stage: str, model: Localizer, world: World = ALONE) -> Method:
    """The method of a stage over a model."""
    setup = Setup(config.run.seed, config.batch.micro_batches, world.group)
    return METHODS[config.stages[stage].method](model, config.options_of(stage), setup)


def open_step(config: Config, stage: str, model: Localizer, runtime: Runtime, ema: EMA | None = None) -> TrainStep:
    """The step of a stage over a model that lies on the runtime's device.

    Raises:
        UserError: options that the device or one another rule out, or ``optim.impl=apex`` where there is none.
    """
    run, optim = config.run, config.optim
    if run.cuda_graph and runtime.device.type != "cuda":
        raise UserError(f"run.cuda_graph=true needs a GPU, this run is on {runtime.device}; leave it out")
    if run.cuda_graph and not runtime.world.alone:
        raise UserError(f"run.cuda_graph=true is for one rank, there are {runtime.world.size}; leave it out")
    if optim.impl == "apex" and (optim.clip_norm or run.cuda_graph or runtime.precision == "fp16"):
        raise UserError(
            "optim.impl=apex goes with none of optim.clip_norm, run.cuda_graph and run.precision=fp16; take torch"
        )
    method = runtime.move(build_method(config, stage, model, runtime.world))
    if run.compile:
        # Before DistributedDataParallel wraps it, and anew for each stage, for a method may change the model. All
        # batches of a stage have one shape.
        model.compile(dynamic=False)
    optimizer = build_optimizer(method, optim)
    kind = GraphedStep if run.cuda_graph else TrainStep
    return kind(method, optimizer, runtime, config.batch.micro_batches, optim.clip_norm, ema)
