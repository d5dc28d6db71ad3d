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
from i2c_fast.kernels import (
    Slots,
    center_loss_reference,
    class_means_reference,
    pair_consistency_loss_reference,
    sample_pixels_reference,
    tap,
)
from i2c_fast.kernels._add_columns import add_columns_
from i2c_fast.kernels.gather_pixels import open_columns

from .plain_tap import gather, scatter_add_
from .sizes import Size
from .verdicts import Verdicts, verdict

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
    dense: Tensor | None = None  # autograd's own gradient of F, of `eager` and what is compiled of it
    counts: Tensor | None = None  # int32 [N] pixels above the threshold, of ours


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


def losses(
    features: Tensor, maps: Tensor, labels: Tensor, centers: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`losses_at` random pixels, and [N, K] the pixels drawn."""
    indices = draw(maps, k)
    return (*losses_at(features, indices, labels, centers), indices)


def losses_at(features: Tensor, indices: Tensor, labels: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean SC, mean GC and [N, D] the mean of each image's class, of the pixels [N, K]; vectorized."""
    return losses_of(gather(features, indices), labels, centers)


def losses_of(seeds: Tensor, labels: Tensor, centers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same of seed vectors [N, K, D]."""
    values = seeds.float()
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
    return Outcome(indices, sc.detach(), gc.detach(), batch.gradient.add_(dense), dense)


def plain_tap(batch: Batch, bank: Bank) -> Outcome:
    """`eager` without a dense gradient, in place as `fused` is: the seed vectors' own is added to the head's."""
    indices = draw(batch.maps, batch.seeds)
    seeds = gather(batch.features.detach(), indices).requires_grad_()
    sc, gc, means = losses_of(seeds, batch.labels, bank.centers)
    (to_seeds,) = torch.autograd.grad((sc, gc), seeds, batch.weights)
    scatter_add_(batch.gradient, to_seeds, indices)
    move_centers(bank.centers, bank.steps, batch.labels, means)
    return Outcome(indices, sc.detach(), gc.detach(), batch.gradient)


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
    return _halves(lambda half: torch.compile(half, fullgraph=True, backend=backend))


def reduced_overhead() -> Step:
    """`compiled` by Inductor in its mode ``reduce-overhead``, which replays CUDA graphs of the parts.

    Its inputs need fixed addresses (`torch._dynamo.mark_static_address`), as a model's features have that is compiled
    together with the loss: others are copied before each replay.
    """
    step = _halves(lambda half: torch.compile(half, fullgraph=True, mode="reduce-overhead"))

    def marked(batch: Batch, bank: Bank) -> Outcome:
        torch.compiler.cudagraph_mark_step_begin()
        return step(batch, bank)

    return marked


def _halves(compiler: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Step:
    compiled_losses, compiled_move = compiler(losses), compiler(move_centers)
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
        return Outcome(indices, terms.sc.detach(), terms.gc.detach(), gradient, counts=terms.counts)

    return step


def judge(outcome: Outcome, batch: Batch, before: Bank, after: Bank, ours: bool = False) -> Verdicts:
    """Each result against fp64, given the pixels drawn; ValueError where no rounding explains a difference.

    `batch` holds the head's gradient as it was, `before` and `after` the bank. `ours` also has to draw as often as it
    can before it repeats, and to count exactly.
    """
    indices = outcome.indices.long()
    _check_draw(outcome, batch, ours)
    last = torch.channels_last
    fast = batch.gradient.is_contiguous(memory_format=last)
    if outcome.dense is not None and fast and not outcome.dense.is_contiguous(memory_format=last):
        raise ValueError("made a dense gradient in another layout than the head's, which the addition would pay for")
    changed = (outcome.gradient != batch.gradient).any(1).flatten(1)
    if bool(changed.scatter(1, indices, False).any()):
        raise ValueError("changed the gradient of a pixel that was not drawn")

    truth, plain = (_expected(indices, batch, before, dtype) for dtype in (torch.float64, None))
    if not torch.equal(after.steps, truth["steps"]):
        raise ValueError("counted other steps than it should")
    got = {
        "sc": outcome.sc, "gc": outcome.gc, "gradient": gather(outcome.gradient, indices), "centers": after.centers,
        "steps": after.steps,
    }  # fmt: skip
    coarsest = None if ours else batch.features.dtype
    return {name: verdict(result, truth[name], plain[name], coarsest) for name, result in got.items()}


def _check_draw(outcome: Outcome, batch: Batch, ours: bool) -> None:
    flat, indices = batch.maps.flatten(1), outcome.indices.long()
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    # Half a percent below: some normalize first, which rounds differently.
    if not bool((flat.gather(1, indices) >= low + 0.995 * THRESHOLD * (high - low)).all()):
        raise ValueError("drew a pixel below the threshold")
    if not ours:
        return
    any_seed = torch.zeros(2, dtype=torch.int64, device=flat.device)
    _, counts = sample_pixels_reference(batch.maps, batch.seeds, THRESHOLD, any_seed)
    if outcome.counts is None or not torch.equal(outcome.counts, counts):
        raise ValueError("counted other pixels above the threshold")
    drawn = torch.zeros_like(flat).scatter(1, indices, 1.0).sum(1)
    if not torch.equal(drawn, counts.clamp(1, batch.seeds).float()):
        raise ValueError("drew a pixel again before the others")


def _expected(indices: Tensor, batch: Batch, bank: Bank, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Losses, columns of the gradient and bank, by the plain references in `dtype`, or in the working dtypes."""
    seeds = gather(batch.features.detach(), indices)
    columns, centers, weights = gather(batch.gradient, indices), bank.centers.clone(), batch.weights
    if dtype is not None:
        seeds, columns, centers = (tensor.to(dtype) for tensor in (seeds, columns, centers))
    seeds.requires_grad_()
    sc, _ = pair_consistency_loss_reference(seeds, batch.labels)
    of_class = class_means_reference(seeds, batch.labels)
    gc, _ = center_loss_reference(of_class.means, of_class.labels, centers)
    (to_seeds,) = torch.autograd.grad((sc, gc), seeds, tuple(one.to(sc.dtype) for one in weights))
    # A pixel drawn more than once gets the sum, rounded once.
    repeats = (indices[:, :, None] == indices[:, None, :]).double()
    columns = columns + (repeats @ to_seeds.double()).to(columns.dtype)
    steps, present = bank.steps.clone(), of_class.labels >= 0
    rows = of_class.labels[present]
    rate = torch.exp(-ALPHA * steps[rows].to(centers.dtype))[:, None]
    centers[rows] = (1 - rate) * centers[rows] + rate * of_class.means.detach()[present]
    steps[rows] += 1
    return {"sc": sc, "gc": gc, "gradient": columns, "centers": centers, "steps": steps}


def relative_error(got: Tensor, truth: Tensor) -> float:
    """‖got − truth‖ / ‖truth‖; NaN where either has one."""
    truth = truth.detach().double()
    return float((got.detach().double() - truth).norm() / truth.norm().clamp(min=1e-300))
