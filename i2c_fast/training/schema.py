"""What a checkpoint holds, entry by entry: a file that holds anything else is refused before any of it is used."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from ..config import Config, as_dict, build_config
from ..errors import UserError
from ..models import BACKBONES, Localizer, build_localizer
from .stage import build_method

# Keys that have no default here, as they have in a recipe: they decide what a model with these weights computes.
NEEDED_KEYS = ("data.image_size", "data.resize", "model.backbone", "model.head_width")

Count = Annotated[int, Field(ge=0)]
Tensors = dict[str, Tensor]


class _Entries(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", arbitrary_types_allowed=True)


class _Averages(_Entries):
    weights: Tensors
    steps: Tensor


class _LossScale(_Entries):
    value: Tensor
    steps: Tensor


class _Optimizer(_Entries):
    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


class _TrainStep(_Entries):
    optimizer: _Optimizer
    loss_scale: _LossScale | None


class _AtBestThreshold(_Entries, extra="allow"):
    threshold: Annotated[int, Field(ge=0, le=254)]  # gray level


class _Scores(_Entries, extra="allow"):
    protocol: str
    gt_known: _AtBestThreshold = _AtBestThreshold(threshold=0)  # absent where there were no boxes


class _Checkpoint(_Entries):
    format: int
    step: Count
    stage: str
    epoch_closed: bool
    skipped_in_row: Count
    config: dict[str, dict[str, Any]]
    classes: Annotated[list[str], Field(min_length=1)]
    train_fingerprint: str
    model: Tensors
    method: Tensors
    train_step: _TrainStep
    ema: _Averages | None
    scores: _Scores | None


def checked(state: dict[Any, Any]) -> dict[str, Any]:
    """The entries of a checkpoint, with its configuration as it is resolved here.

    The optimizer's state is compared with the optimizer by `check_optimizer`, where there is one.

    Raises:
        UserError: an entry that is missing, unknown, of another type or out of range; a configuration that is not
            valid; or tensors other than those of its model and method. The message names the entry.
    """
    try:
        _Checkpoint.model_validate(state)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise UserError(f"{_dotted(*first['loc'])}: {first['msg'][:1].lower()}{first['msg'][1:]}") from None
    for key in NEEDED_KEYS:
        section, name = key.split(".")
        if name not in state["config"].get(section, {}):
            raise UserError(f"config.{key}: field required")
    config = build_config(state["config"], "config")
    if state["stage"] not in config.stages:
        raise UserError(f"stage: its configuration has no {state['stage'][:40]!r}")
    if bool(config.optim.ema_decay) != (state["ema"] is not None):
        raise UserError(f"ema: does not fit config.optim.ema_decay={config.optim.ema_decay:g}")
    if config.run.precision == "fp16" and state["train_step"]["loss_scale"] is None:
        raise UserError("train_step.loss_scale: config.run.precision=fp16 needs one")
    model = lay_out(config, len(state["classes"]))
    _check_tensors("model", state["model"], model.state_dict())
    method = build_method(config, state["stage"], model)
    _check_tensors("method", state["method"], method.own_state())
    scalar = torch.zeros(())
    if state["ema"] is not None:
        _check_tensors("ema.weights", state["ema"]["weights"], model.state_dict())
        _check_tensors("ema", {"steps": state["ema"]["steps"]}, {"steps": scalar})
    if state["train_step"]["loss_scale"] is not None:
        _check_tensors("train_step.loss_scale", state["train_step"]["loss_scale"], {"value": scalar, "steps": scalar})
    return {**state, "config": as_dict(config)}


def lay_out(config: Config, classes: int) -> Localizer:
    """A model with the configuration's shapes. Bodies of this package get no memory; others may not know how."""
    chosen = config.model
    ours = chosen.backbone in BACKBONES and BACKBONES[chosen.backbone].weights_file
    with torch.device("meta") if ours else nullcontext():
        return build_localizer(chosen.backbone, classes, chosen.head_width)


def check_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Compare an optimizer's stored state with the optimizer that is to continue from it.

    Raises:
        UserError: other groups, parameters or shapes; names the entry.
    """
    own = optimizer.state_dict()
    numbers = [[group.get("params") for group in groups] for groups in (own["param_groups"], state["param_groups"])]
    if numbers[0] != numbers[1]:
        raise UserError("train_step.optimizer.param_groups: other parameters than the configuration's")
    for number, (mine, stored) in enumerate(zip(own["param_groups"], state["param_groups"], strict=True)):
        if mine.keys() - stored.keys():
            raise UserError(f"train_step.optimizer.param_groups.{number}.{min(mine.keys() - stored.keys())}: missing")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number in own["state"].keys() | state["state"].keys():
        at = f"train_step.optimizer.state.{number}"
        stored = state["state"].get(number, {})
        if not 0 <= number < len(parameters) or own["state"].get(number, {}).keys() - stored.keys():
            raise UserError(f"{at}: other entries than the optimizer's")
        for name, value in stored.items():
            if isinstance(value, Tensor):
                expected = parameters[number] if value.dim() else torch.zeros(())
                _check_tensors(at, {name: value}, {name: expected})
            elif isinstance(own["state"].get(number, {}).get(name), Tensor):
                raise UserError(f"{_dotted(at, name)}: is no tensor")


def _check_tensors(entry: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for what, names in (("is missing", expected.keys() - found), ("is unknown", found.keys() - expected)):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UserError(f"{_dotted(entry, min(names))}: {what}{more}")
    for name, tensor in found.items():
        shape, own = list(tensor.shape), list(expected[name].shape)
        if shape != own:
            raise UserError(f"{_dotted(entry, name)}: has the shape {shape}, needed is {own}")
        stored = tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not stored or tensor.is_floating_point() != expected[name].is_floating_point():
            raise UserError(f"{_dotted(entry, name)}: holds other numbers than {expected[name].dtype}")


def _dotted(*parts: object) -> str:
    return ".".join(str(part)[:80] for part in parts)
