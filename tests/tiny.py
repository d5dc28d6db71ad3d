"""A backbone that costs nothing, for tests of what is around it: ``model.backbone=tiny`` wherever this is imported."""

from torch import nn

from i2c_fast.methods.adl import LAYERS
from i2c_fast.models import BACKBONES, register_backbone

BUILT_IN = tuple(BACKBONES)


class Tiny(nn.Sequential):
    """Two convolutions and a BatchNorm."""

    out_channels, stride = 6, 8

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3, 2, 1))


register_backbone("tiny", Tiny, head_width=8)
LAYERS[Tiny] = ("2",)
