"""Global consistency (GC): the class means of a batch are pulled towards the centers of the whole data set.

    L_gc = 1/|Y_B| Σ_{y ∈ Y_B} ‖a^y − w^y‖²                                                        (Eq. 5)

In PyTorch: ``(means - centers[labels]).square().sum(-1).sum()``.
"""

import torch
from torch import Tensor

from ._common import (
    IGNORED_LABEL,
    Distance,
    check_device,
    check_distance,
    check_labels,
    check_same,
    check_tensor,
    measure,
    within,
)


def center_loss_reference(
    means: Tensor, labels: Tensor, centers: Tensor, distance: Distance = "squared_l2"
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch specification of `center_loss`."""
    present = labels != IGNORED_LABEL
    rows = centers[labels.clamp(0, len(centers) - 1)].to(means.dtype)
    difference = torch.where(present[:, None], means - rows, 0.0)
    difference = torch.where((present & ~within(labels, len(centers)))[:, None], torch.nan, difference)
    return torch.where(present, measure(difference, distance), 0.0).sum(), present.sum()


def center_loss(
    means: Tensor, labels: Tensor, centers: Tensor, distance: Distance = "squared_l2"
) -> tuple[Tensor, Tensor]:
    """Sum of distances of class means to their centers, and how many classes there are.

    Args:
        means: [N, D] floating point; rows labelled −100 do not count (see `class_means`).
        labels: [N] integer class of each row, −100 to ignore it; another one outside 0…Y−1 makes the sum NaN.
        centers: [Y, D]; takes a gradient only if it requires one (centers trained by back-propagation, section 4.3).
        distance: ``squared_l2`` (Eq. 5) or ``l2`` (the released choice).

    Returns:
        Scalar sum in the dtype of `means`, differentiable, and the int64 scalar count of classes.

    Raises:
        ValueError: distance, shapes, dtypes or devices that do not fit.
    """
    check_tensor("means", means, 2)
    check_tensor("labels", labels, 1, integer=True)
    check_tensor("centers", centers, 2)
    check_same("len(labels)", len(labels), "len(means)", len(means))
    check_same("means.shape[1]", means.shape[1], "centers.shape[1]", centers.shape[1])
    check_device(means=means, labels=labels, centers=centers)
    check_distance(distance)
    check_labels(labels, len(centers))
    return center_loss_reference(means, labels, centers, distance)
