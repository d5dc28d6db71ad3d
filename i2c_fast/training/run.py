"""Runs as people start them: a folder, a configuration, a result."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from torch import Tensor

from ..config import Config, DataConfig, as_toml, build_config, differences
from ..data import ImageIndex, Split, read_split, recognize
from ..environment import environment
from ..errors import UserError
from ..evaluation import BatchObserver, Scores, write_maps
from ..files import write_bytes, write_json
from ..models import Localizer, build_localizer, load_imagenet_weights
from ..runtime import open_runtime, seed_all
from .checkpoint import checkpoints_of, load_checkpoint, restore_predictor, save_weights
from .loading import checkpoint_config, settle_loader
from .loop import Trainer
from .scoring import score_split

# What may change when a run is continued: it decides where and how fast, not what is computed.
FREE_ON_RESUME = (
    "run.device", "run.threads", "run.log_every", "run.checkpoint_every", "run.keep_checkpoints", "run.max_skipped",
    "run.compile", "run.cuda_graph", "optim.impl",
    "data.root", "data.layout", "data.metadata", "data.workers", "data.max_unreadable",
    "data.loader", "data.prefetch", "data.hw_decoder_load",  # see `settle_loader`
    "model.weights", "model.init",
    "eval.every", "eval.batch", "eval.protocol", "eval.threshold_step", "eval.ten_crop", "eval.ema",
)  # fmt: skip

Resume = Literal["never", "auto", "required"]


def start_run(config: Config, run: Path, console: Console, resume: Resume = "never") -> Scores | None:
    """Train a configuration in the folder `run`.

    The folder gets ``config.toml``, ``environment.json``, ``log.jsonl``, ``tensorboard/``, ``checkpoints/``, and at the
    end ``evaluation.json`` and ``weights.safetensors``.

    Args:
        resume: ``required`` continues from the newest readable checkpoint, ``auto`` does if there is one, ``never``
            wants an empty folder.

    Returns:
        The final evaluation; None where the run was already complete.

    Raises:
        UserError: a folder in use and no `resume`, a configuration or data set other than the run's, and all that
            building a run raises. RunStopped: a signal ended the run early.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; choose another --output")
    state = None
    if resume == "required" or (resume == "auto" and checkpoints_of(run)):
        state = load_checkpoint(run, lambda text: console.print(f"warning: {text}", highlight=False))
        config = _continued(config, state)
    elif resume == "never" and run.is_dir() and any(run.iterdir()):
        raise UserError(f"{run} is not empty; continue it with --resume, or choose another --output")
    trainer = build_trainer(config, run, console, state)
    config = trainer.config
    layout = recognize(config.data.root, config.data.metadata) if config.data.layout == "auto" else config.data.layout
    console.print(
        f"{layout} layout: {len(trainer.train_index)} training and {len(trainer.val_index)} validation images of "
        f"{len(trainer.train_index.classes)} classes",
        highlight=False,
    )
    write_bytes(run / "config.toml", as_toml(trainer.config).encode())
    write_json(run / "environment.json", environment())
    if trainer.step:
        console.print(f"continuing after step {trainer.step} of {trainer.timeline.steps}", highlight=False)
    scores = trainer.train()
    if scores is not None:
        write_json(run / "evaluation.json", scores.summary())
        facts = {"backbone": config.model.backbone, "classes": "\n".join(trainer.train_index.classes)}
        save_weights(run / "weights.safetensors", trainer.model.state_dict(), facts)
        if trainer.ema is not None:
            save_weights(run / "weights_ema.safetensors", trainer.ema.values, facts)
    return scores


def build_trainer(config: Config, run: Path, console: Console, state: dict[str, Any] | None = None) -> Trainer:
    """Data, model and trainer of a configuration, continued from `state` if one is given."""
    runtime = open_runtime(config.run.device, config.run.precision, config.run.deterministic, config.run.threads)
    began_with = build_config(state["config"], "the run's checkpoint") if state is not None else None
    config = settle_loader(config, runtime.device, lambda text: console.print(text, highlight=False), began_with)
    train, val = open_split(config.data, "train"), open_split(config.data, "val")
    seed_all(config.run.seed)
    model = build_localizer(config.model.backbone, len(train.classes), config.model.head_width)
    if config.data.image_size < 2 * model.stride:
        raise UserError(
            f"model.backbone={config.model.backbone} has stride {model.stride}, its maps would be one pixel; "
            f"data.image_size must be {2 * model.stride} or more, is {config.data.image_size}"
        )
    if state is not None:
        _check_model(state, config)
        _check_classes(state, train)
    elif config.model.init:
        _load_start(model, config, train)
    elif config.model.init_head == "new":
        raise UserError("model.init_head=new needs model.init, the checkpoint or run to start from")
    elif config.model.weights != "none":
        report = load_imagenet_weights(model.body, config.model.backbone, config.model.weights)
        left_over = f", {len(report.unexpected)} of other layers left over" if report.unexpected else ""
        console.print(f"ImageNet weights: {len(report.loaded)} tensors loaded{left_over}", highlight=False)
    if config.run.precision == "auto":
        config = replace(config, run=replace(config.run, precision=runtime.precision))
        if runtime.device.type == "cuda":
            console.print(f"run.precision=auto chose {runtime.precision}, the fastest here", highlight=False)
    trainer = Trainer(config, run, runtime.move(model), train, val, runtime, console)
    if state is not None:
        if state["train_fingerprint"] != train.fingerprint():
            raise UserError(f"data.root: {train.root} holds other training images than the run started with")
        trainer.restore(state)
    return trainer


def open_split(data: DataConfig, split: Split) -> ImageIndex:
    """Index a split as the configuration describes it."""
    return read_split(
        data.root, split, data.layout, metadata=data.metadata, devkit=data.devkit, blacklist=data.blacklist
    )


def score_checkpoint(
    checkpoint: Path,
    overrides: Iterable[str],
    console: Console,
    split: Split = "val",
    observe: BatchObserver = lambda images, maps, scores: None,
    maps: Path | None = None,
) -> tuple[Scores, ImageIndex]:
    """Score a checkpoint on a split of the data its own configuration, changed by ``key=value``, names.

    Args:
        split: see `read_split`.
        observe: sees what was computed of each batch.
        maps: folder to save each image's raw map in, see `write_maps`.

    Returns:
        The scores, and the split.

    Raises:
        UserError: a checkpoint, data set or override that does not fit, or a split to choose thresholds by that has no
            boxes.
    """
    state = load_checkpoint(checkpoint)

    def say(text: str) -> None:
        console.print(text, highlight=False)

    config = checkpoint_config(state, overrides, say)
    runtime = open_runtime(config.run.device, config.run.precision, config.run.deterministic, config.run.threads)
    config = settle_loader(config, runtime.device, say)
    index = open_split(config.data, split)
    _check_model(state, config)
    _check_classes(state, index)
    if split == "boxed_train" and not any(map(len, index.boxes)):
        raise UserError(
            f"the training images of {index.root} have no boxes that its layout reads, to choose thresholds by; "
            "leave --threshold-from out"
        )

    def watch(images: Tensor, raws: Tensor, scores: Tensor) -> None:
        observe(images, raws, scores)
        if maps is not None:
            write_maps(maps, index, images, raws)

    model = runtime.move(restore_predictor(state, config.eval.ema))
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
