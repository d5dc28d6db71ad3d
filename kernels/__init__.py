"""The ops of Inter-Image Communication: class maps, seed pixels, consistency losses, class centers.

Needs torch alone and knows nothing of data, models or training, so that each op can be dropped into any loop. Import it
as ``i2c_fast.kernels``. One file holds one op: its equation, its plain PyTorch reference, its Triton kernels and its
public function. On a GPU the kernels run, elsewhere the references (``I2C_FAST_BACKEND``, see `_triton`).
"""

from ._common import IGNORED_LABEL
from .center_loss import center_loss, center_loss_reference
from .class_means import ClassMeans, class_means, class_means_reference
from .gather_pixels import Slots, gather_pixels, gather_pixels_reference, tap
from .inter_image_loss import InterImageOutput, inter_image_loss, inter_image_loss_reference
from .label_cam import label_cam, label_cam_reference
from .normalize_cam import normalize_cam, normalize_cam_reference
from .pair_consistency_loss import pair_consistency_loss, pair_consistency_loss_reference
from .pooled_head import pooled_head, pooled_head_reference
from .sample_pixels import sample_pixels, sample_pixels_reference
from .tap_dropout import tap_dropout
from .update_centers import update_centers, update_centers_reference

__all__ = [
    "IGNORED_LABEL",
    "ClassMeans",
    "InterImageOutput",
    "Slots",
    "center_loss",
    "center_loss_reference",
    "class_means",
    "class_means_reference",
    "gather_pixels",
    "gather_pixels_reference",
    "inter_image_loss",
    "inter_image_loss_reference",
    "label_cam",
    "label_cam_reference",
    "normalize_cam",
    "normalize_cam_reference",
    "pair_consistency_loss",
    "pair_consistency_loss_reference",
    "pooled_head",
    "pooled_head_reference",
    "sample_pixels",
    "sample_pixels_reference",
    "tap",
    "tap_dropout",
    "update_centers",
    "update_centers_reference",
]
