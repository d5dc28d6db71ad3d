"""The whole objective, in the ways it can be computed: from class maps, F and the head's gradient of F to the summed
gradient of F and the updated bank of centers.

Every provider draws K pixels above the threshold of each map, takes SC over adjacent pairs and GC against the centers,
adds their gradient to the head's and moves the centers (λ1, λ2 given as tensors). Draws differ, and each provider is
judged by its own.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from i2c_fast import InterImageLoss
from i2c_fast.kernels import Slots, center_loss_reference, class_means_reference, pair_consistency_loss_reference, tap
from i2c_fast.kernels._add_columns import add_columns_
from i2c_fast.kernels.gather_pixels import open_columns

from .sizes import Size

THRESHOLD = 0.7
ALPHA = 0.002


class Bank(NamedTuple):
    """What a step changes beside the gradient."""

    centers: Tensor  # fp32 [Y, D]
    steps: Tensor  # int64 [Y]


class Batch(NamedTuple):
    """`gradient` is the head's, in memory that the step may write to."""

    maps: Tensor  # fp32 [N, H, W]
    features: Tensor  # [N, D, H, W], requires a gradient
    gradient: Tensor  # like features
    labels: Tensor  # int64 [N], images 2i and 2i+1 of one class
    weights: tuple[Tensor, Tensor]  # λ1, λ2
    seeds: int


class Outcome(NamedTuple):
    """Indices [N, K] as drawn, the mean losses, and F's gradient: the head's, with the seeds' columns added."""

    indices: Tensor
    sc: Tensor
    gc: Tensor
    gradient: Tensor


Step = Callable[[Batch, Bank], Outcome]


def make_batch(size: Size, device: torch.device) -> tuple[Batch, Bank]:
    """Random numbers; λ1 and λ2 make the objective's columns as large as the head's gradient."""
    shape = (size.images, size.features, size.height, size.width)
    weight = torch.tensor(size.images * size.seeds / 8.0, device=device)
    batch = Batch(
        torch.rand(size.images, size.height, size.width, device=device),
        size.random(*shape, device=device).requires_grad_(),
        size.random(*shape, device=device),
        size.labels(device),
        (weight, weight.clone()),
        size.seeds,
    )
    return batch, make_bank(size, device)


def make_bank(size: Size, device: torch.device) -> Bank:
    steps = torch.arange(size.classes, device=device) % 400
    return Bank(torch.randn(size.classes, size.features, device=device), steps)


def draw(maps: Tensor, k: int) -> Tensor:
    """[N, K] random pixels above the threshold, in plain PyTorch; an image with too few repeats its best."""
    flat = maps.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    above = flat > low + THRESHOLD * (high - low)
    keys = torch.where(above, torch.rand_like(flat), -1.0)
    best, indices = keys.topk(min(k, flat.shape[1]), dim=1)
    indices = torch.where(best >= 0, indices, indices[:, :1])
    return indices[:, torch.arange(k, device=maps.device) % indices.shape[1]]


def loops_draw(maps: Tensor, k: int) -> Tensor:
    """The same image by image; the host waits for the number of pixels of each."""
    chosen = []
    for one in maps:
        normalized = ((one - one.min()) / (one.max() - one.min())).flatten()
        above = (normalized > THRESHOLD).nonzero().flatten()
        picked = above[torch.randperm(len(above), device=maps.device)[:k]]
        chosen.append(picked.repeat(math.ceil(k / len(picked)))[:k])
    return torch.stack(chosen)


def gather(features: Tensor, indices: Tensor) -> Tensor:
    """[N, K, D] in plain PyTorch. The dense gradient of the features gets their own memory format."""
    if features.is_contiguous(memory_format=torch.channels_last):
        rows = features.permute(0, 2, 3, 1).flatten(1, 2)
        return rows.gather(1, indices[:, :, None].expand(-1, -1, features.shape[1]))
    return features.flatten(2).gather(2, indices[:, None].expand(-1, features.shape[1], -1)).transpose(1, 2)


