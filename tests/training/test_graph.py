"""Whole steps replayed as a CUDA graph: the same training, without waits."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from i2c_fast.config import Config
from i2c_fast.errors import UserError
from i2c_fast.runtime import Runtime
from i2c_fast.training import build_trainer
from i2c_fast.training.graph import GraphedStep
from i2c_fast.training.optimizer import set_learning_rate
from i2c_fast.training.step import TrainStep

from .small import small_localizer, step_over, take, tensors_of


def test_a_graph_without_a_gpu_is_refused_in_one_line(tiny_config: Callable[..., Config], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^run.cuda_graph=true needs a GPU, this run is on cpu; leave it out$"):
        build_trainer(tiny_config("run.cuda_graph=true"), tmp_path, Console(quiet=True))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_replayed_steps_equal_eager_ones_and_never_wait(precision: str) -> None:
    """Ten steps with dropout, a learning rate that changes, a draw and an update of the bank in each."""
    runtime = Runtime(torch.device("cuda"), precision)  # type: ignore[arg-type]
    found = []
    for kind in (TrainStep, GraphedStep):
        eager = step_over(runtime.move(small_localizer(6, dropout=0.5)), runtime=runtime)
        eager.method.to("cuda")
        step = kind(eager.method, eager.optimizer, runtime)
        terms = []
        for number in range(10):
            set_learning_rate(step.optimizer, 0.01 / (1 + number))
            terms.append(take(step, number))
        found.append((terms, tensors_of(step)))
    for eager_terms, graphed_terms in zip(found[0][0], found[1][0], strict=True):
        assert graphed_terms == pytest.approx(eager_terms, rel=1e-4)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-5)
