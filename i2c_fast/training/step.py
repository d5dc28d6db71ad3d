"""One training step, without a synchronization between host and device.

batch on the device → the method's loss → backward → optimizer → what the method updates itself → EMA.
"""

import inspect
import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from ..data import TrainBatch
from ..methods import Method
from ..runtime import Runtime
from ..world import World
from .ema import EMA
from .scale import LossScale


class TrainStep:
    """Applies batches to a method and its model.

    A step whose loss or gradient is not finite leaves no trace: a flag on the device keeps weights, momentum, the
    method's state, BatchNorm statistics and the EMA as they were. Only the step number, the random draws and the loss
    scale of fp16 advance.

    Args:
        method: in training mode on the runtime's device.
        optimizer: from `build_optimizer`; its learning rates are set by the caller.
        micro_batches: parts whose gradients add up to the batch's.
        clip_norm: largest norm of all gradients together; 0: any.
        ema: of the method's model, or None.

    Over several ranks, each takes its part of the batch: gradients and terms are means over ranks, and all of them
    skip a step or none does.
    """

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        runtime: Runtime,
        micro_batches: int = 1,
        clip_norm: float = 0.0,
        ema: EMA | None = None,
    ) -> None:
        self.method, self.optimizer, self.runtime = method, optimizer, runtime
        # The method, and not its model alone, so that centers trained by back-propagation are averaged as well.
        self.forward: Any = method if runtime.world.alone else _distributed(method, runtime)
        self.micro_batches, self.clip_norm, self.ema = micro_batches, clip_norm, ema
        self.scale = LossScale(runtime.device) if runtime.precision == "fp16" else None
        self.terms: tuple[str, ...] = ()  # names of what a step returns, known after the first
        buffers = [b for module in method.modules() if isinstance(module, _BatchNorm) for b in module.buffers()]
        dtypes = dict.fromkeys(buffer.dtype for buffer in buffers)
        self.statistics = [Statistics([b for b in buffers if b.dtype == dtype]) for dtype in dtypes]

    def __call__(self, batch: TrainBatch) -> Tensor:
        """Train on one batch; returns the method's terms and ``skipped``, named by `terms`, [T] on the device.

        ``skipped`` is 1 if something in the step was not finite, else 0.
        """
        for statistics in self.statistics:
            statistics.keep()
        self.optimizer.zero_grad()
        values = self.runtime.world.mean_(self._backpropagate(batch.to(self.runtime.device)))
        skipped = self._guard(values[self.terms.index("loss")])
        self.optimizer.step()
        self.method.after_step(skipped)
        for statistics in self.statistics:
            statistics.restore(skipped)
        if self.ema is not None:
            self.ema.update(skipped)
        return torch.cat([values, skipped.view(1).to(values.dtype)])

    def _backpropagate(self, batch: TrainBatch) -> Tensor:
        """Add up the gradients of all micro-batches; returns their mean terms [T]."""
        parts = []
        for number, part in enumerate(batch.split(self.micro_batches), 1):
            # Ranks exchange gradients once, with the last of them.
            last = number == self.micro_batches or self.forward is self.method
            with nullcontext() if last else self.forward.no_sync():
                with self.runtime.autocast():
                    terms = self.forward(part)
                loss = terms["loss"] if self.micro_batches == 1 else terms["loss"] / self.micro_batches
                (loss if self.scale is None else self.scale(loss)).backward()
            parts.append(torch.stack([term.detach().to(self.runtime.dtype) for term in terms.values()]))
        self.terms = (*terms, "skipped")
        return parts[0] if len(parts) == 1 else torch.stack(parts).mean(0)

    def _guard(self, loss: Tensor) -> Tensor:
        """Tell the optimizer, on the device, whether to skip the step and by what to divide the gradients."""
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        # A norm is finite only if every element is.
        norm = torch.nn.utils.get_total_norm(gradients)
        skipped = (~(norm + loss).isfinite()).float()
        optimizer: Any = self.optimizer
        # Fused optimizers look at these two on the device, as they do under GradScaler.
        optimizer.found_inf, divisor = skipped, None
        if self.clip_norm:
            # The norm is that of scaled gradients, so it is at most clip_norm after the division.
            divisor = (norm / self.clip_norm).float().clamp(min=1.0 if self.scale is None else self.scale.value)
        elif self.scale is not None:
            divisor = self.scale.value.clone()
        optimizer.grad_scale = divisor
        if self.scale is not None:
            self.scale.update(skipped)
        return skipped

    def average_statistics(self) -> None:
        """Give all ranks the mean of their BatchNorm statistics, to score and keep; training does not read them."""
        for statistics in self.statistics:
            statistics.average(self.runtime.world)

    def state_dict(self) -> dict[str, Any]:
        """What a continuation needs of the step itself."""
        return {
            "optimizer": self.optimizer.state_dict(), "loss_scale": None if self.scale is None else self.scale.state()
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scale is not None:
            self.scale.load(state["loss_scale"])


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

    def average(self, world: World) -> None:
        """Take the mean over ranks; counters are the same on all of them."""
        if not world.alone and self.views[0].is_floating_point():
            torch._foreach_copy_(self.views, world.mean_(torch.cat(self.views)).split(self.sizes))


def _distributed(method: Method, runtime: Runtime) -> DistributedDataParallel:
    # torch 2.13 calls it by another name. Buffers are each rank's own: broadcast, rank 0's centers would win.
    names = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
    options: dict[str, Any] = {buffers: False, "gradient_as_bucket_view": True}
    # The class layer is a 1 × 1 convolution: its gradient's memory is as it should be, its strides are named otherwise.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    devices = [runtime.device] if runtime.device.type == "cuda" else None
    return DistributedDataParallel(method, devices, **options)
