"""A backbone's body under the localization head: the model every method trains and every command runs."""

from collections.abc import Sequence
from typing import NamedTuple, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError
from ..kernels import Slots
from .backbones import Body, find_backbone
from .head import LocalizationHead


class LocalizerOutput(NamedTuple):
    """What one training forward gives the losses."""

    logits: Tensor  # [N,Y]
    maps: Tensor  # fp32 [N,h,w], raw map of the label's class; constants
    features: Tensor  # [N,D,h,w], the body's output
    slots: Slots | None  # for the gradient of the features' K seed pixels, see `i2c_fast.kernels.tap`


class ClassMaps(NamedTuple):
    """Raw class maps, and the class scores of the same forward."""

    logits: Tensor  # [N,Y]
    maps: Tensor  # fp32 [N,h,w] for classes [N], [N,L,h,w] for classes [N,L], [N,Y,h,w] for all classes


class Localizer(nn.Module):
    """Classifies images and localizes any class in them.

    Images are [N,3,S,S]: uint8 RGB, which the model normalizes by its own `mean` and `std`, or floating point, which is
    taken as normalized already. Maps have the side h = w = S / `stride`.

    Args:
        body: normalized images → features, see `Body`.
        head: features → scores and maps.
        mean, std: of each RGB channel, in units of 255.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, body: Body, head: LocalizationHead, mean: Sequence[float] = (0.0,) * 3, std: Sequence[float] = (1.0,) * 3
    ) -> None:
        super().__init__()
        self.body = cast(nn.Module, body)
        self.head = head
        self.num_classes, self.feature_dim, self.stride = head.fc8.out_channels, body.out_channels, body.stride
        self.frozen_statistics = False  # of BatchNorm, in training
        self.frozen_layers: frozenset[str] = frozenset()  # of the body, see `freeze`
        # Buffers lie on the device: a tensor made from Python numbers in each step would make the host wait.
        # NumPy multiplies: on the meta device, where models are laid out, torch imports its compiler to do it.
        for name, values in (("mean", mean), ("std", std)):
            scaled = np.multiply(values, 255, dtype=np.float32)
            self.register_buffer(name, torch.tensor(scaled).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; BatchNorm of frozen layers goes on with the statistics it has."""
        super().train(mode)
        for name, module in self.body.named_modules():
            if isinstance(module, _BatchNorm) and (self.frozen_statistics or name in self.frozen_layers):
                module.eval()
        return self

    def freeze(self, last: str) -> None:
        """Keep the body's layers as they are up to `last`: no gradient, no weight decay, BatchNorm as in evaluation.

        Their forward records no graph, so it costs neither memory nor backward.

        Args:
            last: name of a child module of the body (or ``child.grandchild`` …). Layers are taken in the order the body
                defines them in, which has to be the order it runs them in.

        Raises:
            UserError: the body has no such layer.
        """
        layers = dict(self.body.named_modules())
        if not last or last not in layers:
            children = ", ".join(name for name, _ in self.body.named_children())
            raise UserError(f"model.freeze={last}: the body has no such layer; there are {children}")
        names = list(layers)
        end = max(i for i, name in enumerate(names) if name == last or name.startswith(f"{last}."))
        leaves = [name for name in names[: end + 1] if not any(True for _ in layers[name].children())]
        self.frozen_layers = frozenset(leaves)
        for name in leaves:
            layers[name].requires_grad_(False)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 images → normalized fp32, memory format kept; floating-point images as they are."""
        return images if images.is_floating_point() else (images - self.mean) / self.std

    def forward(self, images: Tensor, labels: Tensor | None = None, k: int = 0) -> Tensor | LocalizerOutput:
        """Images → logits [N,Y]; with labels int64 [N], `LocalizerOutput`: what the losses need.

        `k` is how many pixels of each image's features a loss will read through `slots`; 0 opens no slots.
        """
        features = self.body(self.normalize(images))
        if labels is None:
            return self.head.logits(self.head(features))
        x, slots = self.head.tapped(features, k) if k else (self.head(features), None)
        logits, maps = self.head.pooled(x, labels)
        return LocalizerOutput(logits, maps, features, slots)

    def class_maps(self, images: Tensor, classes: Tensor | None = None) -> ClassMaps:
        """Raw maps of the given classes, int64 [N] or [N,L], or of all classes, with the logits of the same pass.

        The caller sets `eval()` and `torch.no_grad()`.
        """
        x = self.head(self.body(self.normalize(images)))
        return ClassMaps(self.head.logits(x), self.head.class_maps(x, classes))


def build_localizer(backbone: str, num_classes: int, head_width: int = 0, dropout: float = 0.5) -> Localizer:
    """A freshly initialized localizer; `load_imagenet_weights(localizer.body, backbone)` fills its body.

    Args:
        backbone: a name in `BACKBONES`.
        head_width: channels of the head's hidden layers; 0 takes the backbone's.
        dropout: probability of the head's.

    Raises:
        UserError: an unknown backbone.
    """
    found = find_backbone(backbone)
    width = head_width or found.head_width
    head = LocalizationHead(found.feature_dim, num_classes, width, dropout, found.head_init)
    return Localizer(found.build(), head, found.mean, found.std)
