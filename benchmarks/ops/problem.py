"""What an op is measured with at one size, and how its results are judged."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..sizes import Size
from ..verdicts import Verdict, Verdicts, coarsest_of, is_ours, verdict

Outputs = tuple[Tensor, ...]
Provider = Callable[..., Outputs]


@dataclass
class Problem:
    """Providers take `inputs` in this order; from random gradients of the outputs those get one that require it.

    Others than ours may leave out the last outputs. Bytes are those that have to move through memory: each input read
    once, each output written once.
    """

    inputs: Outputs
    providers: dict[str, Provider]  # loops, eager, fused
    truth: Provider | None  # plain reference, run in fp64 and in the working dtypes; None where `judge` needs none
    forward_bytes: int
    backward_bytes: int = 0
    # Errors beyond those of the outputs against the truth; given provider, inputs and outputs, raises ValueError.
    judge: Callable[[str, Outputs, Outputs], None] | None = None
    # The truth given what was drawn at random, which the outputs show; instead of `truth`.
    truth_of: Callable[[Outputs], Provider] | None = None
    to_compile: Provider | None = None  # what one would write for a compiler, where that is not `eager`
    linear: tuple[int, int, int] | None = None  # [N, C] and [Y, C] that the op multiplies: its floor has that too
    products: torch.dtype | None = None  # in which autocast multiplies them: it rounds the gradients


@dataclass
class Op:
    """`reads` names the parts of a size that change the work."""

    build: Callable[[Size, torch.device], Problem]
    reads: tuple[str, ...]


def bytes_of(*tensors: Tensor) -> int:
    """Of all tensors together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def indices_by_class(labels: Tensor) -> dict[int, list[int]]:
    """Places of each class's images, on the host."""
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels.tolist()):
        members.setdefault(label, []).append(index)
    return members


def row_bytes(size: Size) -> int:
    """Bytes of the [N, K, D] seed vectors."""
    return size.images * size.seeds * size.features * size.torch_dtype.itemsize


def seed_inputs(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """F [N, D, H, W], which requires a gradient, and K different pixels of each image, int32 [N, K]."""
    features = size.random(size.images, size.features, size.height, size.width, device=device).requires_grad_()
    indices = torch.rand(size.images, size.pixels, device=device).topk(min(size.seeds, size.pixels)).indices.int()
    return features, indices


def judged(problem: Problem, provider: str, outputs: Outputs, gradients: Outputs, upstream: Outputs) -> Verdicts:
    """Each output and each gradient against the truth in fp64; ValueError for what no rounding explains."""
    if problem.judge is not None:
        problem.judge(provider, tuple(tensor.detach() for tensor in problem.inputs), outputs)
    reference = problem.truth if problem.truth_of is None else problem.truth_of(outputs)
    if reference is None:
        return {"draws": Verdict(0.0, 0.0)}
    (truth, to_truth), (plain, to_plain) = (
        _results(reference, inputs, upstream, provider, len(outputs))
        for inputs in (tuple(map(_double, problem.inputs)), tuple(map(_copy, problem.inputs)))
    )
    coarsest = None if is_ours(provider) else coarsest_of(*problem.inputs)
    names = [f"output {i}" for i in range(len(outputs))] + [f"gradient {i}" for i in range(len(gradients))]
    results = zip(names, (*outputs, *gradients), (*truth, *to_truth), (*plain, *to_plain), strict=True)
    return {
        name: verdict(got, exact, rounded, coarsest, problem.products if name.startswith("gradient") else None)
        for name, got, exact, rounded in results
    }


def _results(
    reference: Provider, inputs: Outputs, upstream: Outputs, provider: str, count: int
) -> tuple[Outputs, Outputs]:
    """The first `count` outputs of the reference, all where the provider has to have them, and its gradients."""
    outputs = reference(*inputs)
    if provider in ("fused", "fused+graph") and count != len(outputs):
        raise ValueError(f"returns {count} outputs, the reference {len(outputs)}")
    outputs = outputs[:count]
    differentiable = [tensor for tensor in outputs if tensor.requires_grad]
    if len(differentiable) != len(upstream):
        raise ValueError(f"{len(upstream)} outputs are differentiable, of the reference {len(differentiable)}")
    return outputs, gradients_of(
        inputs, outputs, tuple(one.to(out.dtype) for one, out in zip(upstream, differentiable, strict=True))
    )


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _double(tensor: Tensor) -> Tensor:
    dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(dtype, copy=True).requires_grad_(tensor.requires_grad)


def gradients_of(inputs: Outputs, outputs: Outputs, upstream: Outputs) -> Outputs:
    """Gradients of the inputs that require one; without such inputs nothing."""
    leaves = [tensor for tensor in inputs if tensor.requires_grad]
    if not leaves:
        return ()
    differentiable = [tensor for tensor in outputs if tensor.requires_grad]
    return torch.autograd.grad(differentiable, leaves, upstream)


def upstream_of(outputs: Outputs) -> Outputs:
    """Random gradients of the outputs that take one."""
    return tuple(torch.randn_like(tensor) for tensor in outputs if tensor.requires_grad)
