"""The class centers follow the class means, ever more slowly.

    η = exp(−α·t_y),   w^y ← (1 − η)·w^y + η·a^y,   t_y ← t_y + 1                                   (Eq. 3, 4)

In PyTorch: ``centers[labels] = (1 - eta) * centers[labels] + eta * means``. At t = 0 the first
mean replaces the center.
"""

import math

import torch
from torch import Tensor

from ._common import check_device, check_same, check_tensor, within


def update_centers_reference(centers: Tensor, steps: Tensor, labels: Tensor, means: Tensor, alpha: float) -> None:
    """Plain PyTorch specification of `update_centers`."""
    if not len(labels):
        return
    means = means.to(centers.dtype)
    usable = within(labels, len(centers)) & means.isfinite().all(1)
    # Shapes must not depend on the data, so every row writes: one that has nothing to say repeats a row that has, or,
    # where none has, the old value of a center. Rows of equal index then carry equal values.
    source = torch.where(usable, torch.arange(len(labels), device=labels.device), usable.int().argmax())
    rows = labels[source].clamp(0, len(centers) - 1)
    old_centers, old_steps = centers[rows], steps[rows]
    rate = torch.exp(-alpha * old_steps.to(centers.dtype))[:, None]
    any_usable = usable.any()
    centers[rows] = torch.where(any_usable, (1 - rate) * old_centers + rate * means[source], old_centers)
    steps[rows] = old_steps + any_usable.long()


@torch.no_grad()
def update_centers(centers: Tensor, steps: Tensor, labels: Tensor, means: Tensor, alpha: float) -> None:
    """Move the centers of the classes present towards their means, in place.

    Args:
        centers: [Y, D] floating point, written.
        steps: int64 [Y] updates each class has had, written.
        labels: [N] integer class of each row of `means`, each class at most once; −100 and labels outside 0…Y−1 are
            passed over (see `class_means`).
        means: [N, D] floating point. A mean that is not finite updates neither its center nor its counter.
        alpha: decay α of the rate, at least 0 and finite.

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
    check_device(centers=centers, steps=steps, labels=labels, means=means)
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be at least 0 and finite, got {alpha}")
    update_centers_reference(centers, steps, labels, means, alpha)
