"""What is measured: each provider of an op or of the objective, as calls to time and a check of what it computes."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import objective
from .ops import OPS, Outputs, Problem, Provider, gradients_of, judged, upstream_of
from .ranks import on_gloo_ranks
from .sizes import Size
from .timing import Timed, captured
from .verdicts import Verdicts, is_ours

GRAPH = "+graph"  # captured as a whole, and replayed
REDUCED = "compile, reduce-overhead"
HAS_GRAPHS = (GRAPH, REDUCED)


class Candidate(NamedTuple):
    """`phases` name what is timed: forward, backward and full, or full alone."""

    check: Callable[[], Verdicts]  # ValueError where no rounding explains a difference
    phases: dict[str, Timed]


Make = Callable[[], Candidate]


class Subject(NamedTuple):
    """One op, or the objective, at one size. A candidate is made when its turn comes: it may compile or capture."""

    candidates: dict[str, Make]
    bytes: dict[str, int]  # of each phase
    linear: tuple[int, int, int] | None = None  # the product that belongs to it: see `Problem`


def compile_backend(device: torch.device) -> str:
    """Without a GPU nothing is timed, and code generation, the slow part, is left out."""
    return "inductor" if device.type == "cuda" else "aot_eager"


def op_subject(name: str, size: Size, device: torch.device) -> Subject:
    problem = OPS[name].build(size, device)
    calls = problem.providers
    if size.batch != "paired":  # the others know that batches are paired
        calls = {provider: call for provider, call in calls.items() if is_ours(provider)}
    candidates = {provider: _op_candidate(problem, provider, call) for provider, call in calls.items()}
    if name == "inter_image_loss" and "fused, 2 ranks" in calls and size.batch == "unpaired":
        candidates["fused, 2 gloo ranks"] = _gloo_candidate(problem)
    if size.batch == "paired":
        to_compile = problem.to_compile or calls["eager"]
        compiled = torch.compile(to_compile, fullgraph=True, backend=compile_backend(device))
        candidates["compile"] = _op_candidate(problem, "compile", compiled)
        if device.type == "cuda":
            candidates[REDUCED] = _reduced_op(problem, to_compile)
    if device.type == "cuda":
        for provider in ("eager", "plain tap", "fused"):
            if provider in calls:
                candidates[provider + GRAPH] = _graphed_op(problem, provider)
    total = problem.forward_bytes + problem.backward_bytes
    phases = {"forward": problem.forward_bytes, "backward": problem.backward_bytes, "full": total}
    return Subject(candidates, phases, problem.linear)


def _copies(tensors: Outputs) -> Outputs:
    return tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors)


def _restore(tensors: Outputs, originals: Outputs) -> None:
    """What captures and ops that write to their inputs have changed."""
    with torch.no_grad():
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.copy_(original)


def _op_candidate(problem: Problem, name: str, call: Provider) -> Make:
    def candidate() -> Candidate:
        return _op_calls(problem, name, call, _copies(problem.inputs))

    return candidate


def _op_calls(problem: Problem, name: str, call: Provider, inputs: Outputs) -> Candidate:
    def check() -> Verdicts:
        _restore(inputs, problem.inputs)
        outputs = call(*inputs)
        upstream = upstream_of(outputs)
        return judged(problem, name, outputs, gradients_of(inputs, outputs, upstream), upstream)

    phases = {"forward": Timed(lambda _: call(*inputs))}
    if any(tensor.requires_grad for tensor in inputs):
        upstream = tuple(tensor.clone() for tensor in upstream_of(call(*inputs)))
        phases["backward"] = Timed(
            lambda outputs: gradients_of(inputs, outputs, upstream), prepare=lambda: call(*inputs)
        )
        phases["full"] = Timed(lambda _: gradients_of(inputs, call(*inputs), upstream))
    return Candidate(check, phases)


def _reduced_op(problem: Problem, call: Provider) -> Make:
    """Compiled by Inductor in its mode ``reduce-overhead``; see `objective.reduced_overhead`."""

    def candidate() -> Candidate:
        compiled = torch.compile(call, fullgraph=True, mode="reduce-overhead")
        inputs = _fixed(_copies(problem.inputs))

        def replayed(*given: Tensor) -> Outputs:
            torch.compiler.cudagraph_mark_step_begin()
            return compiled(*given)

        made = _op_calls(problem, REDUCED, replayed, inputs)
        _warm(made)
        return made

    return candidate


def _fixed(tensors: Outputs) -> Outputs:
    """Tell the compiler that these keep their addresses."""
    for tensor in tensors:
        torch._dynamo.mark_static_address(tensor)
    return tensors


def _warm(candidate: Candidate) -> None:
    """Let Inductor capture; ValueError if it only computes without graphs, and says so nowhere else."""
    from torch._dynamo.utils import counters  # imports triton, which the kernels have to do first

    skipped = counters["inductor"]["cudagraph_skips"]
    for timed in candidate.phases.values():
        for _ in range(4):
            timed.call(timed.prepare())
    if counters["inductor"]["cudagraph_skips"] > skipped:
        raise ValueError("Inductor made no CUDA graph of it")


def _graphed_op(problem: Problem, provider: str) -> Make:
    """Backward is not captured on its own: autograd runs it on the stream of a forward that is part of the capture."""

    def candidate() -> Candidate:
        inputs = _copies(problem.inputs)
        call = problem.providers[provider]
        upstream = upstream_of(call(*inputs))

        def full() -> tuple[Outputs, Outputs]:
            outputs = call(*inputs)
            return tuple(tensor.detach() for tensor in outputs), gradients_of(inputs, outputs, upstream)

        forward, _ = captured(lambda: call(*inputs))
        both, (outputs, gradients) = captured(full)

        def check() -> Verdicts:
            _restore(inputs, problem.inputs)
            for tensor in (*outputs, *gradients):
                if tensor.data_ptr() not in {one.data_ptr() for one in inputs}:
                    tensor.zero_()
            both.replay()
            return judged(problem, provider + GRAPH, outputs, gradients, upstream)

        phases = {"forward": Timed(lambda _: forward.replay())}
        if upstream:
            phases["full"] = Timed(lambda _: both.replay())
        return Candidate(check, phases)

    return candidate


def _gloo_candidate(problem: Problem) -> Make:
    """Checked alone."""

    def check() -> Verdicts:
        upstream = tuple(torch.randn((), device=problem.inputs[0].device) for _ in range(2))
        *outputs, gradient = on_gloo_ranks(problem.inputs, upstream)
        return judged(problem, "fused, 2 gloo ranks", tuple(outputs), (gradient,), upstream)

    return lambda: Candidate(check, {})


def objective_subject(size: Size, device: torch.device) -> Subject:
    """In-place and functional tap, a candidate each; the functional one copies the head's gradient of F."""
    batch, bank = objective.make_batch(size, device)
    steps: dict[str, Callable[[], objective.Step]] = {
        "loops": lambda: objective.loops,
        "eager": lambda: objective.eager,
        "compile": lambda: objective.compiled(compile_backend(device)),
        "plain tap": lambda: objective.plain_tap,
        "fused": lambda: objective.fused(size, device, in_place=True),
        "fused, functional tap": lambda: objective.fused(size, device, in_place=False),
    }
    if size.batch != "paired":
        steps = {name: make for name, make in steps.items() if is_ours(name)}
    candidates = {name: _objective_candidate(batch, bank, name, make) for name, make in steps.items()}
    if device.type == "cuda":
        if size.batch == "paired":
            candidates[REDUCED] = _objective_candidate(batch, bank, REDUCED, objective.reduced_overhead)
        for name in ("eager", "plain tap", "fused", "fused, functional tap"):
            if name in steps:
                candidates[graph_of(name)] = _graphed_objective(batch, bank, graph_of(name), steps[name])
    rows = size.images * size.seeds * size.features * size.torch_dtype.itemsize
    means = 4 * size.images * size.features
    # Maps and seed vectors read; of the head's gradient the seeds' columns read and written; a row of the bank read and
    # written for every two images.
    least = 4 * batch.maps.numel() + 3 * rows + means
    return Subject(candidates, {"full": least})


