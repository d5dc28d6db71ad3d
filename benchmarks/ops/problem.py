"""What an op is measured with at one size, and how a result is judged."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..objective import relative_error
from ..sizes import Size

Outputs = tuple[Tensor, ...]
Provider = Callable[..., Outputs]


@dataclass
class Problem:
    """Providers take `inputs` in this order; from random gradients of the outputs those get one that require it.

    Bytes are those that have to move through memory: each input read once, each output written once.
    """

    inputs: Outputs
    providers: dict[str, Provider]  # loops, eager, fused
    truth: Provider | None  # in fp64, on fp64 inputs; None where `judge` needs none
    forward_bytes: int
    backward_bytes: int = 0
    # Errors beyond those of the outputs against the truth; given provider, inputs and outputs, raises ValueError.
    judge: Callable[[str, Outputs, Outputs], None] | None = None


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


def error_of(problem: Problem, provider: str, outputs: Outputs, gradients: Outputs, upstream: Outputs) -> float:
    """Largest relative error of outputs and gradients against the truth in fp64; ValueError if `judge` objects."""
    if problem.judge is not None:
        problem.judge(provider, tuple(tensor.detach() for tensor in problem.inputs), outputs)
    if problem.truth is None:
        return 0.0
    inputs = tuple(_double(tensor) for tensor in problem.inputs)
    expected = problem.truth(*inputs)
    wanted = gradients_of(inputs, expected, tuple(tensor.double() for tensor in upstream))
    pairs = zip((*outputs, *gradients), (*expected, *wanted), strict=True)
    return max(relative_error(got, truth) for got, truth in pairs)


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
