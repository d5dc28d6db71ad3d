"""Whether a trainer computes the gradient it should, before anything is timed.

The check's trainer has dropout off, no weight decay, and λ1 and λ2 by which SC and GC weigh as much as cross-entropy in
the gradient of F: with the recipes' they could be wrong and hardly be seen. One step from zero momentum leaves the
gradient in the momentum buffers. It is held against that of the vectorized objective in plain PyTorch, in the same
precision, at the same seed pixels.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from i2c_fast.data import TrainBatch

from .. import objective
from .plain import SEEDS
from .setting import Setting, Trainer, build_model, synthetic_batch

Build = Callable[[Setting, torch.device], Trainer]

# ‖got − reference‖ / ‖reference‖ over all parameters together. The two differ by rounding and by the order of sums,
# which BatchNorm over few pixels magnifies; a forgotten term has an error of .5 and more.
BOUNDS = {"fp32": 2e-3, "tf32": 2e-2, "fp16": 5e-2, "bf16": 5e-2}


def check_setting(setting: Setting, device: torch.device) -> Setting:
    """The setting of the trainers that are checked."""
    bare = replace(setting, dropout=0.0, weight_decay=0.0)
    model, batch = build_model(bare, device), synthetic_batch(bare, device)
    features = model.body(model.normalize(batch.images))
    ce = functional.cross_entropy(model.head.logits(model.head(features)).float(), batch.labels)
    pixels = torch.rand(len(features), features.shape[2:].numel(), device=device).topk(SEEDS).indices
    centers = torch.randn(bare.classes, model.feature_dim, device=device)
    sc, gc, _ = objective.losses_at(features, pixels, batch.labels, centers)
    norms = [float(torch.autograd.grad(term, features, retain_graph=True)[0].norm()) for term in (ce, sc, gc)]
    return replace(bare, sc_weight=norms[0] / norms[1], gc_weight=norms[0] / norms[2])


def gradient_error(build: Build, setting: Setting, device: torch.device) -> float:
    """Relative error of a new trainer's gradient; `setting` is from `check_setting`."""
    trainer = build(setting, device)
    trainer.set_flags()
    batch = trainer.prepare(synthetic_batch(setting, device))
    before = [tensor.detach().clone() for tensor in trainer.changes]

    @torch.no_grad()
    def start_again() -> None:
        for tensor, value in zip(trainer.changes, before, strict=True):
            tensor.copy_(value)
        for state in trainer.optimizer.state.values():
            state["momentum_buffer"].zero_()

    for _ in range(4):  # a trainer that replays a graph has captured it after these
        trainer.step(batch)
    start_again()
    indices = trainer.seeds(batch) if trainer.seeds is not None else None
    start_again()
    expected = _reference(trainer, batch, setting, indices)
    start_again()
    trainer.step(batch)
    momenta = [trainer.optimizer.state[parameter]["momentum_buffer"] for parameter in trainer.model.parameters()]
    return objective.relative_error(_joined(momenta), _joined(expected))


def _reference(trainer: Trainer, batch: TrainBatch, setting: Setting, indices: Tensor | None) -> list[Tensor]:
    """The gradient of each parameter; of cross-entropy alone without seed pixels."""
    model = trainer.model
    with trainer.autocast():
        features = model.body(model.normalize(batch.images))
        loss = functional.cross_entropy(model.head.logits(model.head(features)).float(), batch.labels)
    if indices is not None:
        assert trainer.centers is not None
        sc, gc, _ = objective.losses_at(features, indices.long(), batch.labels, trainer.centers.clone())
        loss = loss + setting.sc_weight * sc + setting.gc_weight * gc
    return list(torch.autograd.grad(loss, list(model.parameters())))


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors])
