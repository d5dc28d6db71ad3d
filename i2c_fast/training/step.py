"""One training step, without a synchronization between host and device.

batch on the device → the method's loss → backward → optimizer → what the method updates itself.
"""

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..data import TrainBatch
from ..methods import Method
from ..runtime import Runtime


class TrainStep:
    """Applies batches to a method and its model.

    A step whose loss or gradient is not finite leaves no trace: a flag on the device keeps weights, momentum, the
    method's state and BatchNorm statistics as they were. Only the step number and the random draws advance.

    Args:
        method: in training mode on the runtime's device.
        optimizer: from `build_optimizer`; its learning rates are set by the caller.
    """

    def __init__(self, method: Method, optimizer: torch.optim.SGD, runtime: Runtime) -> None:
        self.method, self.optimizer, self.runtime = method, optimizer, runtime
        self.terms: tuple[str, ...] = ()  # names of what a step returns, known after the first
        buffers = [b for module in method.modules() if isinstance(module, _BatchNorm) for b in module.buffers()]
        dtypes = dict.fromkeys(buffer.dtype for buffer in buffers)
        self.statistics = [Statistics([b for b in buffers if b.dtype == dtype]) for dtype in dtypes]

    def __call__(self, batch: TrainBatch) -> Tensor:
        """Train on one batch; returns the method's terms and ``skipped``, named by `terms`, fp32 [T] on the device.

        ``skipped`` is 1 if something in the step was not finite, else 0.
        """
        for statistics in self.statistics:
            statistics.keep()
        with self.runtime.autocast():
            terms = self.method(batch.to(self.runtime.device))
        self.terms = (*terms, "skipped")

        self.optimizer.zero_grad()
        terms["loss"].backward()
        skipped = self._not_finite(terms["loss"].detach())
        # Fused optimizers look at this flag on the device, as they do under GradScaler.
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        self.optimizer.step()
        self.method.after_step(skipped)
        for statistics in self.statistics:
            statistics.restore(skipped)
        return torch.stack([*(term.detach().float() for term in terms.values()), skipped])

    def _not_finite(self, loss: Tensor) -> Tensor:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        # A norm is finite only if every element is.
        norm = torch.nn.utils.get_total_norm(gradients)
        return (~(norm + loss).isfinite()).float()


class Statistics:
    """Buffers of one dtype that a forward changes and a skipped step gives back, in calls that do not grow in number.

    Args:
        buffers: written in place by the forward, on one device.
    """

    def __init__(self, buffers: list[Tensor]) -> None:
        self.views = [buffer.view(-1) for buffer in buffers]
        self.sizes = [view.numel() for view in self.views]

    def keep(self) -> None:
        """Remember the values of now."""
        self.before = torch.cat(self.views)

    def restore(self, skipped: Tensor) -> None:
        """Write back what `keep` saw where `skipped` is not 0."""
        values = torch.where(skipped != 0, self.before, torch.cat(self.views))
        torch._foreach_copy_(self.views, values.split(self.sizes))
