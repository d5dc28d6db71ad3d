"""What is measured: each provider of an op or of the objective, as calls to time and a check of what it computes."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from . import objective
from .ops import OPS, Outputs, Problem, Provider, error_of, gradients_of, upstream_of
from .sizes import Size
from .timing import Timed, captured

# Largest relative error of a result, ‖got − truth‖ / ‖truth‖, by the dtype it is computed from.
BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class Candidate(NamedTuple):
    """`phases` name what is timed: forward, backward and full, or full alone."""

    check: Callable[[], float]  # largest relative error; ValueError where no rounding explains a difference
    phases: dict[str, Timed]


class Subject(NamedTuple):
    """One op, or the objective, at one size. A candidate is made when its turn comes: it may compile or capture."""

    candidates: dict[str, Callable[[], Candidate]]
    bound: float
    bytes: dict[str, int]  # of each phase


def compile_backend(device: torch.device) -> str:
    """Without a GPU nothing is timed, and code generation, the slow part, is left out."""
    return "inductor" if device.type == "cuda" else "aot_eager"


def op_subject(name: str, size: Size, device: torch.device) -> Subject:
    problem = OPS[name].build(size, device)
    providers = dict(problem.providers)
    candidates = {provider: _op_candidate(problem, provider, call) for provider, call in providers.items()}
    compiled = torch.compile(providers["eager"], fullgraph=True, backend=compile_backend(device))
    candidates["compile"] = _op_candidate(problem, "compile", compiled)
    if device.type == "cuda":
        candidates["fused+graph"] = _graphed_op(problem)
    dtypes = [tensor.dtype for tensor in problem.inputs if tensor.is_floating_point()]
    total = problem.forward_bytes + problem.backward_bytes
    return Subject(
        candidates, max(BOUNDS[dtype] for dtype in dtypes),
        {"forward": problem.forward_bytes, "backward": problem.backward_bytes, "full": total},
    )  # fmt: skip


def _copies(tensors: Outputs) -> Outputs:
    return tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors)


def _op_candidate(problem: Problem, name: str, call: Provider) -> Callable[[], Candidate]:
    def check() -> float:
        inputs = _copies(problem.inputs)
        outputs = call(*inputs)
        upstream = upstream_of(outputs)
        return error_of(problem, name, outputs, gradients_of(inputs, outputs, upstream), upstream)

    def candidate() -> Candidate:
        inputs = _copies(problem.inputs)
        phases = {"forward": Timed(lambda _: call(*inputs))}
        if any(tensor.requires_grad for tensor in inputs):
            upstream = upstream_of(call(*inputs))
            phases["backward"] = Timed(
                lambda outputs: gradients_of(inputs, outputs, upstream), prepare=lambda: call(*inputs)
            )
            phases["full"] = Timed(lambda _: gradients_of(inputs, call(*inputs), upstream))
        return Candidate(check, phases)

    return candidate


def _graphed_op(problem: Problem) -> Callable[[], Candidate]:
    """Backward is not captured on its own: autograd runs it on the stream of a forward that is part of the capture."""

    def candidate() -> Candidate:
        inputs = _copies(problem.inputs)
        call = problem.providers["fused"]
        upstream = upstream_of(call(*inputs))

        def full() -> tuple[Outputs, Outputs]:
            outputs = call(*inputs)
            return tuple(tensor.detach() for tensor in outputs), gradients_of(inputs, outputs, upstream)

        forward, _ = captured(lambda: call(*inputs))
        both, (outputs, gradients) = captured(full)

        def check() -> float:
            with torch.no_grad():  # captures have run the ops that write to their inputs
                for tensor, original in zip(inputs, problem.inputs, strict=True):
                    tensor.copy_(original)
            for tensor in (*outputs, *gradients):
                if tensor.data_ptr() not in {one.data_ptr() for one in inputs}:
                    tensor.zero_()
            both.replay()
            return error_of(problem, "fused+graph", outputs, gradients, upstream)

        phases = {"forward": Timed(lambda _: forward.replay())}
        if upstream:
            phases["full"] = Timed(lambda _: both.replay())
        return Candidate(check, phases)

    return candidate


def objective_subject(size: Size, device: torch.device) -> Subject:
    """In-place and functional tap, a candidate each; the functional one copies the head's gradient of F."""
    batch, bank = objective.make_batch(size, device)
    steps: dict[str, Callable[[], objective.Step]] = {
        "loops": lambda: objective.loops,
        "eager": lambda: objective.eager,
        "compile": lambda: objective.compiled(compile_backend(device)),
        "fused": lambda: objective.fused(size, device, in_place=True),
        "fused, functional tap": lambda: objective.fused(size, device, in_place=False),
    }
    candidates = {name: _objective_candidate(batch, bank, make) for name, make in steps.items()}
    if device.type == "cuda":
        for name in ("fused", "fused, functional tap"):
            candidates[name.replace("fused", "fused+graph")] = _graphed_objective(batch, bank, steps[name])
    rows = size.images * size.seeds * size.features * size.torch_dtype.itemsize
    means = 4 * size.images * size.features
    # Maps and seed vectors read; of the head's gradient the seeds' columns read and written; a row of the bank read and
    # written for every two images.
    least = 4 * batch.maps.numel() + 3 * rows + means
    return Subject(candidates, BOUNDS[size.torch_dtype], {"full": least})


def _fresh(batch: objective.Batch, bank: objective.Bank) -> tuple[objective.Batch, objective.Bank]:
    return batch._replace(gradient=batch.gradient.clone()), objective.Bank(*(tensor.clone() for tensor in bank))


def _objective_candidate(
    batch: objective.Batch, bank: objective.Bank, make: Callable[[], objective.Step]
) -> Callable[[], Candidate]:
    def candidate() -> Candidate:
        step = make()
        mine = _fresh(batch, bank)

        def check() -> float:
            mine, after = _fresh(batch, bank)
            return objective.judge(step(mine, after), batch, bank, after)

        return Candidate(check, {"full": Timed(lambda _: step(*mine))})

    return candidate


def _graphed_objective(
    batch: objective.Batch, bank: objective.Bank, make: Callable[[], objective.Step]
) -> Callable[[], Candidate]:
    def candidate() -> Candidate:
        step = make()
        mine, after = _fresh(batch, bank)
        graph, outcome = captured(lambda: step(mine, after))

        def check() -> float:
            drawn = []
            for _ in range(2):  # the seed has to advance from replay to replay
                mine.gradient.copy_(batch.gradient)
                for tensor, original in zip(after, bank, strict=True):
                    tensor.copy_(original)
                graph.replay()
                drawn.append(outcome.indices.clone())
            if torch.equal(*drawn):
                raise ValueError("two replays drew the same pixels")
            return objective.judge(outcome, batch, bank, after)

        return Candidate(check, {"full": Timed(lambda _: graph.replay())})

    return candidate


def subject(name: str, size: Size, device: torch.device) -> Subject:
    """An op of `OPS`, or ``objective``."""
    torch._dynamo.reset()
    return objective_subject(size, device) if name == "objective" else op_subject(name, size, device)


def sizes_of(name: str, sizes: tuple[Size, ...]) -> list[Size]:
    """Those of `sizes` that are different work for an op."""
    fields = OPS["inter_image_loss" if name == "objective" else name].reads
    return list(dict.fromkeys(size.only(fields) for size in sizes))


NAMES = (*OPS, "objective")
