"""A provider that computes something else is found out before anything is timed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks import objective
from benchmarks.candidates import BOUNDS, sizes_of, subject
from benchmarks.objective import Bank, Batch, Outcome
from benchmarks.ops import OPS, error_of, gradients_of, upstream_of
from benchmarks.sizes import SIZES, TINY

CPU = torch.device("cpu")


def judged(step: objective.Step) -> float:
    batch, bank = objective.make_batch(TINY[0], CPU)
    before = Bank(*(tensor.clone() for tensor in bank))
    outcome = step(batch._replace(gradient=batch.gradient.clone()), bank)
    return objective.judge(outcome, batch, before, bank)


def without_pull_to_centers(batch: Batch, bank: Bank) -> Outcome:
    return objective.eager(batch._replace(weights=(batch.weights[0], 0 * batch.weights[1])), bank)


def with_other_centers(batch: Batch, bank: Bank) -> Outcome:
    """As where the bank is updated before the gradient is taken."""
    return objective.eager(batch, bank, lambda f, maps, y, centers, k: objective.losses(f, maps, y, centers + 0.1, k))


@pytest.mark.parametrize("step", [objective.loops, objective.eager, objective.compiled("aot_eager")])
def test_the_baselines_of_the_objective_are_right(step: objective.Step) -> None:
    assert judged(step) < BOUNDS[torch.float32]


@pytest.mark.parametrize("wrong", [without_pull_to_centers, with_other_centers])
def test_a_wrong_objective_has_a_large_error(wrong: objective.Step) -> None:
    assert not judged(wrong) < 100 * BOUNDS[torch.float32]


def test_a_gradient_beside_the_drawn_pixels_is_told() -> None:
    def spilled(batch: Batch, bank: Bank) -> Outcome:
        outcome = objective.eager(batch, bank)
        return outcome._replace(gradient=outcome.gradient + 1)

    with pytest.raises(ValueError, match="not drawn"):
        judged(spilled)


def test_steps_that_were_not_counted_are_told() -> None:
    def forgot(batch: Batch, bank: Bank) -> Outcome:
        return objective.eager(batch, bank, move=lambda *_: None)

    with pytest.raises(ValueError, match="steps"):
        judged(forgot)


@pytest.mark.parametrize("name", [name for name in OPS if name not in ("sample_pixels", "tap_dropout")])
def test_a_wrong_output_or_gradient_of_an_op_has_a_large_error(name: str) -> None:
    problem = OPS[name].build(TINY[0], CPU)
    inputs = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in problem.inputs)
    outputs = problem.providers["eager"](*inputs)
    upstream = upstream_of(outputs)
    gradients = gradients_of(inputs, outputs, upstream)
    detached = tuple(tensor.detach() for tensor in outputs)

    def error(outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> float:
        return error_of(problem, "eager", outputs, gradients, upstream)

    assert error(detached, gradients) < BOUNDS[torch.float32]
    assert error((detached[0] * 1.01, *detached[1:]), gradients) > 100 * BOUNDS[torch.float32]
    for i in range(len(gradients)):
        wrong = tuple(gradient * (1.01 if i == j else 1) for j, gradient in enumerate(gradients))
        assert error(detached, wrong) > 100 * BOUNDS[torch.float32]


def test_a_nan_is_no_small_error() -> None:
    nan: Callable[[], Tensor] = lambda: torch.full((2,), torch.nan)  # noqa: E731
    assert not objective.relative_error(nan(), torch.ones(2)) <= 1
    assert not objective.relative_error(torch.ones(2), nan()) <= 1


def test_sizes_that_are_the_same_work_are_measured_once() -> None:
    assert [size.changes() for size in sizes_of("normalize_cam", SIZES)] == [
        "usual", "images=10", "height=40 width=40", "images=320"
    ]  # fmt: skip
    assert len(sizes_of("objective", SIZES)) == len(SIZES)


def test_every_op_is_checked_at_the_tiny_size_by_its_baselines() -> None:
    made = subject("sample_pixels", TINY[0], CPU)
    assert {name: make().check() for name, make in made.candidates.items()} == dict.fromkeys(made.candidates, 0.0)
