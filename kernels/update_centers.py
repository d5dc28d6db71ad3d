"""The class centers follow the class means, ever more slowly.

    η = exp(−α·t_y),   w^y ← (1 − η)·w^y + η·a^y,   t_y ← t_y + 1                                   (Eq. 3, 4)

In PyTorch: ``centers[labels] = (1 - eta) * centers[labels] + eta * means``. At t = 0 the first
mean replaces the center.
"""

import math

import torch
from torch import Tensor

from ._common import check_device, check_same, check_tensor, within
from ._launch import launch
from ._ops import define_op
from ._triton import next_power_of_2, runs_triton, tl, triton

# A row of means is read this much at a time: 16 values a thread of four warps, the whole row at D 2048.
MAX_BLOCK = 2048


def update_centers_reference(
    centers: Tensor,
    steps: Tensor,
    labels: Tensor,
    means: Tensor,
    alpha: float,
    skip: Tensor | None = None,
    draws: Tensor | None = None,
) -> None:
    """Plain PyTorch specification of `update_centers`."""
    if draws is not None:
        draws[1] += 1
    if not len(labels):
        return
    means = means.to(centers.dtype)
    usable = within(labels, len(centers)) & means.isfinite().all(1)
    if skip is not None:
        usable = usable & (skip.flatten() == 0)
    # Shapes must not depend on the data, so every row writes: one that has nothing to say repeats a row that has, or,
    # where none has, the old value of a center. Rows of equal index then carry equal values.
    source = torch.where(usable, torch.arange(len(labels), device=labels.device), usable.int().argmax())
    rows = labels[source].clamp(0, len(centers) - 1)
    old_centers, old_steps = centers[rows], steps[rows]
    rate = torch.exp(-alpha * old_steps.to(centers.dtype))[:, None]
    any_usable = usable.any()
    centers[rows] = torch.where(any_usable, (1 - rate) * old_centers + rate * means[source], old_centers)
    steps[rows] = old_steps + any_usable.long()


@triton.jit
def _update_centers(
    p_centers, p_steps, p_labels, p_means, p_skip, p_draws, alpha,
    channels, classes, s_center, s_center_channel, s_step, s_mean, s_mean_channel, s_draw,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a row of means, which is read twice: to see that all of it is finite, and to be written."""
    i_row = tl.program_id(0).to(tl.int64)
    label = tl.load(p_labels + i_row).to(tl.int64)
    usable = (label >= 0) & (label < classes)
    if p_skip is not None:
        usable &= tl.load(p_skip) == 0
    row = tl.where(usable, label, 0)
    p_mean, p_center = p_means + i_row * s_mean, p_centers + row * s_center
    for start in range(0, channels, BLOCK):
        o_channel = (start + tl.arange(0, BLOCK)).to(tl.int64)
        b_mean = tl.load(p_mean + o_channel * s_mean_channel, mask=o_channel < channels, other=0.0)
        # In the centers' precision, in which a large mean may be infinite. Negated, so that a NaN counts.
        b_wrong = ~(tl.abs(b_mean.to(p_centers.dtype.element_ty).to(tl.float32)) < float("inf"))
        usable &= tl.sum(b_wrong.to(tl.int32), 0) == 0

    step = tl.load(p_steps + row * s_step, mask=usable, other=0)
    rate = tl.exp(-tl.full([], alpha, tl.float32) * step.to(tl.float32))
    for start in range(0, channels, BLOCK):
        o_channel = (start + tl.arange(0, BLOCK)).to(tl.int64)
        m_write = (o_channel < channels) & usable
        b_mean = tl.load(p_mean + o_channel * s_mean_channel, mask=m_write, other=0.0).to(tl.float32)
        b_center = tl.load(p_center + o_channel * s_center_channel, mask=m_write, other=0.0).to(tl.float32)
        b_center = (1.0 - rate) * b_center + rate * b_mean
        tl.store(p_center + o_channel * s_center_channel, b_center.to(p_centers.dtype.element_ty), mask=m_write)
    draw = tl.load(p_draws + s_draw, mask=i_row == 0, other=0) if p_draws is not None else 0
    # Every warp loads the counters and one thread stores them: bar.sync lets it store only after all loads are
    # performed. A reduction does not serve, for Triton emits none across warps where D is smaller than a warp's part.
    tl.debug_barrier()
    tl.store(p_steps + row * s_step, step + 1, mask=usable)
    if p_draws is not None:
        tl.store(p_draws + s_draw, draw + 1, mask=i_row == 0)


def _config(channels: int) -> dict[str, int]:
    """Block size and warps."""
    return {"BLOCK": min(next_power_of_2(channels), MAX_BLOCK), "num_warps": 4}


def _launch(
    centers: Tensor,
    steps: Tensor,
    labels: Tensor,
    means: Tensor,
    alpha: float,
    skip: Tensor | None,
    draws: Tensor | None,
) -> None:
    if not (runs_triton(centers) and means.numel()):
        return update_centers_reference(centers, steps, labels, means, alpha, skip, draws)
    launch(
        _update_centers, (len(labels),),
        centers, steps, labels.contiguous(), means, skip, draws, alpha,
        means.shape[1], len(centers), *centers.stride(), steps.stride(0), *means.stride(),
        0 if draws is None else draws.stride(0), **_config(means.shape[1]),
    )  # fmt: skip
    torch.autograd.graph.increment_version([t for t in (centers, steps, draws) if t is not None])
    return None


_op = define_op(
    "update_centers(Tensor(a!) centers, Tensor(b!) steps, Tensor labels, Tensor means, float alpha, Tensor? skip,"
    " Tensor(c!)? draws) -> ()",
    _launch,
    lambda *_: None,
)


@torch.no_grad()
def update_centers(
    centers: Tensor,
    steps: Tensor,
    labels: Tensor,
    means: Tensor,
    alpha: float,
    *,
    skip: Tensor | None = None,
    draws: Tensor | None = None,
) -> None:
    """Move the centers of the classes present towards their means, in place.

    Args:
        centers: [Y, D] floating point, written.
        steps: int64 [Y] updates each class has had, written.
        labels: [N] integer class of each row of `means`, each class at most once; −100 and labels outside 0…Y−1 are
            passed over (see `class_means`).
        means: [N, D] floating point. A mean that is not finite updates neither its center nor its counter.
        alpha: decay α of the rate, at least 0 and finite.
        skip: one element of any dtype; non-zero leaves centers and counters as they were, without a look at it from the
            host (GradScaler's ``found_inf``).
        draws: int64 [2], the (seed, step) of `sample_pixels`: its step advances by one, skipped or not, in the same
            launch.

    Raises:
        ValueError: alpha, shapes, dtypes or devices that do not fit.
    """
    check_tensor("centers", centers, 2)
    check_tensor("steps", steps, 1, integer=True)
    check_tensor("labels", labels, 1, integer=True)
    check_tensor("means", means, 2)
    check_same("len(steps)", len(steps), "len(centers)", len(centers))
    check_same("len(labels)", len(labels), "len(means)", len(means))
    check_same("means.shape[1]", means.shape[1], "centers.shape[1]", centers.shape[1])
    if skip is not None:
        check_same("skip.numel()", skip.numel(), "the number of flags", 1)
    if draws is not None:
        check_tensor("draws", draws, 1, integer=True)
        check_same("len(draws)", len(draws), "the number of its parts (seed, step)", 2)
    check_device(centers=centers, steps=steps, labels=labels, means=means, skip=skip, draws=draws)
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be at least 0 and finite, got {alpha}")
    _op(centers, steps, labels, means, alpha, skip, draws)
