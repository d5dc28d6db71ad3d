"""Ops that make class maps."""

import torch
from torch import Tensor
from torch.nn import functional

from i2c_fast import kernels

from ..plain_tap import columns_of
from ..sizes import Size
from .problem import Outputs, Problem, Provider, bytes_of


def normalize_cam(size: Size, device: torch.device) -> Problem:
    maps = torch.randn(size.images, size.height, size.width, device=device).requires_grad_()

    def eager(maps: Tensor) -> Outputs:
        low = maps.amin((-2, -1), keepdim=True)
        return ((maps - low) / (maps.amax((-2, -1), keepdim=True) - low),)

    def loops(maps: Tensor) -> Outputs:
        return (torch.stack([(one - one.min()) / (one.max() - one.min()) for one in maps]),)

    providers = {"loops": loops, "eager": eager, "fused": lambda maps: (kernels.normalize_cam(maps),)}
    return Problem(
        (maps,),
        providers,
        lambda maps: (kernels.normalize_cam_reference(maps),),
        2 * bytes_of(maps),
        3 * bytes_of(maps),
    )


def _head_inputs(size: Size, device: torch.device) -> Outputs:
    x = size.random(size.images, size.head, size.height, size.width, device=device)
    weight = torch.randn(size.classes, size.head, device=device) / size.head**0.5
    bias = torch.randn(size.classes, device=device)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), size.labels(device)


def _label_maps(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """One row of the weight times each image, in the precision of x as autocast has it; its gradient has x's layout."""
    rows = weight[labels].to(x.dtype)
    columns, dim = columns_of(x)
    maps = columns @ rows[:, :, None] if dim == 1 else rows[:, None] @ columns
    return maps.view(len(x), *x.shape[2:]).float() + bias[labels, None, None]


def _label_maps_to_compile(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """The same as products and a sum, which Inductor makes one kernel of; a matrix product it leaves to a library."""
    rows, (columns, dim) = weight[labels], columns_of(x)
    maps = (columns.float() * (rows[:, None] if dim == 1 else rows[:, :, None])).sum(3 - dim)
    return maps.view(len(x), *x.shape[2:]) + bias[labels, None, None]


def label_cam(size: Size, device: torch.device) -> Problem:
    inputs = _head_inputs(size, device)
    x, weight, bias, _ = inputs

    def loops(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Outputs:
        images = zip(x.unbind(), labels.tolist(), strict=True)
        maps = [(weight[y].to(x.dtype) @ image.flatten(1)).float() + bias[y] for image, y in images]
        return (torch.stack(maps).view(len(x), *x.shape[2:]),)

    providers = {
        "loops": loops,
        "eager": lambda *inputs: (_label_maps(*inputs),),
        "fused": lambda *inputs: (kernels.label_cam(*inputs),),
    }
    maps = 4 * size.images * size.pixels
    return Problem(
        inputs, providers, lambda *inputs: (kernels.label_cam_reference(*inputs),),
        bytes_of(x) + maps, 2 * bytes_of(x) + maps + bytes_of(weight, bias),
        to_compile=lambda *inputs: (_label_maps_to_compile(*inputs),),
    )  # fmt: skip


def _autocast(provider: Provider) -> Provider:
    """In the precision of x, as in a training step: otherwise a weight in fp32 would be multiplied in fp32."""

    def call(x: Tensor, *others: Tensor) -> Outputs:
        if x.dtype not in (torch.float16, torch.bfloat16) or x.is_meta:
            return provider(x, *others)
        with torch.autocast(x.device.type, x.dtype):
            return provider(x, *others)

    return call


def pooled_head(size: Size, device: torch.device) -> Problem:
    inputs = _head_inputs(size, device)
    x, weight, bias, _ = inputs

    def eager(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Outputs:
        logits = functional.linear(x.mean((2, 3), dtype=weight.dtype), weight, bias)
        with torch.no_grad():
            return logits, _label_maps(x, weight, bias, labels)

    def to_compile(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Outputs:
        logits = functional.linear(x.mean((2, 3), dtype=weight.dtype), weight, bias)
        with torch.no_grad():
            return logits, _label_maps_to_compile(x, weight, bias, labels)

    def loops(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Outputs:
        # All Y maps of each image, their means, and the label's.
        maps = functional.conv2d(x, weight.to(x.dtype)[:, :, None, None]).float() + bias[:, None, None]
        chosen = [image[y] for image, y in zip(maps.detach(), labels.tolist(), strict=True)]
        return maps.mean((2, 3)), torch.stack(chosen)

    providers = {"loops": loops, "eager": eager, "fused": kernels.pooled_head}
    return Problem(
        inputs, {name: _autocast(call) for name, call in providers.items()}, _autocast(kernels.pooled_head_reference),
        bytes_of(x, weight, bias) + 4 * size.images * (size.pixels + size.classes), bytes_of(x) + 2 * bytes_of(weight),
        to_compile=_autocast(to_compile), linear=(size.images, size.head, size.classes),
        products=size.torch_dtype,
    )  # fmt: skip