def graph_of(provider: str) -> str:
    """The name of a provider's captured step: ``fused, functional tap`` becomes ``fused+graph, functional tap``."""
    first, comma, rest = provider.partition(",")
    return first + GRAPH + comma + rest


def _fresh(batch: objective.Batch, bank: objective.Bank) -> tuple[objective.Batch, objective.Bank]:
    return batch._replace(gradient=batch.gradient.clone()), objective.Bank(*(tensor.clone() for tensor in bank))


def _objective_candidate(
    batch: objective.Batch, bank: objective.Bank, name: str, make: Callable[[], objective.Step]
) -> Make:
    def candidate() -> Candidate:
        step = make()
        mine, after = _fresh(batch, bank)
        if name == REDUCED:
            # Tensors of its own on the same memory: a mark stays on what it was set on.
            own = (mine.maps, mine.features, mine.labels, *mine.weights)
            maps, features, labels, sc_weight, gc_weight = (tensor.detach() for tensor in own)
            features.requires_grad_()
            mine = objective.Batch(maps, features, mine.gradient, labels, (sc_weight, gc_weight), mine.seeds)
            _fixed((maps, features, labels, *mine.weights, *after))
        made = Candidate(lambda: check(), {"full": Timed(lambda _: step(mine, after))})

        def check() -> Verdicts:
            _restore((mine.gradient, *after), (batch.gradient, *bank))
            return objective.judge(step(mine, after), batch, bank, after, is_ours(name))

        if name == REDUCED:
            _warm(made)
        return made

    return candidate


def _graphed_objective(
    batch: objective.Batch, bank: objective.Bank, name: str, make: Callable[[], objective.Step]
) -> Make:
    def candidate() -> Candidate:
        step = make()
        mine, after = _fresh(batch, bank)
        graph, outcome = captured(lambda: step(mine, after))

        def check() -> Verdicts:
            drawn = []
            for _ in range(2):  # the seed has to advance from replay to replay
                _restore((mine.gradient, *after), (batch.gradient, *bank))
                graph.replay()
                drawn.append(outcome.indices.clone())
            if torch.equal(*drawn):
                raise ValueError("two replays drew the same pixels")
            return objective.judge(outcome, batch, bank, after, is_ours(name))

        return Candidate(check, {"full": Timed(lambda _: graph.replay())})

    return candidate


def subject(name: str, size: Size, device: torch.device) -> Subject:
    """An op of `OPS`, or ``objective``."""
    torch._dynamo.reset()
    return objective_subject(size, device) if name == "objective" else op_subject(name, size, device)


def sizes_of(name: str, sizes: tuple[Size, ...]) -> list[Size]:
    """Those of `sizes` that are different work for an op."""
    fields = OPS["inter_image_loss" if name == "objective" else name].reads
    different = (size for size in sizes if size.batch == "paired" or "batch" in fields)
    return list(dict.fromkeys(size.only(fields) for size in different))


NAMES = (*OPS, "objective")
