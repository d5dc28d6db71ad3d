"""The mean seed vector of each class of a batch.

    a^y = 1/(K·|B^y|) Σ_{i: y_i = y} Σ_k v_i^k                                                     (Eq. 2)

In PyTorch: ``values[labels == y].mean((0, 1))`` for each y. Shapes do not depend on how many classes there are.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ._common import (
    IGNORED_LABEL,
    accumulation_dtype,
    check_device,
    check_same,
    check_tensor,
    earlier,
    first_true,
    same_class,
)


class ClassMeans(NamedTuple):
    """Class means, each in the row of its class's first image; the other rows are to be ignored."""

    means: Tensor  # [N, D] fp32 (fp64 for fp64 input), zero in ignored rows
    labels: Tensor  # [N] the class at its first image, −100 elsewhere
    counts: Tensor  # int64 [N] images of the class at its first image, 0 elsewhere


def class_means_reference(values: Tensor, labels: Tensor) -> ClassMeans:
    """Plain PyTorch specification of `class_means`."""
    same = same_class(labels)
    first = (earlier(same) == 0) & (labels != IGNORED_LABEL)
    counts = torch.where(first, same.sum(1), 0)
    # Each image is added to its class's first row: a NaN stays in its class, as it would not in a matrix product.
    row = torch.where(labels != IGNORED_LABEL, first_true(same), torch.arange(len(labels), device=labels.device))
    per_image = values.to(accumulation_dtype(values.dtype)).mean(1)
    sums = torch.zeros_like(per_image).index_add(0, row, per_image)
    means = torch.where(first[:, None], sums / counts.clamp(min=1)[:, None], 0.0)
    return ClassMeans(means, torch.where(first, labels, IGNORED_LABEL), counts)


def class_means(values: Tensor, labels: Tensor) -> ClassMeans:
    """Average the seed vectors of each class of the batch.

    Args:
        values: [N, K, D] seed vectors, floating point.
        labels: [N] integer classes in any order; −100 belongs to no class.

    Returns:
        `ClassMeans`; its means are differentiable in `values`.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    check_tensor("values", values, 3)
    check_tensor("labels", labels, 1, integer=True)
    check_same("len(labels)", len(labels), "len(values)", len(values))
    check_device(values=values, labels=labels)
    return class_means_reference(values, labels)
