"""The whole objective on chosen seeds: gather, SC, class means and GC in one call.

    V = gather_pixels(F, seeds),   SC = Σ pairs Eq. 1,   a = class means of V (Eq. 2),   GC = Σ classes Eq. 5
"""

from typing import NamedTuple

from torch import Tensor

from ._common import Distance
from .center_loss import center_loss
from .class_means import ClassMeans, class_means
from .gather_pixels import Slots, gather_pixels
from .pair_consistency_loss import pair_consistency_loss


class InterImageSums(NamedTuple):
    """Sums over a batch with what they are to be divided by, and the class means the centers move to."""

    sc: Tensor  # scalar, sum of Eq. 1 over pairs
    pairs: Tensor  # int64 scalar
    gc: Tensor  # scalar, sum of Eq. 5's terms over classes
    classes: Tensor  # int64 scalar
    class_means: ClassMeans  # detached


def inter_image_loss_reference(
    features: Tensor,
    indices: Tensor,
    labels: Tensor,
    centers: Tensor,
    *,
    slots: Slots | None = None,
    groups: Tensor | None = None,
    distance: Distance = "squared_l2",
) -> InterImageSums:
    """Plain PyTorch specification of `inter_image_loss`."""
    values = gather_pixels(features, indices, slots)
    sc, pairs = pair_consistency_loss(values, labels, groups, distance)
    of_class = class_means(values, labels)
    gc, classes = center_loss(of_class.means, of_class.labels, centers, distance)
    return InterImageSums(sc, pairs, gc, classes, of_class._replace(means=of_class.means.detach()))


def inter_image_loss(
    features: Tensor,
    indices: Tensor,
    labels: Tensor,
    centers: Tensor,
    *,
    slots: Slots | None = None,
    groups: Tensor | None = None,
    distance: Distance = "squared_l2",
) -> InterImageSums:
    """SC and GC of a batch whose seeds are chosen.

    Args:
        features: [N, D, H, W]; indices: [N, K]; slots: see `gather_pixels`.
        labels: [N]; groups: [N] or None; distance: see `pair_consistency_loss`.
        centers: [Y, D], read only; see `center_loss`.

    Returns:
        `InterImageSums`, differentiable in `features` (and in `centers` where they require a gradient).

    Raises:
        ValueError: arguments that do not fit, as the four ops it stands for raise it.
    """
    return inter_image_loss_reference(
        features, indices, labels, centers, slots=slots, groups=groups, distance=distance
    )
