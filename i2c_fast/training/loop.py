"""The training loop: stages, epochs, evaluations, logs, checkpoints."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ..config import Config, as_dict
from ..data import ClassPairedSampler, ImageIndex, TrainBatch, TrainBatches, read_split, train_loader
from ..errors import UserError
from ..evaluation import PaperProtocol, Scores, evaluate
from ..losses import InterImageLoss
from ..models import BACKBONES, Localizer, build_localizer, load_imagenet_weights
from ..runtime import Runtime, open_runtime, seed_all
from .checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from .logs import Meter, RunLog
from .optimizer import build_optimizer, learning_rate, set_learning_rate
from .step import TERMS, TrainStep
from .timeline import Timeline


@dataclass
class Trainer:
    """One run: builds everything from a configuration, trains, and keeps the run folder.

    Attributes:
        config: resolved configuration. run: folder of logs and checkpoints.
        state: a checkpoint to continue from, as `load_checkpoint` gives it.
    """

    config: Config
    run: Path
    console: Console
    state: dict[str, Any] | None = None
    step: int = field(init=False, default=0)
    scores: Scores | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        config = self.config
        self.runtime: Runtime = open_runtime(
            config.run.device, config.run.precision, config.run.deterministic, config.run.threads
        )
        self.train_index = read_split(config.data.root, "train", config.data.layout)
        self.val_index = read_split(config.data.root, "val", config.data.layout)
        self.sampler = ClassPairedSampler(
            self.train_index.labels, config.batch.classes, config.batch.images, config.run.seed
        )
        self.timeline = Timeline(config, self.sampler.steps_per_epoch)
        seed_all(config.run.seed)
        self.model = self.runtime.place(self._build_model())
        self.criterion: InterImageLoss | None = None
        self._open_stage()
        if self.state is not None:
            self._restore(self.state)

    def train(self) -> Scores | None:
        """Train to the end; returns the final evaluation."""
        log = RunLog(self.run, self.step)
        # One loader for the rest of the run: its processes go on with the next epoch while this one is evaluated.
        data = self.config.data
        batches = train_loader(
            TrainBatches(self.train_index, self.sampler, data.image_size, data.short_side),
            [self.timeline.place(step)[1:3] for step in range(self.step, self.timeline.steps)],
            data.workers,
        )
        try:
            while self.step < self.timeline.steps:
                if self.step and self.timeline.starts_stage(self.step):
                    self._open_stage()
                self._train_epoch(batches, log)
                self._finish_epoch(log)
            return self.scores
        finally:
            log.close()

    def _train_epoch(self, batches: Iterator[TrainBatch], log: RunLog) -> None:
        config, place = self.config, self.timeline.place(self.step)
        stage = self.timeline.stages[place.stage]
        left = self.timeline.steps_per_epoch - place.step_in_epoch
        title = f"{place.stage} epoch {place.epoch + 1}/{self.timeline.epochs}"
        unread: list[tuple[int, float, Tensor]] = []
        self.model.train()
        with Meter(self.console, title, self.timeline.steps_per_epoch, place.step_in_epoch) as meter:
            for batch in islice(batches, left):
                step_in_stage = self.timeline.place(self.step).step_in_stage
                rate = learning_rate(stage, step_in_stage, self.timeline.steps_per_epoch)
                set_learning_rate(self.train_step.optimizer, rate)
                seed_all(config.run.seed, self.step)
                unread.append((self.step, rate, self.train_step(batch)))
                self.step += 1
                note = ""
                if self.step % config.run.log_every == 0 or self.step % self.timeline.steps_per_epoch == 0:
                    note = self._log_steps(log, place.stage, unread)
                meter.advance(1, len(batch.images), note)

    def _log_steps(self, log: RunLog, stage: str, unread: list[tuple[int, float, Tensor]]) -> str:
        # The only place where the loop waits for the device, and it reads many steps at once.
        rows = torch.stack([terms for *_, terms in unread]).tolist()
        for (step, rate, _), row in zip(unread, rows, strict=True):
            log.write("train", step, {"stage": stage, "lr": rate, **dict(zip(TERMS, row, strict=True))})
        log.flush()
        unread.clear()
        last = dict(zip(TERMS, rows[-1], strict=True))
        return f"loss {last['loss']:.3f}  accuracy {100 * last['accuracy']:.0f} %"

    def _finish_epoch(self, log: RunLog) -> None:
        done = self.step // self.timeline.steps_per_epoch
        config, every = self.config, self.config.eval.every
        if self.step == self.timeline.steps or (every and done % every == 0):
            self.scores = evaluate_split(self.model, self.val_index, self.runtime, config, self.console)
            log.write("evaluation", self.step - 1, {"scores": self.scores.summary()})
            log.flush()
            self.console.print(f"after epoch {done}: {headline(self.scores)}", highlight=False)
        save_checkpoint(checkpoint_path(self.run, self.step), self._state())

    def _build_model(self) -> Localizer:
        model = build_localizer(self.config.model.backbone, len(self.train_index.classes))
        if self.config.model.init:
            load_model_state(model, load_checkpoint(Path(self.config.model.init)), self.config, self.train_index)
        elif self.config.model.weights != "none" and self.state is None:
            report = load_imagenet_weights(model.body, self.config.model.backbone, self.config.model.weights)
            left_over = f"; left over: {', '.join(report.unexpected)}" if report.unexpected else ""
            self.console.print(f"ImageNet weights: {report.loaded} tensors loaded{left_over}", highlight=False)
        return model

    def _open_stage(self) -> None:
        """Objective, optimizer and step of the stage the next step is in; momentum starts anew with each stage."""
        config = self.config
        stage = self.timeline.place(self.step).stage if self.timeline.steps else "i2c"
        consistent = stage == "i2c" and (config.i2c.sc_weight > 0 or config.i2c.gc_weight > 0)
        if consistent:
            self.criterion = InterImageLoss(
                len(self.train_index.classes),
                BACKBONES[config.model.backbone].feature_dim,
                k=config.i2c.k,
                threshold=config.i2c.threshold,
                alpha=config.i2c.alpha,
                distance=config.i2c.distance,
                seed_choice=config.i2c.seed_choice,
                center_update=config.i2c.center_update,
                seed=config.run.seed,
                auto_commit=False,
            ).to(self.runtime.device)
        optimizer = build_optimizer(self.model, self.criterion, config.optim)
        self.train_step = TrainStep(
            self.model, self.criterion, optimizer, self.runtime, config.i2c.sc_weight, config.i2c.gc_weight
        )

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "stage": self.timeline.place(self.step - 1).stage,
            "config": as_dict(self.config),
            "classes": list(self.train_index.classes),
            "model": self.model.state_dict(),
            "criterion": None if self.criterion is None else self.criterion.state_dict(),
            "optimizer": self.train_step.optimizer.state_dict(),
            "scores": None if self.scores is None else self.scores.summary(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        load_model_state(self.model, state, self.config, self.train_index)
        # The checkpoint's stage is that of its last step; a stage that starts with the next one opens afresh.
        self.step = state["step"] - 1
        self._open_stage()
        if self.criterion is not None:
            self.criterion.load_state_dict(state["criterion"])
        self.train_step.optimizer.load_state_dict(state["optimizer"])
        self.step += 1


def load_model_state(model: Localizer, state: dict[str, Any], config: Config, index: ImageIndex) -> None:
    """Load a checkpoint's weights into a model built for `config` and `index`.

    Raises:
        UserError: another backbone, or other classes.
    """
    trained = state["config"]["model"]["backbone"]
    if trained != config.model.backbone:
        raise UserError(f"the checkpoint holds a {trained}, model.backbone is {config.model.backbone}")
    if tuple(state["classes"]) != index.classes:
        raise UserError(
            f"the checkpoint knows {len(state['classes'])} classes ({state['classes'][0]} …), {index.root} has "
            f"{len(index.classes)} ({index.classes[0]} …); they must be the same"
        )
    model.load_state_dict(state["model"])


def evaluate_split(
    model: Localizer, index: ImageIndex, runtime: Runtime, config: Config, console: Console
) -> Scores:
    """Score a model on a split as the configuration says, with a progress bar."""
    with Meter(console, "evaluation", len(index)) as meter:
        return evaluate(
            model,
            index,
            runtime,
            PaperProtocol(config.eval.threshold_step),
            image_size=config.data.image_size,
            batch_size=config.eval.batch,
            workers=config.data.workers,
            ten_crop=config.eval.ten_crop,
            progress=lambda images: meter.advance(images, images),
        )


def headline(scores: Scores) -> str:
    """The main errors on one line."""
    summary = scores.summary()
    parts = [f"cls top-1 {summary['cls_top1']:.2f}", f"top-5 {summary['cls_top5']:.2f}"]
    for metric, name in (("loc_top1", "loc top-1"), ("loc_top5", "top-5"), ("gt_known", "gt-known")):
        if metric in summary:
            parts.append(f"{name} {summary[metric]['error']:.2f}")
    return "error %: " + "  ".join(parts)
