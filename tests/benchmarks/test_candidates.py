"""A provider that computes something else is found out before anything is timed."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks import objective, plain_tap
from benchmarks.candidates import REDUCED, sizes_of, subject
from benchmarks.objective import Bank, Batch, Outcome
from benchmarks.ops import OPS, gradients_of, judged, upstream_of
from benchmarks.sizes import BATCHES, SIZES, TINY, TINY_UNUSUAL, UNUSUAL, Size
from benchmarks.verdicts import Verdicts

CPU = torch.device("cpu")


def judged_step(step: objective.Step) -> Verdicts:
    batch, bank = objective.make_batch(TINY[0], CPU)
    before = Bank(*(tensor.clone() for tensor in bank))
    outcome = step(batch._replace(gradient=batch.gradient.clone()), bank)
    return objective.judge(outcome, batch, before, bank)


def wrong(verdicts: Verdicts) -> set[str]:
    return {name for name, verdict in verdicts.items() if not verdict.right}


def without_pull_to_centers(batch: Batch, bank: Bank) -> Outcome:
    return objective.eager(batch._replace(weights=(batch.weights[0], 0 * batch.weights[1])), bank)


def with_other_centers(batch: Batch, bank: Bank) -> Outcome:
    """As where the bank is updated before the gradient is taken."""
    return objective.eager(batch, bank, lambda f, maps, y, centers, k: objective.losses(f, maps, y, centers + 0.1, k))


BASELINES = [objective.loops, objective.eager, objective.plain_tap, objective.compiled("aot_eager")]


@pytest.mark.parametrize("step", BASELINES)
def test_the_baselines_of_the_objective_are_right(step: objective.Step) -> None:
    verdicts = judged_step(step)
    assert {*verdicts} == {"sc", "gc", "gradient", "centers", "steps"} and not wrong(verdicts)


@pytest.mark.parametrize(
    ("step", "results"), [(without_pull_to_centers, {"gradient"}), (with_other_centers, {"gc", "gradient"})]
)
def test_a_wrong_result_of_the_objective_is_named(step: objective.Step, results: set[str]) -> None:
    assert wrong(judged_step(step)) == results


def test_one_wrong_element_of_the_gradient_is_found() -> None:
    def slip(batch: Batch, bank: Bank) -> Outcome:
        outcome = objective.eager(batch, bank)
        image, pixel = 1, int(outcome.indices[1, 0])
        outcome.gradient[image, 3, pixel // 6, pixel % 6] *= 1.001
        return outcome

    assert wrong(judged_step(slip)) == {"gradient"}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("op", ["gather_pixels", "inter_image_loss", "label_cam"])
def test_gradients_of_the_baselines_keep_channels_last(op: str, compiled: bool) -> None:
    problem = OPS[op].build(TINY[2], CPU)
    call = problem.providers["eager"]
    if compiled:
        call = torch.compile(problem.to_compile or call, fullgraph=True, backend="aot_eager")
    outputs = call(*problem.inputs)
    gradient = gradients_of(problem.inputs, outputs, upstream_of(outputs))[0]
    assert gradient.shape[2:] == (5, 6) and gradient.is_contiguous(memory_format=torch.channels_last)


def test_a_baseline_whose_dense_gradient_has_another_layout_is_refused() -> None:
    def flattened(batch: Batch, bank: Bank) -> Outcome:
        outcome = objective.eager(batch, bank)
        assert outcome.dense is not None
        return outcome._replace(dense=outcome.dense.contiguous())

    with pytest.raises(ValueError, match="layout"):
        judged_step(flattened)


@pytest.mark.parametrize("layout", ["channels_last", "NCHW"])
def test_the_plain_tap_writes_to_the_gradient_itself(layout: str) -> None:
    batch, bank = objective.make_batch(replace(TINY[0], layout=layout), CPU)
    outcome = objective.plain_tap(batch, bank)
    assert outcome.gradient is batch.gradient and outcome.dense is None


def test_the_plain_tap_after_dropout_gives_the_heads_gradient_and_the_columns() -> None:
    features, indices = torch.randn(2, 4, 3, 5, requires_grad=True), torch.tensor([[0, 7], [14, 14]])
    dropped, slots = plain_tap.tap_dropout(features, 2)
    to_head, to_seeds = torch.randn_like(dropped), torch.randn(2, 2, 4)
    seeds = plain_tap.gather_pixels(features, indices, slots)
    (got,) = torch.autograd.grad((dropped, seeds), features, (to_head, to_seeds))
    expected = torch.where(dropped == 0, 0.0, 2 * to_head)
    for image in range(2):
        for k in range(2):
            expected[image].view(4, -1)[:, indices[image, k]] += to_seeds[image, k]
    torch.testing.assert_close(got, expected)


def test_a_gradient_beside_the_drawn_pixels_is_told() -> None:
    def spilled(batch: Batch, bank: Bank) -> Outcome:
        outcome = objective.eager(batch, bank)
        return outcome._replace(gradient=outcome.gradient + 1)

    with pytest.raises(ValueError, match="not drawn"):
        judged_step(spilled)


def test_steps_that_were_not_counted_are_told() -> None:
    def forgot(batch: Batch, bank: Bank) -> Outcome:
        return objective.eager(batch, bank, move=lambda *_: None)

    with pytest.raises(ValueError, match="steps"):
        judged_step(forgot)


@pytest.mark.parametrize("name", [name for name in OPS if name not in ("sample_pixels", "tap_dropout")])
def test_one_wrong_element_of_an_output_or_gradient_of_an_op_is_found(name: str) -> None:
    problem = OPS[name].build(TINY[0], CPU)
    inputs = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in problem.inputs)
    outputs = problem.providers["eager"](*inputs)
    upstream = upstream_of(outputs)
    gradients = gradients_of(inputs, outputs, upstream)
    results = tuple(tensor.detach() for tensor in (*outputs, *gradients))

    def found(results: tuple[Tensor, ...]) -> set[str]:
        return wrong(judged(problem, "eager", results[: len(outputs)], results[len(outputs) :], upstream))

    assert not found(results)
    for i, result in enumerate(results):
        slip = result.clone(memory_format=torch.contiguous_format)
        slip.view(-1)[slip.abs().argmax()] *= 2 if slip.dtype == torch.int64 else 1.001
        name_of = f"output {i}" if i < len(outputs) else f"gradient {i - len(outputs)}"
        assert found((*results[:i], slip, *results[i + 1 :])) == {name_of}


@pytest.mark.parametrize("provider", ["eager", "plain tap", "fused"])
def test_the_gradient_through_dropout_is_judged_by_what_was_dropped(provider: str) -> None:
    problem = OPS["tap_dropout"].build(TINY[0], CPU)
    outputs = problem.providers[provider](*problem.inputs)
    upstream = upstream_of(outputs)
    (gradient,) = gradients_of(problem.inputs, outputs, upstream)
    assert not wrong(judged(problem, provider, outputs, (gradient,), upstream))
    assert wrong(judged(problem, provider, outputs, (gradient.roll(1, 0),), upstream)) == {"gradient 0"}


def test_ours_have_to_return_all_outputs() -> None:
    problem = OPS["class_means"].build(TINY[0], CPU)
    outputs = problem.providers["eager"](*problem.inputs)
    upstream = upstream_of(outputs)
    with pytest.raises(ValueError, match="returns 1 outputs, the reference 3"):
        judged(problem, "fused", outputs, gradients_of(problem.inputs, outputs, upstream), upstream)


def test_a_nan_is_no_small_error() -> None:
    assert not objective.relative_error(torch.full((2,), torch.nan), torch.ones(2)) <= 1
    assert not objective.relative_error(torch.ones(2), torch.full((2,), torch.nan)) <= 1


@pytest.mark.parametrize("batch", [name for name in BATCHES if name != "paired"])
def test_unusual_batches_are_right_on_one_rank_and_on_two(batch: str) -> None:
    (size,) = (size for size in sizes_of("inter_image_loss", TINY_UNUSUAL) if size.batch == batch)
    candidates = subject("inter_image_loss", size, CPU).candidates
    assert {*candidates} >= {"fused", "fused, 2 ranks", "fused, 2 ranks by class"} and "eager" not in candidates
    for name, make in candidates.items():
        if "gloo" not in name:
            assert not wrong(make().check()), name


def test_two_processes_that_talk_by_gloo_are_right() -> None:
    (size,) = (size for size in sizes_of("inter_image_loss", TINY_UNUSUAL) if size.batch == "unpaired")
    check = subject("inter_image_loss", size, CPU).candidates["fused, 2 gloo ranks"]().check
    verdicts = check()
    assert {*verdicts} == {"output 0", "output 1", "output 2", "output 3", "gradient 0"} and not wrong(verdicts)


def test_ranks_that_disagree_are_told() -> None:
    from benchmarks.ranks import mean_of_ranks

    one, two = torch.ones(()), torch.ones(()) + 1e-7
    assert mean_of_ranks([(one, one), (one, one)], 2) == (one, one)
    with pytest.raises(ValueError, match="different"):
        mean_of_ranks([(one, one), (one, two)], 2)


def test_sizes_that_are_the_same_work_are_measured_once() -> None:
    assert [size.changes() for size in sizes_of("normalize_cam", SIZES)] == [
        "usual", "images=10", "height=40 width=40", "images=320"
    ]  # fmt: skip
    assert len(sizes_of("objective", SIZES)) == len(SIZES)


def test_unusual_batches_are_no_work_for_ops_without_labels() -> None:
    assert sizes_of("gather_pixels", TINY_UNUSUAL) == []
    assert [size.batch for size in sizes_of("pooled_head", TINY_UNUSUAL)] == [*BATCHES][1:]


def test_every_provider_of_the_draw_is_right_at_the_tiny_size() -> None:
    made = subject("sample_pixels", TINY[0], CPU)
    assert {*made.candidates} >= {"loops", "eager", "fused", "compile"}
    assert not any(wrong(make().check()) for make in made.candidates.values())


@pytest.mark.gpu
@pytest.mark.parametrize("provider", ["loops", "eager+graph", "plain tap", "plain tap+graph", "compile", REDUCED])
@pytest.mark.parametrize("name", ["objective", "inter_image_loss", "tap", "tap_dropout", "label_cam", "pooled_head"])
def test_peers_are_right_on_a_gpu(name: str, provider: str) -> None:
    made = subject(name, Size(8, 5, 3, 64, 14, 14, 64), torch.device("cuda")).candidates
    if provider not in made:
        pytest.skip(f"{name} has no {provider}")
    assert not wrong(made[provider]().check())


@pytest.mark.gpu
@pytest.mark.parametrize("size", UNUSUAL, ids=Size.changes)
@pytest.mark.parametrize("name", ["objective", "inter_image_loss", "label_cam", "pooled_head", "update_centers"])
def test_unusual_batches_are_right_on_a_gpu(name: str, size: Size) -> None:
    made = subject(name, size, torch.device("cuda")).candidates
    assert {provider: wrong(make().check()) for provider, make in made.items()} == {
        provider: set() for provider in made
    }
