"""The registry of backbones: ours, and those of other packages by `register_backbone`."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..errors import UserError
from .inception import InceptionV3Body
from .initialization import InitScheme
from .resnet import ResNet18Body, ResNet50Body
from .vgg import VGG16Body

# The statistics torchvision's ImageNet weights were trained with, RGB in units of 255.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Body(Protocol):
    """What a backbone has to be: an `nn.Module`, normalized images [N,3,S,S] → features [N,D,S/stride,S/stride]."""

    out_channels: int  # D
    stride: int  # the paper's maps need 8

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Backbone:
    """How a backbone is built, and the head and ImageNet weights that go with it.

    `weights_file` is torchvision's checkpoint IMAGENET1K_V1; the eight hex digits that end its name begin its SHA-256.
    A backbone without one starts from what `build` gives.
    """

    build: Callable[[], Body]
    head_width: int = 1024
    head_init: InitScheme = "xavier"
    weights_file: str = ""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def feature_dim(self) -> int:
        """D; a function that does not state `out_channels`, as a class does, builds a body to find out."""
        stated: int | None = getattr(self.build, "out_channels", None)
        return stated or self.build().out_channels

    @property
    def weights_url(self) -> str:
        return f"https://download.pytorch.org/models/{self.weights_file}"


BACKBONES: dict[str, Backbone] = {
    "vgg16": Backbone(VGG16Body, weights_file="vgg16-397923af.pth"),
    "resnet50": Backbone(ResNet50Body, head_init="normal", weights_file="resnet50-0676ba61.pth"),
    "inception_v3": Backbone(InceptionV3Body, weights_file="inception_v3_google-0cc3c7bd.pth"),
    "resnet18": Backbone(ResNet18Body, head_width=256, weights_file="resnet18-f37072fd.pth"),
}


def register_backbone(
    name: str,
    build: Callable[[], Body],
    *,
    head_width: int = 1024,
    head_init: InitScheme = "xavier",
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> None:
    """Make a body of another package available as ``model.backbone=NAME``, for this process.

    Args:
        name: not yet taken.
        build: a class of bodies, or a function that returns a new one, with the weights it is to start from;
            ``model.weights`` is then to be ``none``.
        head_width, head_init: of the localization head over it.
        mean, std: by which its images are normalized, RGB in units of 255.

    Raises:
        ValueError: the name is taken.
    """
    if name in BACKBONES:
        raise ValueError(f"there is a backbone {name!r} already; choose another name")
    BACKBONES[name] = Backbone(build, head_width, head_init, mean=mean, std=std)


def find_backbone(name: str) -> Backbone:
    """The registered backbone of that name; UserError with the nearest name if there is none."""
    if name not in BACKBONES:
        nearest = difflib.get_close_matches(name.lower(), BACKBONES, n=1, cutoff=0)[0]
        raise UserError(f"model.backbone={name} is unknown; did you mean {nearest}? There are {', '.join(BACKBONES)}")
    return BACKBONES[name]
