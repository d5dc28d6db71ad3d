"""Stochastic consistency (SC): seeds of two images of one class are pulled together.

    L_sc(i, j) = 1/K Σ_k ‖v_i^k − v_j^k‖²                                                          (Eq. 1)

In PyTorch, for pairs in adjacent places: ``(v[0::2] - v[1::2]).square().sum(-1).mean(-1).sum()``.
"""

import torch
from torch import Tensor

from ._common import (
    Distance,
    accumulation_dtype,
    check_device,
    check_distance,
    check_same,
    check_tensor,
    earlier,
    first_true,
    measure,
    same_class,
)


def pair_consistency_loss_reference(
    values: Tensor, labels: Tensor, groups: Tensor | None = None, distance: Distance = "squared_l2"
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch specification of `pair_consistency_loss`."""
    same = same_class(labels)
    if groups is not None:
        same = same & (groups[:, None] == groups)
    place = earlier(same)
    partners = same & (place % 2 == 0)[:, None] & (place == place[:, None] + 1)
    paired = partners.any(1)
    v = values.to(accumulation_dtype(values.dtype))
    difference = torch.where(paired[:, None, None], v - v[first_true(partners)], 0.0)
    per_pair = measure(difference, distance).mean(1)
    return torch.where(paired, per_pair, 0.0).sum(), paired.sum()


def pair_consistency_loss(
    values: Tensor, labels: Tensor, groups: Tensor | None = None, distance: Distance = "squared_l2"
) -> tuple[Tensor, Tensor]:
    """Sum of Eq. 1 over the pairs of a batch, and how many pairs there are.

    Inside each (class, group) the first image pairs with the second, the third with the fourth and so on, in batch
    order; the k-th seed meets the k-th. An image left over, or labelled −100, has no pair.

    Args:
        values: [N, K, D] seed vectors, floating point.
        labels: [N] integer classes.
        groups: [N] integer; images of different groups never pair (a class-paired batch gives its slot numbers).
        distance: ``squared_l2`` (Eq. 1) or ``l2`` (the released choice).

    Returns:
        Scalar sum in fp32 (fp64 for fp64 input), differentiable in `values`, and the int64 scalar count. Divide one by
        the other for the mean; with several ranks divide by the global count.

    Raises:
        ValueError: distance, shapes, dtypes or devices that do not fit.
    """
    check_tensor("values", values, 3)
    check_tensor("labels", labels, 1, integer=True)
    check_same("len(labels)", len(labels), "len(values)", len(values))
    if groups is not None:
        check_tensor("groups", groups, 1, integer=True)
        check_same("len(groups)", len(groups), "len(values)", len(values))
    check_device(values=values, labels=labels, groups=groups)
    check_distance(distance)
    return pair_consistency_loss_reference(values, labels, groups, distance)
