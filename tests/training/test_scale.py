"""The loss scale of fp16: it grows, shrinks, and an overflow leaves no other trace."""

from typing import Any

import pytest
import torch

from i2c_fast.config import OptimConfig
from i2c_fast.runtime import Runtime
from i2c_fast.training import scale as scale_module
from i2c_fast.training.scale import LossScale

from .small import CPU, small_localizer, step_over, take, tensors_of

FP16 = Runtime(CPU, "fp16")


def updated(flags: list[int]) -> list[float]:
    scale, values = LossScale(CPU), []
    for flag in flags:
        scale.update(torch.tensor(float(flag)))
        values.append(scale.value.item() / scale_module.INITIAL)
    return values


def test_it_halves_with_each_skip_and_doubles_after_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_module, "INTERVAL", 3)
    assert updated([1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0]) == [0.5, 0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.5]


def test_it_changes_as_that_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_module, "INTERVAL", 2)
    flags = torch.randint(3, (40,)).eq(0).int().tolist()
    scaler: Any = torch.amp.GradScaler("cpu", growth_interval=2)
    expected = []
    value, tracker = torch.full((), scale_module.INITIAL), torch.zeros((), dtype=torch.int32)
    for flag in flags:
        torch._amp_update_scale_(
            value, tracker, torch.tensor(float(flag)),
            scaler.get_growth_factor(), scaler.get_backoff_factor(), scaler.get_growth_interval(),
        )  # fmt: skip
        expected.append(value.item() / scale_module.INITIAL)
    assert updated(flags) == expected


def test_an_overflow_leaves_no_trace_but_the_scale() -> None:
    step = step_over(small_localizer(6), runtime=FP16)
    take(step, 0)
    before, scale = tensors_of(step), step.scale
    assert scale is not None
    scale.value.fill_(2.0**40)
    assert take(step, 1)["skipped"] == 1
    after = tensors_of(step)
    assert after.pop("criterion.draws").tolist() == [3, 2]  # draws advance with every step
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert scale.value == 2.0**39


def test_a_continued_run_goes_on_with_its_scale() -> None:
    first, second = (step_over(small_localizer(6), runtime=FP16) for _ in range(2))
    assert first.scale is not None and second.scale is not None
    first.scale.value.fill_(2.0**40)
    take(first, 0)
    take(first, 1)
    second.load_state_dict(first.state_dict())
    assert (second.scale.value, second.scale.steps) == (first.scale.value, first.scale.steps) == (2.0**38, 0)


def test_the_scale_does_not_change_what_is_learned() -> None:
    found = []
    for value in (2.0**3, 2.0**8):
        step = step_over(small_localizer(6), runtime=FP16)
        assert step.scale is not None
        step.scale.value.fill_(value)
        for number in range(3):
            assert take(step, number)["skipped"] == 0
        found.append(tensors_of(step))
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("runtime", [Runtime(CPU), FP16])
def test_clipping_bounds_the_norm_of_all_gradients(runtime: Runtime) -> None:
    moved = {}
    for clip_norm in (0.0, 0.01):
        plain = OptimConfig(
            momentum=0, weight_decay=0, body_bias_factor=1, head_factor=1, head_bias_factor=1, clip_norm=clip_norm
        )
        step = step_over(small_localizer(6), optim=plain, runtime=runtime, clip_norm=clip_norm)
        before = tensors_of(step)
        assert take(step, 0)["skipped"] == 0
        trained = [name for name, _ in step.method.named_parameters()]
        after = step.method.state_dict()
        moved[clip_norm] = torch.cat([(before[name] - after[name]).flatten() / 0.01 for name in trained])
    assert moved[0.0].norm() > 0.05
    assert moved[0.01].norm().item() == pytest.approx(0.01, rel=1e-2)
    torch.testing.assert_close(moved[0.01] / moved[0.01].norm(), moved[0.0] / moved[0.0].norm(), rtol=1e-2, atol=1e-3)
