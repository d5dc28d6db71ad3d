"""The loss scale of fp16: gradients too small for its range are lifted into it."""

import torch
from torch import Tensor

# As torch's GradScaler has them.
INITIAL, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000


class LossScale:
    """Multiplies losses by a power of 2 that halves with each step skipped and doubles after 2000 that were not.

    torch's GradScaler does the same, but judges for itself which steps to skip. Here one guard judges for the
    optimizer, the method, BatchNorm statistics and the scale alike, and nothing waits for the device.
    """

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), INITIAL, device=device)  # fp32
        self.steps = torch.zeros((), device=device)  # since it last changed

    def __call__(self, loss: Tensor) -> Tensor:
        """The loss to backpropagate."""
        return loss * self.value

    def update(self, skipped: Tensor) -> None:
        """Take note of a step; `skipped` is a scalar on the device, 1 or 0."""
        self.steps.add_(1).mul_(1 - skipped)
        grows = self.steps >= INTERVAL
        self.value.mul_(1 + (GROWTH - 1) * grows).mul_(1 - (1 - BACKOFF) * skipped)
        self.steps.mul_(~grows)

    def state(self) -> dict[str, Tensor]:
        """Scale and steps since it last changed."""
        return {"value": self.value, "steps": self.steps}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from `state`."""
        self.value.copy_(state["value"])
        self.steps.copy_(state["steps"])
