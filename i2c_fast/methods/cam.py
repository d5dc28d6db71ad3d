"""CAM (Zhou et al., CVPR 2016): cross-entropy alone; the class activation map comes with the classifier."""

from torch import Tensor

from ..data import TrainBatch
from .method import Method, classification_terms


class Cam(Method):
    """Plain training, the stage 0 of I²C and the baseline of every method."""

    name = "cam"

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        terms = classification_terms(self.model(batch.images), batch.labels)
        return {"loss": terms["ce"], **terms}
