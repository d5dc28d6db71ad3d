"""Fixed weights and images that need no random generator, so that figures taken once hold on every version."""

import torch
from torch import Tensor, nn


def wave(shape: torch.Size | tuple[int, ...], phase: float) -> Tensor:
    """Fp64 values in [-1, 1] that look like noise to a convolution."""
    count = torch.Size(shape).numel()
    return torch.cos(torch.arange(count, dtype=torch.float64).square() * 0.37 + phase).reshape(shape)


def fill(module: nn.Module, names: list[str]) -> None:
    """Overwrite the tensors of these names; the same names get the same values in every module."""
    state = module.state_dict()
    for i, name in enumerate(sorted(names)):
        value = wave(state[name].shape, i)
        if value.dim() == 4:
            value *= (4 / value[0].numel()) ** 0.5  # twice the variance of the inputs, which ReLU halves
        elif name.endswith(("running_var", ".weight")):
            value = 1 + value / 2
        state[name].copy_(value)


def images(side: int = 32) -> Tensor:
    return wave((2, 3, side, side), 0.5)
