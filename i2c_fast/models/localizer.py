"""A backbone's body under the localization head, and the registry of the backbones on offer."""

import difflib
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from ..errors import UserError
from ..kernels import Slots
from .head import LocalizationHead
from .inception import InceptionV3Body
from .initialization import InitScheme
from .resnet import ResNet18Body, ResNet50Body
from .vgg import VGG16Body

Body = VGG16Body | ResNet50Body | InceptionV3Body | ResNet18Body


@dataclass(frozen=True)
class BackboneSpec:
    """What sets one backbone apart from another.

    `weights_file` is torchvision's ImageNet checkpoint `weights_name`; the eight hex digits that end its name begin its
    SHA-256.
    """

    body: type[Body]
    head_width: int
    head_init: InitScheme
    weights_name: str
    weights_file: str

    @property
    def feature_dim(self) -> int:
        """D, the channels of the features."""
        return self.body.out_channels

    @property
    def weights_url(self) -> str:
        return f"https://download.pytorch.org/models/{self.weights_file}"


BACKBONES: dict[str, BackboneSpec] = {
    "vgg16": BackboneSpec(VGG16Body, 1024, "xavier", "VGG16_Weights.IMAGENET1K_V1", "vgg16-397923af.pth"),
    "resnet50": BackboneSpec(ResNet50Body, 1024, "normal", "ResNet50_Weights.IMAGENET1K_V1", "resnet50-0676ba61.pth"),
    "inception_v3": BackboneSpec(
        InceptionV3Body,
        1024,
        "xavier",
        "Inception_V3_Weights.IMAGENET1K_V1",
        "inception_v3_google-0cc3c7bd.pth",
    ),
    "resnet18": BackboneSpec(ResNet18Body, 256, "xavier", "ResNet18_Weights.IMAGENET1K_V1", "resnet18-f37072fd.pth"),
}


class LocalizerOutput(NamedTuple):
    """What one training forward gives the losses."""

    logits: Tensor  # [N,Y]
    maps: Tensor  # fp32 [N,H,W], raw map of the label's class; constants
    features: Tensor  # [N,D,H,W], the body's output
    slots: Slots | None  # for the gradient of the features' K seeds, see `i2c_fast.kernels.tap`


class Localizer(nn.Module):
    """Classifies images and localizes any class in them; H and W are an eighth of the image's side."""

    def __init__(self, body: nn.Module, head: LocalizationHead) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, images: Tensor, labels: Tensor, seeds: int = 0) -> LocalizerOutput:
        """Training: normalized images [N,3,S,S] and labels int64 [N] → what the losses need.

        `seeds` is the K of the I2C losses, or 0 if nothing will read single pixels of the features.
        """
        features = self.body(images)
        x, slots = self.head.tapped(features, seeds) if seeds else (self.head(features), None)
        logits, maps = self.head.pooled(x, labels)
        return LocalizerOutput(logits, maps, features, slots)

    def predict(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized images [N,3,S,S] → (logits [N,Y], x); `head.class_maps(x, classes)` gives any class's map.

        The caller sets `eval()` and `torch.no_grad()`.
        """
        x = self.head(self.body(images))
        return self.head.logits(x), x


def find_backbone(name: str) -> BackboneSpec:
    """The registered backbone of that name; UserError with the nearest name if there is none."""
    if name not in BACKBONES:
        nearest = difflib.get_close_matches(name.lower(), BACKBONES, n=1, cutoff=0)[0]
        raise UserError(f"model.backbone={name} is unknown; did you mean {nearest}? There are {', '.join(BACKBONES)}")
    return BACKBONES[name]


def build_localizer(backbone: str, num_classes: int) -> Localizer:
    """A freshly initialized localizer; `load_imagenet_weights(localizer.body, backbone)` fills its body."""
    spec = find_backbone(backbone)
    head = LocalizationHead(spec.feature_dim, num_classes, width=spec.head_width, init=spec.head_init)
    return Localizer(spec.body(), head)
