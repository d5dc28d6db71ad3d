"""Ops that choose pixels and read their features."""

import torch
from torch import Tensor
from torch.nn import functional

from i2c_fast import kernels

from .. import plain_tap
from ..objective import THRESHOLD, draw, loops_draw
from ..plain_tap import gather
from ..sizes import Size
from .problem import Outputs, Problem, Provider, bytes_of, row_bytes, seed_inputs


def sample_pixels(size: Size, device: torch.device) -> Problem:
    maps = torch.rand(size.images, size.height, size.width, device=device)
    seed = torch.tensor([7, 3], device=device)

    def judge(provider: str, inputs: Outputs, outputs: Outputs) -> None:
        maps, seed = inputs
        exact, counts = kernels.sample_pixels_reference(maps, size.seeds, THRESHOLD, seed)
        indices = outputs[0].long()
        if provider.startswith("fused"):
            if not (torch.equal(outputs[0], exact) and torch.equal(outputs[1], counts)):
                raise ValueError("drew other pixels than the reference")
        else:
            chosen = torch.zeros_like(maps.flatten(1)).scatter(1, indices, 1.0).sum(1)
            if not torch.equal(chosen, counts.clamp(max=size.seeds).float()):
                raise ValueError("drew a pixel twice")

    providers = {
        "loops": lambda maps, _: (loops_draw(maps, size.seeds),),
        "eager": lambda maps, _: (draw(maps, size.seeds),),
        "fused": lambda maps, seed: kernels.sample_pixels(maps, size.seeds, THRESHOLD, seed),
    }
    return Problem((maps, seed), providers, None, bytes_of(maps) + 4 * size.images * (size.seeds + 1), judge=judge)


def gather_pixels(size: Size, device: torch.device) -> Problem:
    """Without slots: the gradient of F is a dense tensor of zeros but for the seeds' columns."""
    features, indices = seed_inputs(size, device)

    def loops(features: Tensor, indices: Tensor) -> Outputs:
        return (torch.stack([image.flatten(1)[:, i].t() for image, i in zip(features.unbind(), indices, strict=True)]),)

    providers = {
        "loops": loops,
        "eager": lambda features, indices: (gather(features, indices.long()),),
        "fused": lambda features, indices: (kernels.gather_pixels(features, indices),),
    }
    return Problem(
        (features, indices), providers, lambda f, indices: (kernels.gather_pixels_reference(f, indices),),
        2 * row_bytes(size), bytes_of(features) + 2 * row_bytes(size),
    )  # fmt: skip


def tap(size: Size, device: torch.device) -> Problem:
    """F, which the head uses, and its seeds: the head's gradient is copied, the columns added."""
    features, indices = seed_inputs(size, device)

    def fused(features: Tensor, indices: Tensor) -> Outputs:
        tapped, slots = kernels.tap(features, indices.shape[1])
        return tapped, kernels.gather_pixels(features, indices, slots)

    def eager(features: Tensor, indices: Tensor) -> Outputs:
        return features.view_as(features), gather(features, indices.long())

    def by_hand(features: Tensor, indices: Tensor) -> Outputs:
        tapped, slots = plain_tap.tap(features, indices.shape[1])
        return tapped, plain_tap.gather_pixels(features, indices, slots)

    return Problem(
        (features, indices), {"eager": eager, "plain tap": by_hand, "fused": fused},
        lambda features, indices: (features.view_as(features), kernels.gather_pixels_reference(features, indices)),
        2 * row_bytes(size), 2 * bytes_of(features) + 3 * row_bytes(size),
    )  # fmt: skip


def tap_dropout(size: Size, device: torch.device) -> Problem:
    """Dropout, which reads F and writes twice, and whose backward owns the memory that the columns are added in.

    Its outputs differ from draw to draw; its gradient is judged by the elements that they show to be dropped.
    """
    features, indices = seed_inputs(size, device)

    def fused(features: Tensor, indices: Tensor) -> Outputs:
        dropped, slots = kernels.tap_dropout(features, indices.shape[1])
        return dropped, kernels.gather_pixels(features, indices, slots)

    def eager(features: Tensor, indices: Tensor) -> Outputs:
        return functional.dropout(features), gather(features, indices.long())

    def by_hand(features: Tensor, indices: Tensor) -> Outputs:
        dropped, slots = plain_tap.tap_dropout(features, indices.shape[1])
        return dropped, plain_tap.gather_pixels(features, indices, slots)

    def judge(_: str, inputs: Outputs, outputs: Outputs) -> None:
        features, indices = inputs
        dropped = outputs[0] == 0
        if not (torch.equal(torch.where(dropped, 0, 2 * features), outputs[0]) and 0.2 < dropped.float().mean() < 0.8):
            raise ValueError("did not drop half of the elements and double the others")
        if not torch.equal(outputs[1], gather(features, indices.long())):
            raise ValueError("gathered other vectors")

    def truth_of(outputs: Outputs) -> Provider:
        kept = outputs[0].detach() != 0
        return lambda features, indices: (
            torch.where(kept, 2 * features, 0.0), kernels.gather_pixels_reference(features, indices)
        )  # fmt: skip

    mask = features.numel()
    return Problem(
        (features, indices), {"eager": eager, "plain tap": by_hand, "fused": fused}, None,
        2 * bytes_of(features) + mask + 2 * row_bytes(size), 2 * bytes_of(features) + mask + 3 * row_bytes(size),
        judge, truth_of,
    )  # fmt: skip
