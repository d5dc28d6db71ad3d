"""Compiled training: the same run as eager training, to rounding."""

import pytest
import torch
from torch._inductor import config as inductor

from i2c_fast.training.step import TrainStep

from .small import small_localizer, step_over, take, tensors_of

STEPS = 50


def trained(compiled: bool) -> tuple[list[dict[str, float]], TrainStep]:
    model = small_localizer(6, dropout=0.5)
    step = step_over(model)
    if compiled:
        model.compile(dynamic=False)
    return [take(step, number) for number in range(STEPS)], step


def test_fifty_compiled_steps_are_fifty_eager_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses to 1e-3, weights, centers and momentum to 1e-4; dropout included, drawn as eager torch draws it."""
    monkeypatch.setattr(inductor, "fallback_random", True)
    torch._dynamo.reset()
    eager, first = trained(compiled=False)
    compiled, second = trained(compiled=True)
    torch._dynamo.reset()
    assert compiled[-1]["loss"] != eager[0]["loss"]
    for one, other in zip(eager, compiled, strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    torch.testing.assert_close(tensors_of(second), tensors_of(first), rtol=1e-4, atol=1e-4)
