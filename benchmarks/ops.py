"""Each op at a size: its inputs, plain PyTorch that does the same, and how a result is judged.

``eager`` is what one would write with care: vectorized, no wait of the host. ``loops`` goes image by image and looks at
labels and masks on the host, as the released implementation of the method does.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from i2c_fast import kernels
from i2c_fast.kernels.tap_dropout import tap_dropout

from .objective import ALPHA, THRESHOLD, draw, gather, loops_draw, make_bank, move_centers, relative_error
from .sizes import Size

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


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _by_class(labels: Tensor) -> dict[int, list[int]]:
    """Places of each class's images, on the host."""
    members: dict[int, list[int]] = {}
    for place, label in enumerate(labels.tolist()):
        members.setdefault(label, []).append(place)
    return members


def _normalize_cam(size: Size, device: torch.device) -> Problem:
    maps = torch.randn(size.images, size.height, size.width, device=device).requires_grad_()

    def eager(maps: Tensor) -> Outputs:
        low = maps.amin((-2, -1), keepdim=True)
        return ((maps - low) / (maps.amax((-2, -1), keepdim=True) - low),)

    def loops(maps: Tensor) -> Outputs:
        return (torch.stack([(one - one.min()) / (one.max() - one.min()) for one in maps]),)

    providers = {"loops": loops, "eager": eager, "fused": lambda maps: (kernels.normalize_cam(maps),)}
    return Problem(
        (maps,), providers, lambda maps: (kernels.normalize_cam_reference(maps),), 2 * _bytes(maps), 3 * _bytes(maps)
    )


def _head_inputs(size: Size, device: torch.device) -> Outputs:
    x = size.random(size.images, size.head, size.height, size.width, device=device)
    weight = torch.randn(size.classes, size.head, device=device) / size.head**0.5
    bias = torch.randn(size.classes, device=device)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), size.labels(device)


