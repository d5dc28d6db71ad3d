"""EMA: an exponential moving average of a model's weights, which is scored and exported on demand."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..world import World


class EMA:
    """Averages weights and BatchNorm statistics over steps: ``ema = d·ema + (1 − d)·weights``.

    d rises to `decay` as (1 + n)/(10 + n) over the n steps done, so that the start's weights do not stay in a short
    run's average. torch's AveragedModel looks at a device counter from the host at each update; here nothing waits, and
    a skipped step changes nothing.

    Args:
        model: on its device; whole-number buffers are copied, not averaged.
        decay: d of a long run, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.current = dict(model.state_dict())  # shares the model's memory
        self.values = {name: tensor.clone() for name, tensor in self.current.items()}
        self.steps = torch.zeros((), device=next(iter(self.values.values())).device)
        names = [name for name, tensor in self.values.items() if tensor.is_floating_point()]
        self._averaged = [self.values[name] for name in names], [self.current[name] for name in names]
        parameters = dict(model.named_parameters())
        self._statistics = [name for name in names if name not in parameters]
        others = self.values.keys() - set(names)
        self._copied = [self.values[name] for name in others], [self.current[name] for name in others]

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """Take the weights of now into the average; `skipped`, a scalar on the device, is 1 if they are not new."""
        weight = (1 - ((1 + self.steps) / (10 + self.steps)).clamp(max=self.decay)) * (1 - skipped)
        averages, weights = self._averaged
        changes = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(changes, weight)
        torch._foreach_add_(averages, changes)
        if self._copied[0]:
            torch._foreach_copy_(*self._copied)
        self.steps.add_(1 - skipped)

    @torch.no_grad()
    def average_statistics(self, world: World) -> None:
        """Give all ranks the mean of their averaged BatchNorm statistics, see `TrainStep.average_statistics`."""
        for name in self._statistics:
            world.mean_(self.values[name])

    @contextmanager
    @torch.no_grad()
    def in_model(self) -> Iterator[None]:
        """While open, the model has the averaged weights."""
        trained = {name: tensor.clone() for name, tensor in self.current.items()}
        try:
            self._write(self.values)
            yield
        finally:
            self._write(trained)

    def _write(self, weights: Mapping[str, Tensor]) -> None:
        for name, tensor in self.current.items():
            tensor.copy_(weights[name])

    def state(self) -> dict[str, Any]:
        """The averaged weights by the model's names, and how many steps they hold."""
        return {"weights": self.values, "steps": self.steps}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        for name, tensor in self.values.items():
            tensor.copy_(state["weights"][name])
        self.steps.copy_(state["steps"])