def losses(
    features: Tensor, maps: Tensor, labels: Tensor, centers: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`losses_at` random pixels, and [N, K] the pixels drawn."""
    indices = draw(maps, k)
    return (*losses_at(features, indices, labels, centers), indices)


def losses_at(features: Tensor, indices: Tensor, labels: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean SC, mean GC and [N, D] the mean of each image's class, of the pixels [N, K]; vectorized."""
    values = gather(features, indices).float()
    sc = (values[0::2] - values[1::2]).square().sum(-1).mean()
    same = (labels[:, None] == labels).float()
    members = same.sum(1)
    means = same @ values.mean(1) / members[:, None]
    classes = (1 / members).sum()
    gc = ((means - centers[labels]).square().sum(-1) / members).sum() / classes
    return sc, gc, means.detach()


def move_centers(centers: Tensor, steps: Tensor, labels: Tensor, means: Tensor) -> None:
    """Images of one class write equal values."""
    rate = torch.exp(-ALPHA * steps[labels].float())[:, None]
    centers[labels] = (1 - rate) * centers[labels] + rate * means
    steps[labels] = steps[labels] + 1


def eager(
    batch: Batch, bank: Bank, losses: Callable[..., Any] = losses, move: Callable[..., Any] = move_centers
) -> Outcome:
    """Vectorized PyTorch; autograd's gradient of F is dense, then added to the head's."""
    sc, gc, means, indices = losses(batch.features, batch.maps, batch.labels, bank.centers, batch.seeds)
    (dense,) = torch.autograd.grad((sc, gc), batch.features, batch.weights)
    move(bank.centers, bank.steps, batch.labels, means)
    return Outcome(indices, sc.detach(), gc.detach(), batch.gradient.add_(dense))


def loops_losses_at(
    features: Tensor, indices: Tensor, labels: Tensor, centers: Tensor
) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
    """Mean SC, mean GC and [D] the mean of each class, image by image and class by class."""
    vectors = [image.flatten(1)[:, i].t().float() for image, i in zip(features.unbind(), indices, strict=True)]
    members: dict[int, list[Tensor]] = {}
    for label, vector in zip(labels.tolist(), vectors, strict=True):
        members.setdefault(label, []).append(vector)
    pairs, gaps, means = [], [], {}
    for label, images in members.items():
        pairs += [(a - b).square().sum(1).mean() for a, b in zip(images[0::2], images[1::2], strict=True)]
        mean = torch.stack(images).mean((0, 1))
        gaps.append((mean - centers[label]).square().sum())
        means[label] = mean.detach()
    return torch.stack(pairs).mean(), torch.stack(gaps).mean(), means


def loops_move_centers(bank: Bank, means: dict[int, Tensor]) -> None:
    """Class by class, with a look at each counter from the host."""
    for label, mean in means.items():
        rate = math.exp(-ALPHA * bank.steps[label].item())
        bank.centers[label] = (1 - rate) * bank.centers[label] + rate * mean
        bank.steps[label] += 1


def loops(batch: Batch, bank: Bank) -> Outcome:
    """Image by image and class by class, with looks at masks, labels and counters from the host."""
    indices = loops_draw(batch.maps, batch.seeds)
    sc, gc, means = loops_losses_at(batch.features, indices, batch.labels, bank.centers)
    (dense,) = torch.autograd.grad((sc, gc), batch.features, batch.weights)
    loops_move_centers(bank, means)
    return Outcome(indices, sc.detach(), gc.detach(), batch.gradient.add_(dense))


def compiled(backend: str) -> Step:
    """`eager` with both its halves compiled. The bank is written outside the compiled loss: in one graph with it, the
    partitioner may read it again in the backward, after the update, and the gradient of GC is wrong."""
    compiled_losses = torch.compile(losses, fullgraph=True, backend=backend)
    compiled_move = torch.compile(move_centers, fullgraph=True, backend=backend)
    return lambda batch, bank: eager(batch, bank, compiled_losses, compiled_move)


def fused(size: Size, device: torch.device, in_place: bool) -> Step:
    """`InterImageLoss` with a tap: in place, or the functional `tap`, which first copies the head's gradient.

    In place is what `tap_dropout` does, which owns that gradient's memory; its dropout is the head's, and not timed.
    """
    module = InterImageLoss(size.classes, size.features, size.seeds, THRESHOLD, ALPHA, auto_commit=False).to(device)

    def step(batch: Batch, bank: Bank) -> Outcome:
        if module.centers is not bank.centers:  # setting a module's buffer is no part of a step
            module.centers, module.steps = bank
        features = batch.features
        if in_place:
            columns, carrier = open_columns(features, batch.seeds)
            slots = Slots(columns.requires_grad_(), carrier.requires_grad_())
            terms = module(features, batch.maps, batch.labels, slots=slots)
            columns, indices = torch.autograd.grad((terms.sc, terms.gc), (slots.columns, slots.indices), batch.weights)
            add_columns_(batch.gradient, columns, indices)
            gradient = batch.gradient
        else:
            tapped, slots = tap(features, batch.seeds)
            terms = module(features, batch.maps, batch.labels, slots=slots)
            (gradient, indices) = torch.autograd.grad(
                (tapped, terms.sc, terms.gc), (features, slots.indices), (batch.gradient, *batch.weights)
            )
        module.commit()
        return Outcome(indices, terms.sc.detach(), terms.gc.detach(), gradient)

    return step


def judge(outcome: Outcome, batch: Batch, before: Bank, after: Bank) -> float:
    """Largest relative error against fp64, given the pixels drawn; ValueError where no rounding explains a difference.

    `batch` holds the head's gradient as it was, `before` and `after` the bank.
    """
    indices = outcome.indices.long()
    flat = batch.maps.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    # Half a percent below: some normalize first, which rounds differently.
    if not bool((flat.gather(1, indices) >= low + 0.995 * THRESHOLD * (high - low)).all()):
        raise ValueError("drew a pixel below the threshold")
    seeds = gather(batch.features.detach(), indices).double().requires_grad_()
    sc, _ = pair_consistency_loss_reference(seeds, batch.labels)
    of_class = class_means_reference(seeds, batch.labels)
    gc, _ = center_loss_reference(of_class.means, of_class.labels, before.centers.double())
    (to_seeds,) = torch.autograd.grad((sc, gc), seeds, tuple(weight.double() for weight in batch.weights))

    # A pixel drawn more than once gets the sum.
    repeats = (indices[:, :, None] == indices[:, None, :]).double()
    columns = gather(batch.gradient, indices).double() + repeats @ to_seeds
    changed = (outcome.gradient != batch.gradient).any(1).flatten(1)
    if bool(changed.scatter(1, indices, False).any()):
        raise ValueError("changed the gradient of a pixel that was not drawn")

    present = of_class.labels >= 0
    rows = of_class.labels[present]
    rate = torch.exp(-ALPHA * before.steps[rows].double())[:, None]
    centers, steps = before.centers.double(), before.steps.clone()
    centers[rows] = (1 - rate) * centers[rows] + rate * of_class.means.detach()[present]
    steps[rows] += 1
    if not torch.equal(after.steps, steps):
        raise ValueError("counted other steps than it should")
    pairs_to_compare = (
        (outcome.sc, sc), (outcome.gc, gc), (gather(outcome.gradient, indices), columns), (after.centers, centers)
    )  # fmt: skip
    return max(relative_error(got, expected) for got, expected in pairs_to_compare)


def relative_error(got: Tensor, truth: Tensor) -> float:
    """‖got − truth‖ / ‖truth‖; NaN where either has one."""
    truth = truth.detach().double()
    return float((got.detach().double() - truth).norm() / truth.norm().clamp(min=1e-300))
