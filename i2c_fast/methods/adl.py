"""ADL, attention-based dropout layers (Choe and Shim, CVPR 2019): hide, or else weigh, where features are strong.

    A = mean of F over channels;   drop mask = 0 where A > γ·max A, else 1;   importance map = sigmoid(A)   (section 3)

At every training step each layer multiplies its features by one of the two, drawn at random. Layers hold no parameters
and do nothing at test time.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..data import TrainBatch
from ..errors import UserError
from ..models import InceptionV3Body, Localizer, ResNet18Body, ResNet50Body, VGG16Body
from .method import SETUP, Method, Number, Setup, classification_terms

# Where the layers stand by default. ResNet50's and VGG16's places are wsolevaluation's, and so are InceptionV3's, but
# for a third one in its head; ResNet18, cut after layer3, has them at the same depths of its last stage.
LAYERS: dict[type, tuple[str, ...]] = {
    VGG16Body: ("features.16", "features.22", "features.29"),  # after pool3, conv4_3 and conv5_3
    ResNet50Body: ("layer3.0", "layer4.0", "layer4.2"),
    InceptionV3Body: ("Mixed_5d", "Mixed_6e"),
    ResNet18Body: ("layer2.1", "layer3.0", "layer3.1"),
}


@dataclass
class ADLOptions:
    drop_rate: Annotated[Number, Field(ge=0, le=1, description="probability that a layer drops, else it weighs")] = 0.75
    threshold: Annotated[Number, Field(ge=0, le=1, description="γ: fraction of the maximum above which it drops")] = 0.9
    layers: Annotated[list[str], Field(description="body layers whose output is dropped; []: the backbone's own")] = (
        field(default_factory=list)
    )


class ADL(Method):
    """Trains with dropout layers after some of the body's; maps are the plain classifier's."""

    name = "adl"
    Options = ADLOptions
    plan = "plain"

    def __init__(self, model: Localizer, options: ADLOptions, setup: Setup = SETUP) -> None:
        super().__init__(model, options, setup)
        layers = options.layers or LAYERS.get(type(model.body), ())
        if not layers:
            raise UserError(f"adl.layers: none are known for {type(model.body).__name__}; name layers of the body")
        named = dict(model.body.named_modules())
        for name in layers:
            if name not in named:
                raise UserError(
                    f"adl.layers: the body has no layer {name!r}; there are {', '.join(list(named)[1:9])} …"
                )
        # Hooks and not modules in between: names of weights stay those of the plain model.
        self.hooks = [named[name].register_forward_hook(self._drop) for name in layers]

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        terms = classification_terms(self.model(batch.images), batch.labels)
        return {"loss": terms["ce"], **terms}

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def _drop(self, layer: nn.Module, inputs: Any, features: Tensor) -> Tensor:
        if not layer.training:
            return features
        drops = torch.rand((), device=features.device) < self.options.drop_rate
        return attention_dropout(features, drops, self.options.threshold)


def attention_dropout(features: Tensor, drops: Tensor, threshold: float) -> Tensor:
    """Features [N,D,h,w] times their drop mask if the bool scalar `drops` is true, else times their importance map."""
    attention = features.mean(1, keepdim=True)
    mask = (attention <= threshold * attention.amax((2, 3), keepdim=True)).to(features.dtype)
    return features * torch.where(drops, mask, attention.sigmoid())
