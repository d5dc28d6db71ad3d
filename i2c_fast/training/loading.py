"""Which loader a run uses: ``data.loader=auto`` is settled when the run begins, and kept in its configuration."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from ..config import Config, DataConfig, build_config
from ..data import Loading, check_loader, choose_loader, dali_problem
from ..errors import UserError

Say = Callable[[str], None]


def loading_of(data: DataConfig, device: torch.device) -> Loading:
    """What the loaders are told, of a configuration whose loader is settled."""
    assert data.loader != "auto"
    return Loading(data.loader, data.prefetch, device, data.hw_decoder_load)


def settle_loader(config: Config, device: torch.device, say: Say, began_with: Config | None = None) -> Config:
    """The configuration with ``data.loader`` settled.

    ``auto`` becomes what the run began with, if it is continued. Another loader may be named then: images differ by
    rounding alone, as they do where ``run.device`` changes.

    Args:
        say: told, in a line, of a choice that the user did not make.
        began_with: the configuration of a run that is continued.

    Raises:
        UserError: DALI is asked for and cannot be used here.
    """
    wanted = config.data.loader
    if wanted == "auto" and began_with is not None:
        wanted = began_with.data.loader
    elif wanted == "auto":
        wanted, reason = choose_loader(device)
        say(f"data.loader=auto chose {wanted}: {reason}")
    elif began_with is not None and began_with.data.loader != wanted:
        say(
            f"data.loader={wanted}: the run began with {began_with.data.loader}, whose pixels differ by rounding; "
            "it is not continued bit-equal"
        )
    assert wanted != "auto"
    check_loader(wanted)
    return replace(config, data=replace(config.data, loader=wanted))


def checkpoint_config(state: dict[str, Any], overrides: Iterable[str], say: Say) -> Config:
    """A checkpoint's configuration, changed by ``key=value``, to score or predict with.

    A run that loaded with DALI is scored on a machine without it too, unless `overrides` name the loader.

    Args:
        say: told, in a line, where OpenCV takes over.

    Raises:
        UserError: an override that does not fit, or another flavor of resizing than the model was trained with.
    """
    stored, overrides = build_config(state["config"], "the checkpoint"), list(overrides)
    if stored.data.loader == "dali" and not any(override.startswith("data.loader=") for override in overrides):
        problem = dali_problem()
        if problem:
            say(f"the run loaded its images by DALI; {problem}, so OpenCV loads them here")
            overrides.append("data.loader=opencv")
    config = build_config(state["config"], "the checkpoint", overrides)
    if config.data.resize != stored.data.resize:
        raise UserError(
            f"data.resize={config.data.resize}: the checkpoint was trained on images resized by {stored.data.resize}, "
            "scores would not compare; leave it out"
        )
    return config
