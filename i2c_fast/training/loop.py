"""The training loop: stages, epochs, evaluations, logs, checkpoints."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ..config import Config, as_dict
from ..data import SAMPLERS, Deal, ImageIndex, Sampler, TrainBatch, TrainBatches, train_loader
from ..errors import UserError
from ..evaluation import BatchObserver, Scores, headline, unobserved
from ..files import write_bytes
from ..models import Localizer
from ..runtime import Runtime, seed_all
from .checkpoint import checkpoint_path, save_checkpoint
from .ema import EMA
from .loading import loading_of
from .logs import Meter, NoLog, RunLog
from .optimizer import batch_factor, learning_rate, set_learning_rate
from .schema import check_optimizer
from .scoring import score_split
from .signals import StopRequest
from .stage import open_step
from .timeline import Timeline
from .unreadable import UnreadableImages

# In the run folder of a run that a signal stopped: whoever started it looks for the file to start it again.
STOPPED = "stopped"


class RunStopped(Exception):
    """The run ended early on request, with a checkpoint to continue from."""


class Trainer:
    """Trains a model along its timeline, stage by stage, and keeps the run folder.

    Args:
        config: resolved configuration. run: folder of logs and checkpoints.
        model: on the runtime's device.
        train, val: the splits.
        observe: sees each batch of the run's evaluations.
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        model: Localizer,
        train: ImageIndex,
        val: ImageIndex,
        runtime: Runtime,
        console: Console,
        observe: BatchObserver = unobserved,
    ) -> None:
        self.config, self.run, self.model, self.runtime, self.console = config, run, model, runtime, console
        self.observe = observe
        self.train_index, self.val_index = train, val
        self.world = runtime.world
        # Of the same length whatever the plan.
        steps = math.ceil(config.batch.epoch_fraction * self._sampler("class_paired").steps_per_epoch)
        self.timeline = Timeline(config, steps)
        self.unreadable = UnreadableImages(run, train, config.data.max_unreadable, console, self.world.rank == 0)
        self.step = 0  # steps done
        self.epoch_closed = True  # at an epoch's end: it was evaluated if that was due
        self.averaged_at = 0  # step after which ranks last had the same BatchNorm statistics
        self.skipped_in_row = 0
        self.scores: Scores | None = None  # of the last evaluation in this process
        self.summary: dict[str, Any] | None = None  # of the last evaluation of the run
        self.ema = EMA(model, config.optim.ema_decay) if config.optim.ema_decay else None
        self._open_stage(self.timeline.position(0).stage)

    def train(self) -> Scores | None:
        """Train from where the state stands to the end; returns the final evaluation.

        Raises:
            RunStopped: a signal asked for it; the checkpoint is written.
            UserError: too many steps in a row were not finite, too many images unreadable, or the disk is full.
        """
        with StopRequest() as stop, RunLog(self.run, self.step) if self.world.rank == 0 else NoLog() as log:
            if not self.epoch_closed and self.step % self.timeline.steps_per_epoch == 0:
                self._close_epoch(log, stop)
            while self.step < self.timeline.steps:
                position = self.timeline.position(self.step)
                if self.step and position.step_in_stage == 0:
                    self.method.close()
                    self._open_stage(position.stage)
                self._train_stage(position.stage, log, stop)
        return self.scores

    def _train_stage(self, stage: str, log: RunLog | NoLog, stop: StopRequest) -> None:
        data, plan = self.config.data, self.config.batch.plan
        sampler = self._sampler(self.method.plan if plan == "auto" else plan)
        end = self.timeline.end_of_stage(stage)
        self.console.print(
            f"{stage} ({self.method.name}): {end - self.step:,} steps of {sampler.global_batch_size:,} images",
            highlight=False,
        )
        # One loader for the rest of the stage: its processes go on with the next epoch while this one is evaluated.
        batches = train_loader(
            TrainBatches(self.train_index, sampler, data.image_size, data.short_side, data.resize),
            (self.timeline.position(step)[1:3] for step in range(self.step, end)),
            data.workers,
            loading_of(data, self.runtime.device),
        )
        while self.step < end:
            self._train_epoch(batches, log, stop)
            self._close_epoch(log, stop)

    def _sampler(self, plan: str) -> Sampler:
        batch, deal = self.config.batch, Deal(self.config.batch.micro_batches, self.world.size, self.world.rank)
        return SAMPLERS[plan](self.train_index.labels, batch.classes, batch.images, self.config.run.seed, deal)

    def _train_epoch(self, batches: Iterator[TrainBatch], log: RunLog | NoLog, stop: StopRequest) -> None:
        run, per_epoch = self.config.run, self.timeline.steps_per_epoch
        position = self.timeline.position(self.step)
        stage = self.timeline.stages[position.stage]
        unread: list[tuple[int, float, Tensor]] = []
        unreadable: list[tuple[int, str]] = []
        factor = batch_factor(self.config.batch, self.config.optim)
        # Dropout and what methods draw differ between ranks, and depend on nothing that went before.
        own = (self.world.rank,) if self.world.rank else ()
        self.method.train()
        title = f"{position.stage} ({stage.method}) epoch {position.epoch + 1}/{self.timeline.epochs}"
        with Meter(self.console, title, per_epoch, position.step_in_epoch) as meter:
            for batch in islice(batches, per_epoch - position.step_in_epoch):
                unreadable += batch.unreadable
                rate = factor * learning_rate(stage, self.timeline.position(self.step).step_in_stage, per_epoch)
                set_learning_rate(self.train_step.optimizer, rate)
                seed_all(run.seed, self.step, *own)
                unread.append((self.step, rate, self.train_step(batch)))
                self.step += 1
                self.epoch_closed = False
                due = run.checkpoint_every > 0 and self.step % run.checkpoint_every == 0
                ends = self.step % per_epoch == 0
                note = ""
                # Ranks stop at a step that all of them read at.
                if self.step % run.log_every == 0 or due or ends or (stop.requested and self.world.alone):
                    self._agree(stop, unreadable)
                    note = self._log_steps(log, position.stage, unread)
                meter.advance(1, len(batch.images) * self.world.size, note)
                if stop.agreed:
                    self._stop(stop)
                if due and not ends:
                    self._save()

    def _agree(self, stop: StopRequest, unreadable: list[tuple[int, str]]) -> None:
        """Tell all ranks what any was asked for or met since they last agreed; an absent one is missed here."""
        requests, met = zip(*self.world.gather((stop.requested, unreadable)), strict=True)
        stop.agreed = next(filter(None, requests), None)
        self.unreadable.note(chain(*met))
        unreadable.clear()

    def _log_steps(self, log: RunLog | NoLog, stage: str, unread: list[tuple[int, float, Tensor]]) -> str:
        # The only place where the loop waits for the device, and it reads many steps at once.
        values = torch.stack([terms for *_, terms in unread]).tolist()
        rows = [dict(zip(self.train_step.terms, row, strict=True)) for row in values]
        for (step, rate, _), row in zip(unread, rows, strict=True):
            log.write("train", step, {"stage": stage, "method": self.method.name, "lr": rate, **row})
            self.skipped_in_row = self.skipped_in_row + 1 if row["skipped"] else 0
            if self.skipped_in_row >= self.config.run.max_skipped:
                log.flush()
                raise UserError(
                    f"{self.skipped_in_row} steps in a row were not finite (the last is step {step}); lower "
                    f"{stage}.lr or the loss weights, or raise run.max_skipped"
                )
        log.flush()
        unread.clear()
        return "  ".join(f"{name} {rows[-1][name]:.3f}" for name in ("loss", "accuracy") if name in rows[-1])

    def _close_epoch(self, log: RunLog | NoLog, stop: StopRequest) -> None:
        done, every = self.step // self.timeline.steps_per_epoch, self.config.eval.every
        if self.step == self.timeline.steps or (every and done % every == 0):
            self.scores = self._score(stop)
            self.summary = self.scores.summary()
            log.write("evaluation", self.step - 1, {"scores": self.summary})
            log.flush()
            self.console.print(f"after epoch {done}: {headline(self.summary)}", highlight=False)
        self.epoch_closed = True
        self._save()
        self._agree(stop, [])
        if stop.agreed and self.step < self.timeline.steps:
            self._stop(stop)

    def _score(self, stop: StopRequest) -> Scores:
        def watch(*batch: Tensor) -> None:
            self.observe(*batch)
            if stop.requested and self.world.alone:
                stop.agreed = stop.requested
                self._stop(stop)

        self._average_statistics()
        # What is compiled is the training step; evaluation's batches have other shapes.
        with torch.compiler.set_stance("force_eager"), ExitStack() as stack:
            if self.config.eval.ema and self.ema is not None:
                stack.enter_context(self.ema.in_model())
            return score_split(self.method.predictor, self.val_index, self.runtime, self.config, self.console, watch)

    def _stop(self, stop: StopRequest) -> None:
        self._save()
        if self.world.rank == 0:
            write_bytes(self.run / STOPPED, f"{stop.agreed} after step {self.step}\n".encode())
        raise RunStopped(f"stopped by {stop.agreed} after step {self.step}; continue with --resume")

    def _average_statistics(self) -> None:
        if self.averaged_at == self.step:
            return
        self.averaged_at = self.step
        self.train_step.average_statistics()
        if self.ema is not None:
            self.ema.average_statistics(self.world)

    def _save(self) -> None:
        self._average_statistics()
        if self.world.rank:
            return
        save_checkpoint(checkpoint_path(self.run, self.step), self.state(), self.config.run.keep_checkpoints)

    def _open_stage(self, stage: str) -> None:
        """Method, optimizer and step of a stage; the model and its EMA go on, momentum starts anew."""
        self.train_step = open_step(self.config, stage, self.model, self.runtime, self.ema)
        self.method = self.train_step.method

    def state(self) -> dict[str, Any]:
        """Everything a continuation needs; all randomness follows from the configuration's seed and the step."""
        return {
            "step": self.step,
            "stage": self.timeline.position(max(0, self.step - 1)).stage,
            "epoch_closed": self.epoch_closed,
            "skipped_in_row": self.skipped_in_row,
            "config": as_dict(self.config),
            "classes": list(self.train_index.classes),
            "train_fingerprint": self.train_index.fingerprint(),
            "model": self.model.state_dict(),
            "method": self.method.own_state(),
            "train_step": self.train_step.state_dict(),
            "ema": None if self.ema is None else self.ema.state(),
            "scores": self.summary,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`; the model's weights are loaded too. UserError if it is of another optimizer."""
        self.model.load_state_dict(state["model"])
        self.step, self.epoch_closed = state["step"], state["epoch_closed"]
        self.skipped_in_row, self.summary = state["skipped_in_row"], state["scores"]
        # Method and optimizer are those of the last step done; a stage that starts with the next opens its own.
        self.method.close()
        self._open_stage(state["stage"])
        self.method.load_own_state(state["method"])
        check_optimizer(state["train_step"]["optimizer"], self.train_step.optimizer)
        self.train_step.load_state_dict(state["train_step"])
        if self.ema is not None:
            self.ema.load(state["ema"])
