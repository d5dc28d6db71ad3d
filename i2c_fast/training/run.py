"""Runs as people start them: a folder, a configuration, a result."""

import hashlib
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from ..config import Config, DataConfig, as_dict, as_toml, build_config, differences
from ..data import ImageIndex, Split, read_split, recognize
from ..environment import environment
from ..errors import UserError
from ..evaluation import BatchObserver, Scores, unobserved, write_maps
from ..files import write_bytes, write_json
from ..models import Localizer, build_localizer, load_imagenet_weights
from ..runtime import Runtime, memory_errors, open_runtime, seed_all
from ..world import ALONE, World
from .batchnorm import synchronize_batchnorm
from .checkpoint import checkpoints_of, find_checkpoint, load_checkpoint, restore_predictor, save_weights
from .loading import checkpoint_config, settle_loader
from .loop import STOPPED, Trainer
from .memory import check_evaluation_memory, check_training_memory
from .scoring import score_split

# What may change when a run is continued: it decides where and how fast, not what is computed.
FREE_ON_RESUME = (
    "run.device", "run.threads", "run.log_every", "run.checkpoint_every", "run.keep_checkpoints", "run.max_skipped",
    "run.compile", "run.cuda_graph", "run.rank_timeout", "optim.impl",
    "data.root", "data.layout", "data.metadata", "data.masks", "data.workers", "data.max_unreadable",
    "data.loader", "data.prefetch", "data.hw_decoder_load",  # see `settle_loader`
    "model.weights", "model.init",
    "eval.every", "eval.batch", "eval.protocol", "eval.threshold_step", "eval.ten_crop", "eval.ema",
)  # fmt: skip

# What may differ between the ranks of a run: where each finds what it reads.
FREE_ON_RANKS = (
    "run.threads", "data.root", "data.metadata", "data.devkit", "data.masks", "data.blacklist", "data.workers",
)  # fmt: skip

Resume = Literal["never", "auto", "required"]


