"""BatchNorm over the batch of all ranks: ``model.bn=sync``."""

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Model = TypeVar("Model", bound=nn.Module)


class CPUSyncBatchNorm(_BatchNorm):
    """What `torch.nn.SyncBatchNorm` is on GPUs, in plain PyTorch, over gloo: torch's refuses CPU tensors.

    All ranks have to hold equally many values.
    """

    def forward(self, input: Tensor) -> Tensor:
        """[N,C,...] → the same shape and dtype; statistics are computed in fp32, of fp64 in fp64."""
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        values = input if input.dtype == torch.float64 else input.float()
        axes, shape = [0, *range(2, input.dim())], [1, -1, *[1] * (input.dim() - 2)]
        mean = _RankMean.apply(values.mean(axes))
        centered = values - mean.view(shape)
        variance = _RankMean.apply(centered.square().mean(axes))
        with torch.no_grad():
            self._track(mean, variance, values.numel() // values.shape[1] * dist.get_world_size())
        normalized = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        return normalized.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        factor = self.momentum if self.momentum is not None else 1 / int(self.num_batches_tracked)
        self.running_mean.lerp_(mean, factor)
        self.running_var.lerp_(variance * (count / (count - 1)), factor)


class _RankMean(torch.autograd.Function):
    """Mean over ranks. The loss is the sum of theirs, so its gradient is the mean of the ranks' gradients too."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # type: ignore[override]
        total = value.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    backward = forward  # type: ignore[assignment]


def synchronize_batchnorm(model: Model, device: torch.device) -> Model:
    """Make every BatchNorm inside `model`, for `device`, one over all ranks with the same tensors; returns `model`."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = CPUSyncBatchNorm
    return model
