"""The EMA of the weights: what it averages, who sees it, and that it survives a run's interruption."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from i2c_fast.cli import main
from i2c_fast.config import Config
from i2c_fast.errors import UserError
from i2c_fast.training import load_checkpoint, restore_predictor, score_checkpoint, start_run
from i2c_fast.training.ema import EMA

QUIET = Console(quiet=True)
FINITE, SKIPPED = torch.zeros(()), torch.ones(())


def layer() -> nn.BatchNorm1d:
    made = nn.BatchNorm1d(2)
    with torch.no_grad():
        made.weight.fill_(0.0)
    return made


def weigh(model: nn.BatchNorm1d, value: float) -> None:
    with torch.no_grad():
        model.weight.fill_(value)
        assert model.num_batches_tracked is not None
        model.num_batches_tracked += 1


def test_the_average_follows_its_formula() -> None:
    model = layer()
    ema, expected = EMA(model, 0.3), 0.0
    for n, value in enumerate([1.0, 2.0, 5.0]):
        weigh(model, value)
        ema.update(FINITE)
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(ema.values["weight"], torch.full((2,), expected))
    assert ema.values["num_batches_tracked"] == 3


def test_a_skipped_step_changes_nothing() -> None:
    model = layer()
    ema = EMA(model, 0.9)
    weigh(model, 1.0)
    ema.update(FINITE)
    before = {name: tensor.clone() for name, tensor in ema.values.items()}
    ema.update(SKIPPED)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ema.values.items())
    assert ema.steps == 1


def test_the_model_has_the_average_only_while_asked() -> None:
    model = layer()
    ema = EMA(model, 0.9)
    weigh(model, 1.0)
    with ema.in_model():
        assert model.weight.tolist() == [0.0, 0.0]
    assert model.weight.tolist() == [1.0, 1.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ema") / "run"


@pytest.fixture
def run(folder: Path, tiny_config: Callable[..., Config]) -> Path:
    """A run that kept and scored an EMA."""
    if not folder.exists():
        start_run(tiny_config("optim.ema_decay=0.9", "eval.ema=true", "run.checkpoint_every=3"), folder, QUIET)
    return folder


def test_a_run_scores_its_ema_and_writes_it(run: Path) -> None:
    state = load_checkpoint(run)
    evaluated, _ = score_checkpoint(run, [], QUIET)
    assert evaluated.summary() == state["scores"]
    torch.testing.assert_close(load_file(run / "weights_ema.safetensors"), state["ema"]["weights"], rtol=0, atol=0)
    trained = restore_predictor(state, ema=False).state_dict()
    averaged = restore_predictor(state).state_dict()
    assert torch.equal(averaged["head.fc8.weight"], state["ema"]["weights"]["head.fc8.weight"])
    assert not torch.equal(averaged["head.fc8.weight"], trained["head.fc8.weight"])


def test_a_continued_run_has_the_same_ema(run: Path, tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    again = tmp_path / "run"
    (again / "checkpoints").mkdir(parents=True)
    second = sorted((run / "checkpoints").iterdir())[0]
    (again / "checkpoints" / second.name).write_bytes(second.read_bytes())
    overrides = ("optim.ema_decay=0.9", "eval.ema=true", "run.checkpoint_every=3")
    start_run(tiny_config(*overrides), again, QUIET, "required")
    first, other = load_checkpoint(run)["ema"], load_checkpoint(again)["ema"]
    assert first["steps"] == other["steps"]
    torch.testing.assert_close(other["weights"], first["weights"], rtol=0, atol=0)


def test_an_ema_that_was_not_kept_is_refused_in_one_line(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"eval.ema=true scores the EMA of the weights; give optim.ema_decay"):
        tiny_config("eval.ema=true")
    start_run(tiny_config("stage1.epochs=0"), tmp_path / "run", QUIET)
    for command in (["export", "-o", str(tmp_path / "model.pt2")], ["predict", "-o", str(tmp_path / "p"), "x.jpg"]):
        result = CliRunner().invoke(main, [command[0], str(tmp_path / "run"), *command[1:], "--ema"])
        assert result.exit_code == 2
        assert "the run kept no EMA" in result.output
