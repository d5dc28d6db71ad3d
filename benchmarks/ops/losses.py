"""Ops on feature vectors: the two losses, the class means, the bank of centers."""

import math

import torch
from torch import Tensor

from i2c_fast import kernels

from ..objective import ALPHA, gather, make_bank, move_centers
from ..ranks import all_of, on_ranks
from ..sizes import Size
from .problem import Outputs, Problem, Provider, bytes_of, indices_by_class, row_bytes, seed_inputs


def _values(size: Size, device: torch.device) -> Tensor:
    return size.random(size.images, size.seeds, size.features, device=device).requires_grad_()


def pair_consistency_loss(size: Size, device: torch.device) -> Problem:
    def eager(values: Tensor, _: Tensor) -> Outputs:
        values = values.float()
        return ((values[0::2] - values[1::2]).square().sum(-1).mean(),)

    def loops(values: Tensor, labels: Tensor) -> Outputs:
        images = values.float().unbind()
        classes = indices_by_class(labels).values()
        pairs = [pair for members in classes for pair in zip(members[0::2], members[1::2], strict=True)]
        return (torch.stack([(images[i] - images[j]).square().sum(1).mean() for i, j in pairs]).mean(),)

    def fused(values: Tensor, labels: Tensor) -> Outputs:
        return kernels.pair_consistency_loss(values, labels)

    return Problem(
        (_values(size, device), size.labels(device)), {"loops": loops, "eager": eager, "fused": fused},
        kernels.pair_consistency_loss_reference,
        row_bytes(size), 2 * row_bytes(size),
    )  # fmt: skip


def class_means(size: Size, device: torch.device) -> Problem:
    """[N, D] means in the row of each class's first image, 0 in the others."""

    def eager(values: Tensor, labels: Tensor) -> Outputs:
        same = labels[:, None] == labels
        leads = same.tril(-1).sum(1) == 0
        fraction = (same & leads[:, None]).float() / same.sum(1, keepdim=True)
        return (fraction @ values.float().mean(1),)

    def loops(values: Tensor, labels: Tensor) -> Outputs:
        means = torch.zeros_like(values[:, 0], dtype=torch.float32)
        for members in indices_by_class(labels).values():
            means[members[0]] = torch.stack([values[i] for i in members]).float().mean((0, 1))
        return (means,)

    providers = {"loops": loops, "eager": eager, "fused": kernels.class_means}
    means = 4 * size.images * size.features
    return Problem(
        (_values(size, device), size.labels(device)), providers,
        kernels.class_means_reference,
        row_bytes(size) + means, row_bytes(size) + means,
    )  # fmt: skip


def _class_inputs(size: Size, device: torch.device) -> Outputs:
    """Means [N, D] in fp32 of classes that come once; every other row is ignored, as `class_means` leaves it."""
    labels = torch.where(torch.arange(size.images, device=device) % 2 == 0, size.labels(device), -100)
    # Past the number of classes labels repeat: only the first row of each counts.
    repeated = (labels[:, None] == labels).tril(-1).any(1)
    return torch.randn(size.images, size.features, device=device), labels.masked_fill(repeated, kernels.IGNORED_LABEL)


def center_loss(size: Size, device: torch.device) -> Problem:
    means, labels = _class_inputs(size, device)
    centers = make_bank(size, device).centers

    def eager(means: Tensor, labels: Tensor, centers: Tensor) -> Outputs:
        gap = (means - centers[labels.clamp(min=0)]).square().sum(-1)
        return (torch.where(labels >= 0, gap, 0.0).sum() / (labels >= 0).sum(),)

    def loops(means: Tensor, labels: Tensor, centers: Tensor) -> Outputs:
        present = [(i, y) for i, y in enumerate(labels.tolist()) if y >= 0]
        return (torch.stack([(means[i] - centers[y]).square().sum() for i, y in present]).mean(),)

    providers = {"loops": loops, "eager": eager, "fused": kernels.center_loss}
    return Problem(
        (means.requires_grad_(), labels, centers), providers,
        kernels.center_loss_reference, bytes_of(means), 2 * bytes_of(means),
    )  # fmt: skip


