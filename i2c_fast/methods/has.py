"""Hide-and-Seek (Singh and Lee, ICCV 2017): random patches of each training image are hidden.

An image is divided into a grid of S × S pixels, and each patch is hidden with a probability. S is drawn for each image
from several sides (HaS-Mixed, section 4); 0 hides nothing. Hidden pixels have the mean color of the data set, 0 after
normalization, so that activations have the expectation they have on whole test images (section 3.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..data import TrainBatch
from ..models import Localizer
from .method import SETUP, Method, Number, Setup, classification_terms

Side = Annotated[int, Field(ge=0, le=4096)]


@dataclass
class HaSOptions:
    sides: Annotated[list[Side], Field(min_length=1, description="S: sides of a patch in pixels; 0: hide nothing")] = (
        field(default_factory=lambda: [0, 16, 32, 44, 56])
    )
    drop_rate: Annotated[Number, Field(ge=0, le=1, description="probability that a patch is hidden")] = 0.5


class HaS(Method):
    """Trains on images with hidden patches; maps are the plain classifier's."""

    name = "has"
    Options = HaSOptions
    plan = "plain"

    sides: Tensor

    def __init__(self, model: Localizer, options: HaSOptions, setup: Setup = SETUP) -> None:
        super().__init__(model, options, setup)
        self.register_buffer("sides", torch.tensor(options.sides), persistent=False)
        self.smallest = min([side for side in options.sides if side], default=0)

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        images = self.model.normalize(batch.images)
        if self.smallest:
            drawn = torch.randint(len(self.sides), (len(images),), device=images.device)
            cells = -(-max(images.shape[-2:]) // self.smallest)
            draws = torch.rand(len(images), cells, cells, device=images.device)
            hidden = hidden_pixels(self.sides[drawn], draws < self.options.drop_rate, images.shape[-2:])
            images = images.masked_fill(hidden[:, None], 0.0)
        terms = classification_terms(self.model(images), batch.labels)
        return {"loss": terms["ce"], **terms}


def hidden_pixels(sides: Tensor, dropped: Tensor, size: Sequence[int]) -> Tensor:
    """Which pixels are hidden.

    Args:
        sides: int64 [N] side of each image's patches, 0 for none.
        dropped: bool [N, G, G] whether the patch in each row and column of the grid is hidden, with G patches enough
            for the smallest side.
        size: height and width.

    Returns:
        bool [N, H, W].
    """
    height, width = size
    patch = sides.clamp(min=1)[:, None]
    last = dropped.shape[1] - 1
    rows = (torch.arange(height, device=sides.device) // patch).clamp(max=last)
    columns = (torch.arange(width, device=sides.device) // patch).clamp(max=last)
    images = torch.arange(len(sides), device=sides.device)
    return dropped[images[:, None, None], rows[:, :, None], columns[:, None, :]] & (sides > 0)[:, None, None]
