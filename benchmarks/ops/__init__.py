"""Each op at a size: its inputs, plain PyTorch that does the same, and how a result is judged.

``eager`` is what one would write with care: vectorized, no wait of the host. ``loops`` goes image by image and looks at
labels and masks on the host, as the released implementation of the method does. ``plain tap`` is the
tap in PyTorch alone.
"""

from . import losses, maps, seeds
from .problem import Op, Outputs, Problem, Provider, gradients_of, judged, upstream_of

__all__ = ["OPS", "Op", "Outputs", "Problem", "Provider", "gradients_of", "judged", "upstream_of"]

_HEAD = ("images", "classes", "height", "width", "head", "layout", "dtype", "batch")
_MAPS = ("images", "height", "width")
_SEEDS = ("images", "seeds", "features", "height", "width", "layout", "dtype")
_VALUES = ("images", "seeds", "features", "dtype", "batch")

OPS: dict[str, Op] = {
    "normalize_cam": Op(maps.normalize_cam, _MAPS),
    "label_cam": Op(maps.label_cam, _HEAD),
    "pooled_head": Op(maps.pooled_head, _HEAD),
    "sample_pixels": Op(seeds.sample_pixels, (*_MAPS, "seeds")),
    "gather_pixels": Op(seeds.gather_pixels, _SEEDS),
    "tap": Op(seeds.tap, _SEEDS),
    "tap_dropout": Op(seeds.tap_dropout, _SEEDS),
    "pair_consistency_loss": Op(losses.pair_consistency_loss, _VALUES),
    "class_means": Op(losses.class_means, _VALUES),
    "center_loss": Op(losses.center_loss, ("images", "classes", "features", "batch")),
    "update_centers": Op(losses.update_centers, ("images", "classes", "features", "batch")),
    "inter_image_loss": Op(losses.inter_image_loss, (*_SEEDS, "classes", "batch")),
}