def update_centers(size: Size, device: torch.device) -> Problem:
    means, labels = _class_inputs(size, device)
    centers, steps = make_bank(size, device)

    def loops(centers: Tensor, steps: Tensor, labels: Tensor, means: Tensor) -> Outputs:
        for i, y in enumerate(labels.tolist()):
            if y >= 0:
                rate = math.exp(-ALPHA * steps[y].item())
                centers[y] = (1 - rate) * centers[y] + rate * means[i]
                steps[y] += 1
        return centers, steps

    def eager(centers: Tensor, steps: Tensor, labels: Tensor, means: Tensor) -> Outputs:
        # Ignored rows repeat the first, which is present.
        rows = torch.where(labels >= 0, torch.arange(len(labels), device=labels.device), 0)
        move_centers(centers, steps, labels[rows], means[rows])
        return centers, steps

    def fused(centers: Tensor, steps: Tensor, labels: Tensor, means: Tensor) -> Outputs:
        kernels.update_centers(centers, steps, labels, means, ALPHA)
        return centers, steps

    def truth(centers: Tensor, steps: Tensor, labels: Tensor, means: Tensor) -> Outputs:
        kernels.update_centers_reference(centers, steps, labels, means, ALPHA)
        return centers, steps

    return Problem(
        (centers, steps, labels, means), {"loops": loops, "eager": eager, "fused": fused}, truth,
        3 * bytes_of(means) // 2,
    )  # fmt: skip


def inter_image_loss(size: Size, device: torch.device) -> Problem:
    """SC and GC on seeds that are chosen, without slots: the gradient of F is dense."""
    features, indices = seed_inputs(size, device)

    def eager(features: Tensor, indices: Tensor, labels: Tensor, centers: Tensor) -> Outputs:
        values = gather(features, indices.long()).float()
        same = (labels[:, None] == labels).float()
        means = same @ values.mean(1) / same.sum(1, keepdim=True)
        sc = (values[0::2] - values[1::2]).square().sum(-1).mean()
        members = same.sum(1)
        return sc, ((means - centers[labels]).square().sum(-1) / members).sum() / (1 / members).sum()

    def loops(features: Tensor, indices: Tensor, labels: Tensor, centers: Tensor) -> Outputs:
        distances, gaps = [], []
        images = zip(features.unbind(), indices, strict=True)
        values = [image.flatten(1)[:, i].t().float() for image, i in images]
        for label, members in indices_by_class(labels).items():
            pairs = zip(members[0::2], members[1::2], strict=True)
            distances += [(values[i] - values[j]).square().sum(1).mean() for i, j in pairs]
            gaps.append((torch.stack([values[i] for i in members]).mean((0, 1)) - centers[label]).square().sum())
        return torch.stack(distances).mean(), torch.stack(gaps).mean()

    # A batch that no sampler gives pairs inside its ranks alone, whether they are there or not.
    groups = None if size.batch == "paired" else size.ranks(device)

    def fused(*inputs: Tensor) -> Outputs:
        return all_of(kernels.inter_image_loss(*inputs, groups=groups))

    def truth(*inputs: Tensor) -> Outputs:
        return all_of(kernels.inter_image_loss_reference(*inputs, groups=groups))

    providers: dict[str, Provider] = {"loops": loops, "eager": eager, "fused": fused}
    if groups is not None:
        providers |= {"fused, 2 ranks": on_ranks(table=False), "fused, 2 ranks by class": on_ranks(table=True)}
    return Problem(
        (features, indices, size.labels(device), make_bank(size, device).centers), providers, truth,
        2 * row_bytes(size) + 8 * size.images * size.features, bytes_of(features) + 3 * row_bytes(size),
    )  # fmt: skip
