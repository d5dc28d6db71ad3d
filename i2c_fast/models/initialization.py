"""How convolutions start when no checkpoint sets them."""

from typing import Literal, get_args

from torch import nn

InitScheme = Literal["xavier", "normal"]


def initialize_convolutions(module: nn.Module, scheme: InitScheme) -> None:
    """Draw every convolution weight below `module` anew and set its bias, where it has one, to zero.

    `normal` is N(0, √(2 / (k²·out))): He et al. 2015 (arXiv:1502.01852) with the fan of the outputs, which keeps the
    size of the gradients through ReLUs. `xavier` is the uniform draw of Glorot and Bengio 2010.
    """
    if scheme not in get_args(InitScheme):
        raise ValueError(f"scheme must be one of {get_args(InitScheme)}, not {scheme!r}")
    for layer in module.modules():
        # A model laid out on the meta device has no values, and torch imports its compiler to draw none.
        if not isinstance(layer, nn.Conv2d) or layer.weight.is_meta:
            continue
        if scheme == "xavier":
            nn.init.xavier_uniform_(layer.weight)
        else:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
