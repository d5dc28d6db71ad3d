"""What a method is: how a model is trained on image labels, and which maps it is judged by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import AllowInfNan
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.functional import cross_entropy

from ..data import TrainBatch
from ..kernels._common import accumulation_dtype
from ..models import Localizer

# δ of the paper: the fraction of a map's range above which its pixels are counted (Fig. 4a).
DEFAULT_THRESHOLD = 0.7

PlanName = Literal["class_paired", "plain"]
Number = Annotated[float, AllowInfNan(False)]


@dataclass
class NoOptions:
    """The section of a method that has no options."""


class Setup(NamedTuple):
    """What a method has to know of the run beside its own options."""

    seed: int = 0
    micro_batches: int = 1  # forwards that make up one optimizer step
    process_group: ProcessGroup | None = None  # of the ranks that divide each batch


SETUP = Setup()


class ParameterGroup(NamedTuple):
    """Parameters with a learning-rate factor of their own, which ``optim`` gives by `name` (1 if it gives none)."""

    name: str
    params: list[nn.Parameter]
    decay: bool = True  # whether weight decay applies


class Method(nn.Module):
    """A method of weakly supervised localization; a subclass is found by its `name` once it is defined.

    The trainer calls ``forward`` on a batch that lies on the device, backpropagates ``loss``, steps the optimizer and
    calls `after_step`. Nothing in these may wait for the device. What a subclass keeps between steps is in its
    ``state_dict``; random draws come from torch's generators, which are seeded anew for each step.

    Args:
        model: the model to train, on any device.
        options: the method's section of the configuration, an instance of `Options`.
        setup: of the run.
    """

    registered: ClassVar[dict[str, type["Method"]]] = {}

    name: ClassVar[str]  # in a recipe: stage0.method=NAME, and its options are the section [NAME]
    Options: ClassVar[type] = NoOptions
    plan: ClassVar[PlanName] = "class_paired"  # how its batches are drawn where batch.plan=auto
    titles: ClassVar[Mapping[str, str]] = {}  # of its own terms, for charts

    def __init_subclass__(cls) -> None:
        if cls.registered.setdefault(cls.name, cls).__qualname__ != cls.__qualname__:
            raise ValueError(f"there is a method {cls.name!r} already; choose another name")

    def __init__(self, model: Localizer, options: Any, setup: Setup = SETUP) -> None:
        super().__init__()
        self.model = model
        self.options = options

    def forward(self, batch: TrainBatch) -> dict[str, Tensor]:
        """``loss``, a scalar to minimize, and any scalars to log, in one order at every step."""
        raise NotImplementedError

    def parameter_groups(self) -> list[ParameterGroup]:
        """Every parameter that is trained, once; by default body and head, weights and biases apart (the release)."""
        groups: dict[str, list[nn.Parameter]] = {
            "body weights": [], "body biases": [], "head weights": [], "head biases": []
        }  # fmt: skip
        for key, parameter in self.model.named_parameters():
            part = "head" if key.startswith("head.") else "body"
            if parameter.requires_grad:
                groups[f"{part} {'biases' if key.endswith('bias') else 'weights'}"].append(parameter)
        return [ParameterGroup(name, params) for name, params in groups.items() if params]

    def after_step(self, found_inf: Tensor) -> None:
        """Update what the optimizer does not; `found_inf` is a device scalar, not 0 if the step was skipped."""

    def close(self) -> None:
        """Undo what the constructor did to the model, which goes on to the next stage."""

    @property
    def predictor(self) -> Localizer:
        """What evaluation, prediction and export run: the model, or a module with its two ways of being called."""
        return self.model

    def own_state(self) -> dict[str, Tensor]:
        """The state beside the model's."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith("model.")}

    def load_own_state(self, state: Mapping[str, Tensor]) -> Self:
        """Restore `own_state`; RuntimeError where names or shapes differ."""
        self.load_state_dict({**self.model.state_dict(prefix="model."), **state})
        return self

    @classmethod
    def check(cls, options: Any, images_a_slot: int) -> None:
        """Raise UserError if options and batches do not go together."""

    @classmethod
    def describe(cls, options: Any) -> tuple[str, str]:
        """The objective, and the options that matter, each in a few words."""
        return "cross-entropy alone", ""

    @classmethod
    def map_threshold(cls, options: Any) -> float:
        """The fraction of a map's range above which pixels are counted in reports."""
        return DEFAULT_THRESHOLD


def classification_terms(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """``ce``, the cross-entropy in fp32 (fp64 of fp64), and ``accuracy``, see there."""
    return {
        "ce": cross_entropy(logits.to(accumulation_dtype(logits.dtype)), labels),
        "accuracy": accuracy(logits, labels),
    }


@torch.no_grad()
def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Fraction of images whose label scores highest."""
    return (logits.argmax(1) == labels).double().mean()
