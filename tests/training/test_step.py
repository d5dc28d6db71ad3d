"""One training step: what it learns from, and that a step that is not finite leaves no trace."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from i2c_fast import losses as losses_module
from i2c_fast.config import Config
from i2c_fast.data import ClassPairedSampler, TrainBatch, TrainBatches
from i2c_fast.kernels import InterImageOutput, Slots
from i2c_fast.losses import InterImageLoss
from i2c_fast.methods import method as method_module
from i2c_fast.methods.i2c import I2C
from i2c_fast.runtime import seed_all
from i2c_fast.training import Trainer, build_trainer
from i2c_fast.training.optimizer import set_learning_rate


@pytest.fixture
def trainer(tiny_config: Callable[..., Config], tmp_path: Path) -> Trainer:
    return make_trainer(tiny_config("stage0.epochs=0"), tmp_path)


def make_trainer(config: Config, run: Path) -> Trainer:
    trainer = build_trainer(config, run, Console(quiet=True))
    trainer.method.train()
    set_learning_rate(trainer.train_step.optimizer, 0.01)
    return trainer


def batch_of(trainer: Trainer, step: int) -> TrainBatch:
    sampler = ClassPairedSampler(trainer.train_index.labels, 3, 2, seed=0)
    return TrainBatches(trainer.train_index, sampler, 32, 36)[0, step]


def take_step(trainer: Trainer, step: int) -> dict[str, float]:
    seed_all(0, step)
    values = trainer.train_step(batch_of(trainer, step)).tolist()
    return dict(zip(trainer.train_step.terms, values, strict=True))


def bank_of(trainer: Trainer) -> InterImageLoss:
    assert isinstance(trainer.method, I2C)
    return trainer.method.criterion


def all_state(trainer: Trainer) -> dict[str, Tensor]:
    """Every tensor a step may change, draws apart: they advance with every step, skipped or not."""
    state = {f"model.{name}": tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    state |= {f"bank.{name}": t.clone() for name, t in bank_of(trainer).state_dict().items() if name != "draws"}
    for number, entry in trainer.train_step.optimizer.state_dict()["state"].items():
        state[f"momentum.{number}"] = entry["momentum_buffer"].clone()
    return state


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def test_loss_is_the_weighted_sum_of_its_terms(trainer: Trainer) -> None:
    terms = take_step(trainer, 0)
    assert terms["sc"] > 0
    assert terms["gc"] > 0
    assert terms["seed_pixels"] >= 1
    assert terms["loss"] == pytest.approx(terms["ce"] + 0.008 * terms["sc"] + 0.001 * terms["gc"], rel=1e-6)


def test_seeds_reach_the_body_through_slots(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """No second gradient as large as the features."""
    opened: list[Slots | None] = []
    real = losses_module.inter_image_loss

    def watched(*arguments: Any, **options: Any) -> InterImageOutput:
        opened.append(options["slots"])
        return real(*arguments, **options)

    monkeypatch.setattr(losses_module, "inter_image_loss", watched)
    take_step(trainer, 0)
    (slots,) = opened
    assert slots is not None and slots.used


def test_a_step_moves_weights_statistics_and_centers(trainer: Trainer) -> None:
    before = all_state(trainer)
    take_step(trainer, 0)
    after = all_state(trainer)
    unmoved = [name for name in before if torch.equal(before[name], after[name])]
    # conv biases do not exist in the body; every tensor there is takes part
    assert unmoved == []


def test_consistency_terms_pull_features_of_a_class_together(
    tiny_config: Callable[..., Config], tmp_path: Path
) -> None:
    def sc_after(*overrides: str) -> float:
        trainer = make_trainer(tiny_config("stage0.epochs=0", "model.backbone=resnet18", *overrides), tmp_path)
        # Plain training measures nothing, so both are measured by a criterion of the test's own.
        for step in range(12):
            take_step(trainer, step)
        batch = batch_of(trainer, 99)
        with torch.no_grad():
            _, maps, features, _ = trainer.model(batch.images, batch.labels)
            features = features / features.norm(dim=1, keepdim=True).mean()
            return float(InterImageLoss(3, 256)(features, maps, batch.labels).sc)

    assert sc_after("i2c.sc_weight=0.1") < 0.5 * sc_after("stage1.method=cam")


def nan_in_loss(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    real = method_module.cross_entropy
    patch.setattr(method_module, "cross_entropy", lambda *a, **k: real(*a, **k) * torch.nan)


def nan_in_feature(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    def poison(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        output = output.clone()
        output[1, 0, 0, 0] = torch.nan
        return output

    # After the first convolution, so that every BatchNorm behind it sees the NaN in its forward.
    patch.setattr(trainer.model.body[0], "_forward_hooks", {0: poison})  # type: ignore[index]


def nan_in_class_mean(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    real = losses_module.inter_image_loss

    def poisoned(*arguments: Any, **options: Any) -> InterImageOutput:
        sums = real(*arguments, **options)
        means = sums.class_means.means.clone()
        means[sums.class_means.labels == 1] = torch.nan
        return sums._replace(gc=sums.gc * torch.nan, class_means=sums.class_means._replace(means=means))

    patch.setattr(losses_module, "inter_image_loss", poisoned)


def inf_in_gradient(trainer: Trainer, patch: pytest.MonkeyPatch) -> None:
    trainer.model.head.fc8.weight.register_hook(lambda gradient: gradient * torch.inf)


@pytest.mark.parametrize("inject", [nan_in_loss, nan_in_feature, nan_in_class_mean, inf_in_gradient])
def test_a_step_that_is_not_finite_leaves_no_trace(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, inject: Callable[[Trainer, pytest.MonkeyPatch], None]
) -> None:
    take_step(trainer, 0)
    before, draws = all_state(trainer), bank_of(trainer).draws.clone()
    with monkeypatch.context() as patch:
        inject(trainer, patch)
        assert take_step(trainer, 1)["skipped"] == 1
    assert_same(before, all_state(trainer))
    assert bank_of(trainer).draws.tolist() == [draws[0], draws[1] + 1]


def test_after_a_skipped_step_training_equals_a_run_that_left_it_out(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturbed, reference = (make_trainer(tiny_config("stage0.epochs=0"), tmp_path) for _ in range(2))
    for trainer in (disturbed, reference):
        take_step(trainer, 0)
    with monkeypatch.context() as patch:
        nan_in_loss(disturbed, patch)
        take_step(disturbed, 1)
    bank_of(reference).draws[1] += 1  # the reference never takes step 1, but its draw passes
    assert take_step(disturbed, 2) == take_step(reference, 2)
    assert_same(all_state(disturbed), all_state(reference))


def test_the_first_step_may_be_the_one_skipped(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    before = all_state(trainer)
    with monkeypatch.context() as patch:
        nan_in_loss(trainer, patch)
        assert take_step(trainer, 0)["skipped"] == 1
    assert_same(before, all_state(trainer))


def test_trained_centers_learn_and_are_guarded(
    tiny_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tiny_config("stage0.epochs=0", "i2c.center_update=backprop"), tmp_path)
    start = bank_of(trainer).centers.detach().clone()
    take_step(trainer, 0)
    moved = bank_of(trainer).centers.detach().clone()
    assert not torch.equal(start, moved)
    with monkeypatch.context() as patch:
        nan_in_loss(trainer, patch)
        take_step(trainer, 1)
    assert torch.equal(bank_of(trainer).centers, moved)


def test_bf16_forward_keeps_weights_and_losses_in_fp32(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    trainer = make_trainer(tiny_config("stage0.epochs=0", "run.precision=bf16"), tmp_path)
    terms = trainer.train_step(batch_of(trainer, 0))
    assert terms.dtype == torch.float32
    assert terms.isfinite().all()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in trainer.model.parameters())
