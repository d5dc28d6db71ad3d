"""Runs as people start them: a folder, a configuration, a result."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from ..config import Config, as_toml, build_config
from ..data import read_split
from ..environment import environment
from ..errors import UserError
from ..evaluation import Scores
from ..files import write_bytes, write_json
from ..models import build_localizer
from ..runtime import open_runtime
from .checkpoint import load_checkpoint
from .loop import Trainer, evaluate_split, load_model_state


def start_run(config: Config, run: Path, console: Console, resume: bool = False) -> Scores | None:
    """Train a configuration in the folder `run`, which gets ``config.toml``, ``log.jsonl``, ``tensorboard/``,
    ``checkpoints/``, ``evaluation.json`` and ``environment.json``.

    Args:
        resume: continue from the folder's newest checkpoint.

    Raises:
        UserError: a folder with something in it and no `resume`, `resume` without a checkpoint, and all that building
            the run raises.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; choose another --output")
    occupied = run.is_dir() and any(run.iterdir())
    if occupied and not resume:
        raise UserError(f"{run} is not empty; continue it with --resume, or choose another --output")
    trainer = Trainer(config, run, console, load_checkpoint(run) if resume else None)
    write_bytes(run / "config.toml", as_toml(config).encode())
    write_json(run / "environment.json", environment())
    scores = trainer.train()
    if scores is not None:
        write_json(run / "evaluation.json", scores.summary())
    return scores


def evaluate_checkpoint(checkpoint: Path, overrides: Iterable[str], console: Console) -> Scores:
    """Score a checkpoint on the validation split of its own configuration, changed by ``key=value``.

    Raises:
        UserError: a checkpoint, data set or override that does not fit.
    """
    state = load_checkpoint(checkpoint)
    config = build_config(state["config"], "the checkpoint", overrides)
    runtime = open_runtime(config.run.device, config.run.precision, config.run.deterministic, config.run.threads)
    index = read_split(config.data.root, "val", config.data.layout)
    model = build_localizer(config.model.backbone, len(state["classes"]))
    load_model_state(model, state, config, index)
    runtime.place(model)
    return evaluate_split(model, index, runtime, config, console)
