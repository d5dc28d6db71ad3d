"""Inter-Image Communication (Zhang, Wei, Yang, ECCV 2020): cross-entropy + λ1·SC + λ2·GC (Eq. 6)."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from ..data import TrainBatch
from ..errors import UserError
from ..kernels._common import Distance
from ..kernels.sample_pixels import SeedChoice
from ..losses import CenterUpdate, InterImageLoss
from ..models import Localizer
from .method import DEFAULT_THRESHOLD, SETUP, Method, Number, ParameterGroup, Setup, classification_terms


@dataclass
class I2COptions:
    sc_weight: Annotated[Number, Field(ge=0, description="λ1 of SC; does not transfer between distances")] = 0.008
    gc_weight: Annotated[Number, Field(ge=0, description="λ2 of GC")] = 0.001
    k: Annotated[int, Field(ge=1, le=1024, description="K: seed pixels an image")] = 3
    threshold: Annotated[Number, Field(ge=0, lt=1, description="δ: fraction of the map's range seeds lie above")] = (
        DEFAULT_THRESHOLD
    )
    alpha: Annotated[Number, Field(ge=0, description="α: decay of the centers' update rate")] = 0.002
    distance: Annotated[Distance, Field(description="squared_l2 (the paper) or l2 (released choice)")] = "squared_l2"
    seed_choice: Annotated[SeedChoice, Field(description="random (the paper) or first (released choice)")] = "random"
    center_update: Annotated[CenterUpdate, Field(description="momentum (the paper) or backprop (its ablation)")] = (
        "momentum"
    )


class I2C(Method):
    """Seed pixels of two images of one class are pulled together (SC), and towards the class's center (GC)."""

    name = "i2c"
    Options = I2COptions
    titles: ClassVar = {
        "sc": "SC, stochastic consistency (before λ1)",
        "gc": "GC, global consistency (before λ2)",
        "seed_pixels": "Mean pixels above δ in training",
    }

    def __init__(self, model: Localizer, options: I2COptions, setup: Setup = SETUP) -> None:
        super().__init__(model, options, setup)
        own = dataclasses.asdict(options)
        self.sc_weight, self.gc_weight = own.pop("sc_weight"), own.pop("gc_weight")
        # The other options are the loss's own arguments.
        self.criterion = InterImageLoss(
            model.num_classes, model.feature_dim, **own, **setup._asdict(), auto_commit=False
        )

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        logits, maps, features, slots = self.model(batch.images, batch.labels, self.criterion.k)
        terms = classification_terms(logits, batch.labels)
        sc, gc, counts = self.criterion(
            features, maps, batch.labels, slots=slots, image_ids=batch.image_ids, groups=batch.groups
        )
        loss = terms["ce"] + self.sc_weight * sc + self.gc_weight * gc
        return {"loss": loss, **terms, "sc": sc, "gc": gc, "seed_pixels": counts.double().mean()}

    def parameter_groups(self) -> list[ParameterGroup]:
        groups = super().parameter_groups()
        if isinstance(self.criterion.centers, nn.Parameter):
            groups.append(ParameterGroup("centers", [self.criterion.centers], decay=False))
        return groups

    def after_step(self, found_inf: Tensor) -> None:
        self.criterion.commit(found_inf=found_inf)

    @classmethod
    def check(cls, options: I2COptions, images_a_slot: int) -> None:
        if images_a_slot < 2 and options.sc_weight:
            raise UserError("batch.images=1 gives SC no pair; use batch.images=2, or i2c.sc_weight=0")

    @classmethod
    def describe(cls, options: Any) -> tuple[str, str]:
        return (
            f"cross-entropy + {options.sc_weight:g} SC + {options.gc_weight:g} GC",
            f"K {options.k}, δ {options.threshold:g}, {options.distance}, {options.seed_choice} seeds",
        )

    @classmethod
    def map_threshold(cls, options: I2COptions) -> float:
        return options.threshold
