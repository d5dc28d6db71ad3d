"""NVIDIA apex's FusedSGD behind the guard of `TrainStep`: optional, never imported unless it is asked for."""

import importlib.util
from typing import Any

import torch

from ..errors import UserError

WAY_OUT = "install it by scripts/install_apex, or take optim.impl=torch"


def find_apex() -> str | None:
    """Why apex's FusedSGD cannot be used here, in a few words; None if it can. Imports nothing of apex."""
    try:
        if importlib.util.find_spec("apex") is None:
            return "apex is not installed"
        # PyPI's package of this name is a web toolkit.
        if importlib.util.find_spec("apex.optimizers.fused_sgd") is None:
            return "the apex installed here is not NVIDIA's"
        if importlib.util.find_spec("amp_C") is None:
            return "apex is installed without its CUDA kernels"
    except (ImportError, ValueError):
        return "the apex installed here is not NVIDIA's"
    return None if torch.cuda.is_available() else "apex needs a GPU"


def apex_sgd(groups: list[dict[str, Any]], momentum: float, nesterov: bool) -> torch.optim.Optimizer:
    """FusedSGD of these parameter groups; as torch's fused optimizers it skips a step where `found_inf` is not 0.

    Raises:
        UserError: apex is absent, not NVIDIA's, without kernels, or there is no GPU.
    """
    reason = find_apex()
    if reason is not None:
        raise UserError(f"optim.impl=apex: {reason}; {WAY_OUT}")
    from apex.optimizers import FusedSGD

    class GuardedSGD(FusedSGD):  # type: ignore[misc]
        def step(self, closure: Any = None) -> Any:
            # Its kernels return at once where this flag is set.
            self._dummy_overflow_buf.copy_(self.found_inf)
            return super().step(closure)

    optimizer: torch.optim.Optimizer = GuardedSGD(groups, lr=0.0, momentum=momentum, nesterov=nesterov)
    return optimizer
