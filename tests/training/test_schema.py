"""Checkpoints that unpickle safely and are not whole: each entry left out, of another type, of another shape."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from i2c_fast.cli import main
from i2c_fast.config import as_dict, build_config
from i2c_fast.errors import UserError
from i2c_fast.models import build_localizer
from i2c_fast.training import save_checkpoint
from i2c_fast.training.checkpoint import FORMAT
from i2c_fast.training.optimizer import build_optimizer
from i2c_fast.training.schema import NEEDED_KEYS, check_optimizer, checked
from i2c_fast.training.stage import build_method

from ..checkpoints import whole_state
from ..conftest import TINY

CONFIG = build_config({}, "tests", (*TINY, "optim.ema_decay=0.9"))
NUMBER = torch.zeros(())
Place = tuple[Any, ...]


def whole(**entries: Any) -> dict[str, Any]:
    """With an EMA and scores."""
    state = whole_state(CONFIG, ["a", "b"])
    weights = {name: tensor.clone() for name, tensor in state["model"].items()}
    scores = {"protocol": "paper", "images": 3, "gt_known": {"error": 50.0, "threshold": 100}}
    return {"format": FORMAT, **state, "ema": {"weights": weights, "steps": NUMBER}, "scores": scores, **entries}


def places(entry: Any, place: Place = ()) -> Iterator[Place]:
    """Where something lies in nested entries, the outermost left out."""
    if place:
        yield place
    for key in entry if isinstance(entry, dict) else ():
        yield from places(entry[key], (*place, key))


def at(entry: Any, place: Place) -> Any:
    for key in place:
        entry = entry[key]
    return entry


def changed(state: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    """A copy with another value at a place; none there for `...`. What is not changed is shared."""
    copied = dict(state)
    if len(place) > 1:
        copied[place[0]] = changed(state[place[0]], place[1:], value)
    elif value is ...:
        del copied[place[0]]
    else:
        copied[place[0]] = value
    return copied


def refusal(state: dict[str, Any]) -> str:
    """What is said of it in one line; empty if it is taken. Any other exception fails the test."""
    try:
        checked(state)
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return str(error)
    return ""


def test_a_whole_checkpoint_is_taken_as_it_is() -> None:
    state = whole()
    assert checked(state) == state


def test_a_missing_entry_is_named_wherever_it_lies() -> None:
    state = whole()
    free = {("scores", "images"), ("scores", "gt_known"), ("scores", "gt_known", "error")}  # told, and not used
    for place in places(state):
        found = refusal(changed(state, place, ...))
        if place in free or (place[0] == "config" and ".".join(place[1:]) not in NEEDED_KEYS):
            continue  # newer versions add keys to the configuration, so it has defaults as a recipe has
        assert place[-1] in found, place


def test_an_entry_of_another_type_is_named_wherever_it_lies() -> None:
    state = whole()
    loose = {("scores", "images"), ("scores", "gt_known", "error")}
    for place in places(state):
        # A recipe's values may be spelled in several ways.
        values = [None] if place[0] == "config" and len(place) > 1 else [None, {1: 2}, [NUMBER], "text", -1.5, NUMBER]
        for value in values:
            found = refusal(changed(state, place, value))
            expected = place not in loose and type(value) is not type(at(state, place))
            if expected and not (value is None and place in {("ema",), ("scores",)}):
                assert place[-1] in found, (place, value)


def test_tensors_are_those_of_the_model() -> None:
    state = whole()
    for place in places(state):
        tensor = at(state, place)
        if isinstance(tensor, Tensor):
            other = tensor.long() if tensor.is_floating_point() else tensor.float()
            for value in (tensor[None], tensor.new_zeros(10**4), other, tensor.to("meta"), tensor.to_sparse()):
                assert place[-1] in refusal(changed(state, place, value)), (place, value)
    for place in (("model", "new"), ("method", "new"), ("ema", "weights", "new"), ("new",)):
        assert "new" in refusal(changed(state, place, NUMBER))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("step",), -1),
        (("step",), True),
        (("stage",), "stage7"),
        (("classes",), []),
        (("classes",), ["a", "b", "c"]),
        (("scores", "gt_known", "threshold"), 255),
        (("scores", "gt_known", "threshold"), 10**30),
        (("scores", "gt_known"), None),
        (("config", "data", "image_size"), 10**6),
        (("config", "data", "image_size"), "large"),
        (("config", "model", "backbone"), "nothing"),
        (("config", "model", "head_width"), 9),
        (("config", "stage1", "method"), "nothing"),
        (("config", "stage1", "method"), "cam"),
        (("config", "stage" + "9" * 5000), {"method": "cam"}),
        (("config", "run", "precision"), "fp16"),
        (("config", "optim", "ema_decay"), 0.0),
        (("train_step", "loss_scale"), {"value": NUMBER}),
        (("train_step", "optimizer", "state"), {"a": 1}),
    ],
)
def test_values_out_of_range_or_at_odds_are_refused(place: Place, value: Any) -> None:
    assert refusal(changed(whole(), place, value))


@pytest.mark.parametrize("command", ["predict", "evaluate", "report", "export"])
def test_every_command_names_file_and_entry_in_one_line(command: str, tmp_path: Path, exhaustive: bool) -> None:
    weight = "head.fc8.weight"
    cases: list[tuple[Place, Any]] = [
        (("stage",), ...),
        (("method",), []),
        (("model", weight), torch.zeros(2, 5, 1, 1)),
        (("scores", "gt_known", "threshold"), 300),
        (("config", "data", "image_size"), 10**6),
    ]
    arguments = {"predict": [str(tmp_path)], "export": ["--output", str(tmp_path / "model.pt2")]}
    file = tmp_path / "run.pt"

    def told(place: Place, value: Any) -> str:
        save_checkpoint(file, changed(whole(), place, value))
        result = CliRunner().invoke(main, [command, str(file), *arguments.get(command, [])])
        assert isinstance(result.exception, SystemExit | None), (place, value)
        assert result.stderr.count("\n") == (result.exit_code == 2), result.stderr
        return result.stderr

    for place, value in cases:
        line = told(place, value)
        assert line.startswith(f"i2c-fast: {file} is no whole checkpoint: ") and place[-1] in line
    # All commands read checkpoints by the function that the tests above give each entry to.
    for place in places(whole()) if exhaustive else ():
        for value in (..., None, {1: 2}, [NUMBER], torch.zeros(3, 1, 2)):
            told(place, value)


def test_models_of_this_package_are_compared_without_their_memory() -> None:
    # The 8192² × 9 weights of a layer would take 2.4 GB, and draws of them would move torch's generator.
    config = build_config({}, "tests", (*TINY, "model.backbone=resnet18", "model.head_width=8192"))
    state, generator = {**whole(), "config": as_dict(config), "ema": None}, torch.get_rng_state()
    assert "model." in refusal(state)
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_optimizer_s_state_is_compared_with_the_optimizer() -> None:
    method = build_method(CONFIG, "stage1", build_localizer("tiny", 2))
    optimizer = build_optimizer(method, CONFIG.optim)
    state = copy.deepcopy(optimizer.state_dict())
    check_optimizer(state, optimizer)
    wrong = [changed(state, ("param_groups",), state["param_groups"][1:])]
    for number, group in enumerate(state["param_groups"]):
        groups = list(state["param_groups"])
        for broken in ({**group, "params": [99]}, changed(group, ("lr",), ...), changed(group, ("params",), ...)):
            groups[number] = broken
            wrong.append(changed(state, ("param_groups",), list(groups)))
    for place in places(state["state"]):
        values = [..., None, {}] if len(place) == 1 else [..., None, 1.5, torch.zeros(3, 1, 4)]
        wrong += [changed(state, ("state", *place), value) for value in values if value is not None or len(place) > 1]
    wrong.append(changed(state, ("state", 99), {"momentum_buffer": NUMBER}))
    for broken in wrong:
        with pytest.raises(UserError, match=r"^train_step\.optimizer\.") as caught:
            check_optimizer(broken, optimizer)
        assert "\n" not in str(caught.value)
