"""CutMix (Yun et al., ICCV 2019): a box of each image is replaced by another image's, and the label mixes with it.

    x̃ = M ⊙ x_A + (1 − M) ⊙ x_B,   ỹ = λ·y_A + (1 − λ)·y_B,   λ ~ Beta(α, α)                                  (Eq. 1)

M is 0 inside a box of W·√(1 − λ) × H·√(1 − λ) pixels around a uniform center, cut off at the image's border (Eq. 2); λ
then is the fraction of pixels that stay. A batch shares one box, as in the authors' code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..data import TrainBatch
from ..models import Localizer
from .method import SETUP, Method, Number, Setup, accuracy, classification_terms


@dataclass
class CutMixOptions:
    alpha: Annotated[Number, Field(gt=0, description="α of Beta(α, α), from which λ is drawn")] = 1.0
    probability: Annotated[Number, Field(ge=0, le=1, description="of mixing a batch")] = 1.0


class CutMix(Method):
    """Trains on mixed images; maps are the plain classifier's."""

    name = "cutmix"
    Options = CutMixOptions
    plan = "plain"
    titles: ClassVar = {"kept": "CutMix: fraction λ of pixels kept"}

    alpha: Tensor

    def __init__(self, model: Localizer, options: CutMixOptions, setup: Setup = SETUP) -> None:
        super().__init__(model, options, setup)
        self.register_buffer("alpha", torch.tensor(options.alpha), persistent=False)

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        lam = torch.distributions.Beta(self.alpha, self.alpha, validate_args=False).sample()
        left_out = torch.rand_like(lam) >= self.options.probability
        center, others = torch.rand(2, device=lam.device), torch.rand(len(batch.labels), device=lam.device).argsort()
        box = cut_box(torch.where(left_out, 1.0, lam), center, batch.images.shape[-2:])
        images, kept = paste(batch.images, batch.images[others], box)
        logits = self.model(images)
        own, other = (classification_terms(logits, labels)["ce"] for labels in (batch.labels, batch.labels[others]))
        loss = kept * own + (1 - kept) * other
        return {"loss": loss, "ce": own, "accuracy": accuracy(logits, batch.labels), "kept": kept}


def cut_box(lam: Tensor, center: Tensor, size: Sequence[int]) -> Tensor:
    """Eq. 2: the box y0, x0, y1, x1 (ends excluded) of a fraction 1 − λ of the pixels, cut off at the border.

    Args:
        lam: scalar λ. center: [2] y and x of the box's center as fractions of the side. size: height and width.

    Returns:
        [4] whole numbers.
    """
    starts, ends = [], []
    for side, at in zip(size, center.unbind(), strict=True):
        half = (side * (1 - lam).sqrt()).floor().div(2, rounding_mode="floor")
        middle = (at * side).floor()
        starts.append((middle - half).clamp(0, side))
        ends.append((middle + half).clamp(0, side))
    return torch.stack([*starts, *ends])


def paste(images: Tensor, others: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 1: images [N,C,H,W] with the pixels inside `box` taken from `others`, and λ, the fraction that stays."""
    height, width = images.shape[-2:]
    y, x = torch.arange(height, device=box.device)[:, None], torch.arange(width, device=box.device)
    inside = (y >= box[0]) & (x >= box[1]) & (y < box[2]) & (x < box[3])
    return torch.where(inside, others, images), 1 - inside.float().mean()
