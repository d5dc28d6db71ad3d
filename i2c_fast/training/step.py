"""One training step, without a synchronization between host and device.

images uint8 → normalized → body → F → head → logits and the label's map → seeds → SC, GC → CE + λ1·SC + λ2·GC (Eq. 6)
→ backward → optimizer → centers.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..data import TrainBatch, normalize_images
from ..losses import InterImageLoss
from ..models import Localizer
from ..runtime import Runtime

# What a step reports, in this order: the losses, then the share of right classes, the mean number of pixels above the
# threshold (Fig. 4a), and whether the step was skipped because something in it was not finite.
TERMS = ("loss", "ce", "sc", "gc", "accuracy", "seed_pixels", "skipped")


class TrainStep:
    """Applies batches to a model.

    A step whose loss or gradient is not finite leaves no trace: a flag on the device keeps weights, momentum, centers,
    counters and BatchNorm statistics as they were. Only the step number and the draws advance.

    Args:
        model: in training mode on the runtime's device.
        criterion: with ``auto_commit=False``; None trains by cross-entropy alone.
        optimizer: from `build_optimizer`; its learning rates are set by the caller.
        sc_weight, gc_weight: λ1, λ2.
    """

    def __init__(
        self,
        model: Localizer,
        criterion: InterImageLoss | None,
        optimizer: torch.optim.SGD,
        runtime: Runtime,
        sc_weight: float = 0.0,
        gc_weight: float = 0.0,
    ) -> None:
        self.model, self.criterion, self.optimizer, self.runtime = model, criterion, optimizer, runtime
        self.sc_weight, self.gc_weight = sc_weight, gc_weight
        self.statistics = [
            buffer for module in model.modules() if isinstance(module, nn.BatchNorm2d) for buffer in module.buffers()
        ]

    def __call__(self, batch: TrainBatch) -> Tensor:
        """Train on one batch; returns `TERMS` as fp32 [7] on the device."""
        device = self.runtime.device
        labels = batch.labels.to(device, non_blocking=True)
        statistics = [buffer.clone() for buffer in self.statistics]

        images = normalize_images(batch.images, device)
        with self.runtime.autocast():
            seeds = 0 if self.criterion is None else self.criterion.k
            logits, maps, features, slots = self.model(images, labels, seeds)
        ce = cross_entropy(logits.float(), labels)
        sc = gc = pixels = torch.zeros((), device=device)
        loss = ce
        if self.criterion is not None:
            terms = self.criterion(
                features,
                maps,
                labels,
                slots=slots,
                image_ids=batch.image_ids.to(device, non_blocking=True),
                groups=batch.groups.to(device, non_blocking=True),
            )
            sc, gc, pixels = terms.sc, terms.gc, terms.counts.float().mean()
            loss = ce + self.sc_weight * sc + self.gc_weight * gc

        self.optimizer.zero_grad()
        loss.backward()
        skipped = self._not_finite(loss.detach())
        # Fused optimizers look at this flag on the device, as they do under GradScaler.
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.criterion is not None:
            self.criterion.commit(found_inf=skipped)
        for buffer, before in zip(self.statistics, statistics, strict=True):
            buffer.copy_(torch.where(skipped != 0, before, buffer))

        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        return torch.stack([loss.detach(), ce.detach(), sc.detach(), gc.detach(), accuracy, pixels, skipped])

    def _not_finite(self, loss: Tensor) -> Tensor:
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        # A norm is finite only if every element is.
        norm = torch.nn.utils.get_total_norm(gradients)
        return (~(norm.isfinite() & loss.isfinite())).float()