def _label_maps(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """One row of the weight times each image, in the precision of x as autocast has it."""
    maps = weight[labels].to(x.dtype)[:, None] @ x.flatten(2)
    return maps.view(len(x), *x.shape[2:]).float() + bias[labels, None, None]


def _label_cam(size: Size, device: torch.device) -> Problem:
    inputs = _head_inputs(size, device)
    x, weight, bias, _ = inputs

    def loops(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Outputs:
        images = zip(x.unbind(), labels.tolist(), strict=True)
        maps = [(weight[y].to(x.dtype) @ image.flatten(1)).float() + bias[y] for image, y in images]
        return (torch.stack(maps).view(len(x), *x.shape[2:]),)

    providers = {
        "loops": loops,
        "eager": lambda *inputs: (_label_maps(*inputs),),
        "fused": lambda x, weight, bias, labels: (kernels.label_cam(x, weight, labels, bias),),
    }
    maps = 4 * size.images * size.pixels
    return Problem(
        inputs, providers, lambda x, weight, bias, labels: (kernels.label_cam_reference(x, weight, labels, bias),),
        _bytes(x) + maps, 2 * _bytes(x) + maps + _bytes(weight, bias),
    )  # fmt: skip


def _pooled_head(size: Size, device: torch.device) -> Problem:
    inputs = _head_inputs(size, device)
    x, weight, bias, _ = inputs

    def eager(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Outputs:
        logits = functional.linear(x.mean((2, 3), dtype=weight.dtype), weight, bias)
        with torch.no_grad():
            return logits, _label_maps(x, weight, bias, labels)

    def loops(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Outputs:
        # All Y maps of each image, their means, and the label's.
        maps = functional.conv2d(x, weight.to(x.dtype)[:, :, None, None]).float() + bias[:, None, None]
        chosen = [image[y] for image, y in zip(maps.detach(), labels.tolist(), strict=True)]
        return maps.mean((2, 3)), torch.stack(chosen)

    providers = {"loops": loops, "eager": eager, "fused": kernels.pooled_head}
    return Problem(
        inputs, providers, kernels.pooled_head_reference,
        _bytes(x, weight, bias) + 4 * size.images * (size.pixels + size.classes), _bytes(x) + 2 * _bytes(weight),
    )  # fmt: skip


def _sample_pixels(size: Size, device: torch.device) -> Problem:
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
    return Problem((maps, seed), providers, None, _bytes(maps) + 4 * size.images * (size.seeds + 1), judge=judge)


def _seed_inputs(size: Size, device: torch.device) -> tuple[Tensor, Tensor]:
    features = size.random(size.images, size.features, size.height, size.width, device=device).requires_grad_()
    indices = torch.rand(size.images, size.pixels, device=device).topk(min(size.seeds, size.pixels)).indices.int()
    return features, indices


def _rows(size: Size) -> int:
    """Bytes of the [N, K, D] seed vectors."""
    return size.images * size.seeds * size.features * size.torch_dtype.itemsize


def _gather_pixels(size: Size, device: torch.device) -> Problem:
    """Without slots: the gradient of F is a dense tensor of zeros but for the seeds' columns."""
    features, indices = _seed_inputs(size, device)

    def loops(features: Tensor, indices: Tensor) -> Outputs:
        return (torch.stack([image.flatten(1)[:, i].t() for image, i in zip(features.unbind(), indices, strict=True)]),)

    providers = {
        "loops": loops,
        "eager": lambda features, indices: (gather(features, indices.long()),),
        "fused": lambda features, indices: (kernels.gather_pixels(features, indices),),
    }
    return Problem(
        (features, indices), providers, lambda f, indices: (kernels.gather_pixels_reference(f, indices),),
        2 * _rows(size), _bytes(features) + 2 * _rows(size),
    )  # fmt: skip


def _tap(size: Size, device: torch.device) -> Problem:
    """F, which the head uses, and its seeds: the head's gradient is copied, the columns added."""
    features, indices = _seed_inputs(size, device)

    def fused(features: Tensor, indices: Tensor) -> Outputs:
        tapped, slots = kernels.tap(features, indices.shape[1])
        return tapped, kernels.gather_pixels(features, indices, slots)

    def eager(features: Tensor, indices: Tensor) -> Outputs:
        return features.view_as(features), gather(features, indices.long())

    return Problem(
        (features, indices), {"eager": eager, "fused": fused},
        lambda features, indices: (features.view_as(features), kernels.gather_pixels_reference(features, indices)),
        2 * _rows(size), 2 * _bytes(features) + 3 * _rows(size),
    )  # fmt: skip


def _tap_dropout(size: Size, device: torch.device) -> Problem:
    """Dropout, which reads F and writes twice, and whose backward owns the memory that the columns are added in.

    Judged by its outputs, which differ from draw to draw; the tests judge its gradient.
    """
    features, indices = _seed_inputs(size, device)

    def fused(features: Tensor, indices: Tensor) -> Outputs:
        dropped, slots = tap_dropout(features, indices.shape[1])
        return dropped, kernels.gather_pixels(features, indices, slots)

    def eager(features: Tensor, indices: Tensor) -> Outputs:
        return functional.dropout(features), gather(features, indices.long())

    def judge(_: str, inputs: Outputs, outputs: Outputs) -> None:
        features, indices = inputs
        dropped = outputs[0] == 0
        if not (torch.equal(torch.where(dropped, 0, 2 * features), outputs[0]) and 0.2 < dropped.float().mean() < 0.8):
            raise ValueError("did not drop half of the elements and double the others")
        if not torch.equal(outputs[1], gather(features, indices.long())):
            raise ValueError("gathered other vectors")

    mask = features.numel()
    return Problem(
        (features, indices), {"eager": eager, "fused": fused}, None,
        2 * _bytes(features) + mask + 2 * _rows(size), 2 * _bytes(features) + mask + 3 * _rows(size), judge,
    )  # fmt: skip


def _values(size: Size, device: torch.device) -> Tensor:
    return size.random(size.images, size.seeds, size.features, device=device).requires_grad_()


def _pair_consistency_loss(size: Size, device: torch.device) -> Problem:
    def eager(values: Tensor, _: Tensor) -> Outputs:
        values = values.float()
        return ((values[0::2] - values[1::2]).square().sum(-1).mean(-1).sum(),)

    def loops(values: Tensor, labels: Tensor) -> Outputs:
        images = values.float().unbind()
        pairs = [p for places in _by_class(labels).values() for p in zip(places[0::2], places[1::2], strict=True)]
        return (torch.stack([(images[i] - images[j]).square().sum(1).mean() for i, j in pairs]).sum(),)

    providers = {
        "loops": loops, "eager": eager, "fused": lambda v, labels: kernels.pair_consistency_loss(v, labels)[:1]
    }  # fmt: skip
    return Problem(
        (_values(size, device), size.labels(device)), providers,
        lambda values, labels: kernels.pair_consistency_loss_reference(values, labels)[:1],
        _rows(size), 2 * _rows(size),
    )  # fmt: skip


def _class_means(size: Size, device: torch.device) -> Problem:
    """[N, D] means in the row of each class's first image, 0 in the others."""

    def eager(values: Tensor, labels: Tensor) -> Outputs:
        same = labels[:, None] == labels
        leads = same.tril(-1).sum(1) == 0
        share = (same & leads[:, None]).float() / same.sum(1, keepdim=True)
        return (share @ values.float().mean(1),)

    def loops(values: Tensor, labels: Tensor) -> Outputs:
        means = torch.zeros_like(values[:, 0], dtype=torch.float32)
        for places in _by_class(labels).values():
            means[places[0]] = torch.stack([values[i] for i in places]).float().mean((0, 1))
        return (means,)

    providers = {"loops": loops, "eager": eager, "fused": lambda v, labels: kernels.class_means(v, labels)[:1]}
    means = 4 * size.images * size.features
    return Problem(
        (_values(size, device), size.labels(device)), providers,
        lambda values, labels: kernels.class_means_reference(values, labels)[:1],
        _rows(size) + means, _rows(size) + means,
    )  # fmt: skip


def _class_inputs(size: Size, device: torch.device) -> Outputs:
    """Means [N, D] in fp32 of classes that come once; every other row is ignored, as `class_means` leaves it."""
    labels = torch.where(torch.arange(size.images, device=device) % 2 == 0, size.labels(device), -100)
    # Past the number of classes labels repeat: only the first row of each counts.
    repeated = (labels[:, None] == labels).tril(-1).any(1)
    return torch.randn(size.images, size.features, device=device), labels.masked_fill(repeated, kernels.IGNORED_LABEL)


def _center_loss(size: Size, device: torch.device) -> Problem:
    means, labels = _class_inputs(size, device)
    centers = make_bank(size, device).centers

    def eager(means: Tensor, labels: Tensor, centers: Tensor) -> Outputs:
        gap = (means - centers[labels.clamp(min=0)]).square().sum(-1)
        return (torch.where(labels >= 0, gap, 0.0).sum(),)

    def loops(means: Tensor, labels: Tensor, centers: Tensor) -> Outputs:
        present = [(i, y) for i, y in enumerate(labels.tolist()) if y >= 0]
        return (torch.stack([(means[i] - centers[y]).square().sum() for i, y in present]).sum(),)

    providers = {"loops": loops, "eager": eager, "fused": lambda *inputs: kernels.center_loss(*inputs)[:1]}
    return Problem(
        (means.requires_grad_(), labels, centers), providers,
        lambda *inputs: kernels.center_loss_reference(*inputs)[:1], _bytes(means), 2 * _bytes(means),
    )  # fmt: skip


def _update_centers(size: Size, device: torch.device) -> Problem:
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
        3 * _bytes(means) // 2,
    )  # fmt: skip


def _inter_image_loss(size: Size, device: torch.device) -> Problem:
    """SC and GC on seeds that are chosen, without slots: the gradient of F is dense."""
    features, indices = _seed_inputs(size, device)

    def eager(features: Tensor, indices: Tensor, labels: Tensor, centers: Tensor) -> Outputs:
        values = gather(features, indices.long()).float()
        same = (labels[:, None] == labels).float()
        means = same @ values.mean(1) / same.sum(1, keepdim=True)
        sc = (values[0::2] - values[1::2]).square().sum(-1).mean(-1).sum()
        return sc, ((means - centers[labels]).square().sum(-1) / same.sum(1)).sum()

    def loops(features: Tensor, indices: Tensor, labels: Tensor, centers: Tensor) -> Outputs:
        sums = []
        images = zip(features.unbind(), indices, strict=True)
        values = [image.flatten(1)[:, i].t().float() for image, i in images]
        for label, places in _by_class(labels).items():
            pairs = zip(places[0::2], places[1::2], strict=True)
            sc = torch.stack([(values[i] - values[j]).square().sum(1).mean() for i, j in pairs]).sum()
            mean = torch.stack([values[i] for i in places]).mean((0, 1))
            sums.append(torch.stack([sc, (mean - centers[label]).square().sum()]))
        return tuple(torch.stack(sums).sum(0))

    def fused(*inputs: Tensor) -> Outputs:
        sums = kernels.inter_image_loss(*inputs)
        return sums.sc, sums.gc

    def truth(*inputs: Tensor) -> Outputs:
        sums = kernels.inter_image_loss_reference(*inputs)
        return sums.sc, sums.gc

    return Problem(
        (features, indices, size.labels(device), make_bank(size, device).centers),
        {"loops": loops, "eager": eager, "fused": fused}, truth,
        2 * _rows(size) + 8 * size.images * size.features, _bytes(features) + 3 * _rows(size),
    )  # fmt: skip


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


_HEAD = ("images", "classes", "height", "width", "head", "layout", "dtype")
_MAPS = ("images", "height", "width")
_SEEDS = ("images", "seeds", "features", "height", "width", "layout", "dtype")
_VALUES = ("images", "seeds", "features", "dtype")

OPS: dict[str, Op] = {
    "normalize_cam": Op(_normalize_cam, _MAPS),
    "label_cam": Op(_label_cam, _HEAD),
    "pooled_head": Op(_pooled_head, _HEAD),
    "sample_pixels": Op(_sample_pixels, (*_MAPS, "seeds")),
    "gather_pixels": Op(_gather_pixels, _SEEDS),
    "tap": Op(_tap, _SEEDS),
    "tap_dropout": Op(_tap_dropout, _SEEDS),
    "pair_consistency_loss": Op(_pair_consistency_loss, _VALUES),
    "class_means": Op(_class_means, _VALUES),
    "center_loss": Op(_center_loss, ("images", "classes", "features")),
    "update_centers": Op(_update_centers, ("images", "classes", "features")),
    "inter_image_loss": Op(_inter_image_loss, (*_SEEDS, "classes")),
}