@memory_errors("lower batch.classes, batch.images, data.image_size or eval.batch, or raise batch.micro_batches")
def start_run(
    config: Config,
    run: Path,
    console: Console,
    resume: Resume = "never",
    world: World = ALONE,
    observe: BatchObserver = unobserved,
) -> Scores | None:
    """Train a configuration in the folder `run`.

    The folder gets ``config.toml``, ``environment.json``, ``log.jsonl``, ``tensorboard/``, ``checkpoints/``, and at the
    end ``evaluation.json``, ``weights.safetensors`` and, if an EMA is kept, ``weights_ema.safetensors``; ``stopped`` is
    there while the run waits, after a signal, to be continued.

    Args:
        resume: ``required`` continues from the newest readable checkpoint, ``auto`` does if there is one, ``never``
            wants an empty folder.
        world: the ranks that train it together; the first of them keeps the folder, which all have to see.
        observe: sees what was computed of each batch of its evaluations.

    Returns:
        The final evaluation; None where the run was already complete.

    Raises:
        UserError: a folder in use and no `resume`, a configuration or data set other than the run's, and all that
            building a run raises. RunStopped: a signal ended the run early.
    """
    # torchrun starts all ranks anew after one has died; only the node it died on counts that.
    if resume == "never" and any(world.gather(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0")):
        resume = "auto"
    console = console if world.rank == 0 else Console(quiet=True)
    with world.together():
        start = _where_to_start(run, resume, console) if world.rank == 0 else None
    start = world.gather(start)[0]
    trainer = build_trainer(config, run, console, start, world, observe)
    if world.rank == 0:
        (run / STOPPED).unlink(missing_ok=True)
        write_bytes(run / "config.toml", as_toml(trainer.config).encode())
        write_json(run / "environment.json", environment())
    with world.together():
        _check_shared(run, trainer.config, world)
    data, timeline = trainer.config.data, trainer.timeline
    console.print(
        f"{recognize(data.root, data.metadata) if data.layout == 'auto' else data.layout} layout: "
        f"{len(trainer.train_index)} training and {len(trainer.val_index)} validation images of "
        f"{len(trainer.train_index.classes)} classes",
        highlight=False,
    )
    if trainer.step:
        console.print(f"continuing after step {trainer.step} of {timeline.steps}", highlight=False)
    scores = trainer.train()
    if scores is not None and world.rank == 0:
        write_json(run / "evaluation.json", scores.summary())
        facts = {"backbone": config.model.backbone, "classes": "\n".join(trainer.train_index.classes)}
        save_weights(run / "weights.safetensors", trainer.model.state_dict(), facts)
        if trainer.ema is not None:
            save_weights(run / "weights_ema.safetensors", trainer.ema.values, facts)
    return scores


def _where_to_start(run: Path, resume: Resume, console: Console) -> Path | None:
    """The checkpoint to continue from, or None to start anew."""
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; choose another --output")
    if resume == "required" or (resume == "auto" and checkpoints_of(run)):
        return find_checkpoint(run, lambda text: console.print(f"warning: {text}", highlight=False))[0]
    if resume == "never" and run.is_dir() and any(run.iterdir()):
        raise UserError(f"{run} is not empty; continue it with --resume, or choose another --output")
    return None


def _check_shared(run: Path, config: Config, world: World) -> None:
    """Refuse a run folder that is each node's own: checkpoints are read there by all ranks."""
    for _ in range(50):  # network file systems show a new file late
        if world.alone or (run / "config.toml").is_file():
            return
        time.sleep(0.1)
    raise UserError(
        f"rank {world.rank} on {socket.gethostname()} does not see {run.absolute()}, which rank 0 writes; choose an "
        "--output that all nodes share"
    )


def build_trainer(
    config: Config,
    run: Path,
    console: Console,
    start: Path | None = None,
    world: World = ALONE,
    observe: BatchObserver = unobserved,
) -> Trainer:
    """Data, model and trainer of a configuration, continued from the checkpoint `start` if one is given."""
    with world.together():
        state = None if start is None else load_checkpoint(start)
        config = config if state is None else _continued(config, state)
        runtime = open_runtime(
            config.run.device, config.run.precision, config.run.deterministic, config.run.threads, world
        )
        config = _settled(config, runtime, console, state)
        train, val = open_split(config.data, "train"), open_split(config.data, "val")
        model = _build_model(config, runtime, train, console, state)
        check_training_memory(config, model, runtime)
        check_evaluation_memory(config, model, len(val), runtime)
    world.check_alike(_facts(config, train, val))
    trainer = Trainer(config, run, runtime.move(model), train, val, runtime, console, observe)
    if state is not None:
        if state["train_fingerprint"] != train.fingerprint():
            raise UserError(f"data.root: {train.root} holds other training images than the run started with")
        try:
            trainer.restore(state)
        except UserError as error:
            raise UserError(f"{start} does not continue this run: {error}") from None
    return trainer


def _settled(config: Config, runtime: Runtime, console: Console, state: dict[str, Any] | None) -> Config:
    """The configuration with a choice made where it says ``auto``."""

    def say(text: str) -> None:
        console.print(text, highlight=False)

    began_with = build_config(state["config"], "the run's checkpoint") if state is not None else None
    if config.run.precision == "auto" and runtime.device.type == "cuda":
        say(f"run.precision=auto: {runtime.precision}, the fastest here")
    config = replace(config, run=replace(config.run, precision=runtime.precision))
    return settle_loader(config, runtime.device, say, began_with)


def _build_model(
    config: Config, runtime: Runtime, train: ImageIndex, console: Console, state: dict[str, Any] | None
) -> Localizer:
    """The model with the weights it starts from, on the CPU; those of a checkpoint come with the trainer's state."""
    chosen = config.model
    seed_all(config.run.seed)
    model = build_localizer(chosen.backbone, len(train.classes), chosen.head_width, chosen.dropout)
    if config.data.image_size < 2 * model.stride:
        raise UserError(
            f"model.backbone={chosen.backbone} has stride {model.stride}, its maps would be one pixel; "
            f"data.image_size must be {2 * model.stride} or more, is {config.data.image_size}"
        )
    if state is not None:
        _check_model(state, config)
        _check_classes(state, train)
    elif chosen.init:
        _load_start(model, config, train)
    elif chosen.init_head == "new":
        raise UserError("model.init_head=new needs model.init, the checkpoint or run to start from")
    elif chosen.weights != "none":
        report = load_imagenet_weights(model.body, chosen.backbone, chosen.weights)
        left_over = f", {len(report.unexpected)} of other layers left over" if report.unexpected else ""
        console.print(f"ImageNet weights: {len(report.loaded)} tensors loaded{left_over}", highlight=False)
    model.frozen_statistics = chosen.bn == "frozen"
    if chosen.freeze:
        model.freeze(chosen.freeze)
    return synchronize_batchnorm(model, runtime.device) if chosen.bn == "sync" else model


def _facts(config: Config, train: ImageIndex, val: ImageIndex) -> dict[str, str]:
    """What ranks have to have in common."""
    keys = {
        f"{section}.{key}": str(value)
        for section, entries in as_dict(config).items()
        for key, value in entries.items()
        if f"{section}.{key}" not in FREE_ON_RANKS
    }
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    code = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    return {
        **keys,
        "training images": train.fingerprint()[:12],
        "validation images": val.fingerprint()[:12],
        "torch": torch.__version__,
        "i2c-fast's code": code,
    }


def open_split(data: DataConfig, split: Split) -> ImageIndex:
    """Index a split as the configuration describes it."""
    lists = {"metadata": data.metadata, "devkit": data.devkit, "masks": data.masks, "blacklist": data.blacklist}
    return read_split(data.root, split, data.layout, **lists)


@memory_errors("lower eval.batch or data.workers, or close other programs")
def score_checkpoint(
    checkpoint: Path,
    overrides: Iterable[str],
    console: Console,
    split: Split = "val",
    observe: BatchObserver = unobserved,
    maps: Path | None = None,
    world: World = ALONE,
) -> tuple[Scores, ImageIndex]:
    """Score a checkpoint on a split of the data its own configuration, changed by ``key=value``, names.

    Args:
        split: see `read_split`.
        observe: sees what was computed of each batch.
        maps: folder to save each image's raw map in, see `write_maps`.
        world: the ranks that score it together; all get the scores of the whole split.

    Returns:
        The scores, and the split.

    Raises:
        UserError: a checkpoint, data set or override that does not fit, or a split to choose thresholds by that has no
            boxes.
    """
    with world.together():
        console = console if world.rank == 0 else Console(quiet=True)

        def say(text: str) -> None:
            console.print(text, highlight=False)

        state = load_checkpoint(checkpoint, lambda text: say(f"warning: {text}"))
        config = checkpoint_config(state, overrides, say)
        runtime = open_runtime(
            config.run.device, config.run.precision, config.run.deterministic, config.run.threads, world
        )
        config = settle_loader(config, runtime.device, say)
        index = open_split(config.data, split)
        _check_model(state, config)
        _check_classes(state, index)
        if split != "val" and not any(map(len, index.boxes)):
            images = "training images" if split == "boxed_train" else "val images"
            raise UserError(
                f"the {images} of {index.root} have no boxes that its layout reads, to choose thresholds by; "
                "leave --threshold-from out"
            )
        model = runtime.move(restore_predictor(state, config.eval.ema))
        check_evaluation_memory(config, model, len(index), runtime)

    def watch(images: Tensor, raws: Tensor, scores: Tensor) -> None:
        observe(images, raws, scores)
        if maps is not None:
            write_maps(maps, index, images, raws)

    return score_split(model, index, runtime, config, console, watch), index


def _continued(config: Config, state: dict[str, Any]) -> Config:
    """The configuration to continue a run with; what it calls ``auto`` is what the run began with."""
    started = build_config(state["config"], "the run's checkpoint")
    if config.run.precision == "auto":
        config = replace(config, run=replace(config.run, precision=started.run.precision))
    for key, (then, now) in differences(started, config).items():
        if key not in FREE_ON_RESUME:
            raise UserError(f"the run was started with {key}={then}, not {now}; give that, or start another --output")
    return config


def _check_model(state: dict[str, Any], config: Config) -> None:
    for key in ("backbone", "head_width"):
        trained, wanted = state["config"]["model"][key], getattr(config.model, key)
        if trained != wanted:
            raise UserError(f"the checkpoint holds model.{key}={trained}, the configuration asks for {wanted}")


def _check_classes(state: dict[str, Any], index: ImageIndex, way_out: str = "") -> None:
    if tuple(state["classes"]) != index.classes:
        raise UserError(
            f"the checkpoint knows {len(state['classes'])} classes ({state['classes'][0]} …), {index.root} has "
            f"{len(index.classes)} ({index.classes[0]} …); they must be the same{way_out}"
        )


def _load_start(model: Localizer, config: Config, index: ImageIndex) -> None:
    """Weights of ``model.init``; with ``model.init_head=new`` all but the class layer fc8."""
    state = load_checkpoint(Path(config.model.init))
    _check_model(state, config)
    weights = dict(state["model"])
    if config.model.init_head == "new":
        weights |= {name: tensor for name, tensor in model.state_dict().items() if name.startswith("head.fc8.")}
    else:
        _check_classes(state, index, ", unless model.init_head=new draws the class layer anew")
    model.load_state_dict(weights)
