"""Parameter groups and learning-rate schedules."""

import math

import pytest
import torch

from i2c_fast.config import BatchConfig, OptimConfig, StageConfig
from i2c_fast.errors import UserError
from i2c_fast.methods import METHODS, Method
from i2c_fast.models import build_localizer
from i2c_fast.training.optimizer import batch_factor, build_optimizer, learning_rate, set_learning_rate


def method(backbone: str = "resnet18", name: str = "cam", **options: str) -> Method:
    return METHODS[name](build_localizer(backbone, 3), METHODS[name].Options(**options))


def test_groups_carry_the_released_factors_and_decay() -> None:
    optimizer = build_optimizer(method(), OptimConfig())
    set_learning_rate(optimizer, 0.001)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    # ResNet18's convolutions have no bias, BatchNorm has.
    assert rates == pytest.approx(
        {"body weights": 0.001, "body biases": 0.002, "head weights": 0.01, "head biases": 0.02}
    )
    assert all(group["weight_decay"] == 5e-4 and group["nesterov"] for group in optimizer.param_groups)


def test_every_parameter_is_in_exactly_one_group() -> None:
    model = method("inception_v3")
    optimizer = build_optimizer(model, OptimConfig())
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    head_biases = next(group for group in optimizer.param_groups if group["name"] == "head biases")
    assert len(head_biases["params"]) == 3


def test_trained_centers_are_a_group_without_decay() -> None:
    model = method(name="i2c", center_update="backprop")
    optimizer = build_optimizer(model, OptimConfig())
    group = next(group for group in optimizer.param_groups if group["name"] == "centers")
    assert group["params"] == [model.get_parameter("criterion.centers")]
    assert group["factor"] == 1.0
    assert group["weight_decay"] == 0.0


def test_followed_centers_are_not_optimized() -> None:
    optimizer = build_optimizer(method(name="i2c"), OptimConfig())
    assert all(group["name"] != "centers" for group in optimizer.param_groups)


def assert_skipping_changes_nothing(model: Method, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """With gradients of ones; returns the parameters."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.found_inf = torch.ones(())  # type: ignore[attr-defined]
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    return before


def test_skipping_the_very_first_step_leaves_momentum_zero() -> None:
    model = method()
    optimizer = build_optimizer(model, OptimConfig())
    set_learning_rate(optimizer, 0.1)
    assert_skipping_changes_nothing(model, optimizer)
    assert all(not state["momentum_buffer"].any() for state in optimizer.state.values())


def test_learning_rates_follow_the_batch_only_where_asked_to() -> None:
    batch = BatchConfig(classes=160, images=2)
    assert batch_factor(batch, OptimConfig()) == 1
    assert batch_factor(batch, OptimConfig(scale_lr=True)) == 4


def test_steps_schedule_decays_after_each_milestone() -> None:
    stage = StageConfig(epochs=5, lr=1e-3, milestones=[2, 3, 4])
    rates = [learning_rate(stage, step, 10) for step in (0, 19, 20, 30, 40, 49)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5, 1e-6, 1e-6])


def test_cosine_schedule_falls_from_lr_to_zero() -> None:
    stage = StageConfig(epochs=4, lr=0.2, schedule="cosine")
    assert learning_rate(stage, 0, 10) == pytest.approx(0.2)
    assert learning_rate(stage, 20, 10) == pytest.approx(0.1)
    assert learning_rate(stage, 39, 10) == pytest.approx(0.2 * 0.5 * (1 + math.cos(math.pi * 39 / 40)))


def test_warm_up_rises_linearly_to_lr_and_never_starts_at_zero() -> None:
    stage = StageConfig(epochs=2, lr=0.4, schedule="cosine", warmup_epochs=0.5)
    assert [learning_rate(stage, step, 8) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert learning_rate(stage, 4, 8) == pytest.approx(0.4)
    rates = [learning_rate(stage, step, 8) for step in range(4, 16)]
    assert rates == sorted(rates, reverse=True)


def test_frozen_parameters_are_in_no_group() -> None:
    frozen = method()
    frozen.model.body.requires_grad_(False)
    names = {group["name"] for group in build_optimizer(frozen, OptimConfig()).param_groups}
    assert names == {"head weights", "head biases"}


# AdamW


def test_adamw_has_the_groups_of_sgd_and_skips_a_step_that_is_not_finite() -> None:
    model = method()
    optimizer = build_optimizer(model, OptimConfig(name="adamw", weight_decay=0.0))
    assert [g["factor"] for g in optimizer.param_groups] == [
        g["factor"] for g in build_optimizer(model, OptimConfig()).param_groups
    ]
    set_learning_rate(optimizer, 0.1)
    before = assert_skipping_changes_nothing(model, optimizer)
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]
    optimizer.step()
    # Of its very first step: one rate in the direction of the gradient, and the head's factor is 10.
    moved = {name: (before[name] - p.detach()).mean().item() for name, p in model.named_parameters()}
    assert moved["model.body.conv1.weight"] == pytest.approx(0.1, rel=1e-4)
    assert moved["model.head.fc6.weight"] == pytest.approx(1.0, rel=1e-4)


def test_apex_has_no_adamw() -> None:
    with pytest.raises(UserError, match=r"optim.impl=apex has no adamw"):
        build_optimizer(method(), OptimConfig(name="adamw", impl="apex"))
