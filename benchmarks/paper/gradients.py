"""How hard each term of I²C pulls at the body, against the cross-entropy: one reason why λ does what it does."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from i2c_fast.config import Config
from i2c_fast.data import TrainBatches
from i2c_fast.runtime import seed_all
from i2c_fast.training import build_trainer

BATCHES = 3  # the first of them gives each class a center, so the mean is over the others
TERMS = ("ce", "sc", "gc")


def term_gradients(config: Config) -> dict[str, Any]:
    """Values of cross-entropy, SC and GC at a run's start, and norms of their gradients in the body's weights.

    Args:
        config: whose first stage to train is I²C. Nothing is trained: weights stay, centers are updated.

    Returns:
        ``distance`` and for each term ``value``, ``gradient_norm`` and, with its λ, the norm relative to that of the
        cross-entropy; means over batches.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(config, Path(folder), Console(quiet=True))
    method, data = trainer.method.train(), trainer.config.data
    options: Any = method.options
    sampler = trainer._sampler("class_paired")
    batches = TrainBatches(trainer.train_index, sampler, data.image_size, data.short_side, data.resize)
    weights = [p for p in trainer.model.body.parameters() if p.requires_grad]
    values, norms = torch.zeros(len(TERMS)), torch.zeros(len(TERMS))
    for step in range(BATCHES):
        seed_all(config.run.seed, step)
        with trainer.runtime.autocast():
            terms = method(batches[0, step].to(trainer.runtime.device))
        if step:
            for i, term in enumerate(TERMS):
                found = torch.autograd.grad(terms[term], weights, retain_graph=True, allow_unused=True)
                values[i] += float(terms[term].detach()) / (BATCHES - 1)
                norm = torch.nn.utils.get_total_norm([one for one in found if one is not None])
                norms[i] += float(norm) / (BATCHES - 1)
        method.after_step(torch.zeros((), device=trainer.runtime.device))
    factors = torch.tensor([1.0, options.sc_weight, options.gc_weight])
    relative = factors * norms / norms[0]
    return {
        "distance": options.distance, "sc_weight": options.sc_weight, "gc_weight": options.gc_weight,
        "images": (BATCHES - 1) * sampler.global_batch_size,
        **{
            term: {
                "value": values[i].item(), "weighted_over_ce": (factors[i] * values[i] / values[0]).item(),
                "gradient_norm": norms[i].item(), "weighted_gradient_over_ce": relative[i].item(),
            }
            for i, term in enumerate(TERMS)
        },
    }  # fmt: skip


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The table: values and gradients of the weighted terms, relative to those of the cross-entropy."""
    lines = [
        "**Terms at the start of stage 1**, relative to the cross-entropy. Gradients are norms over the body's trained "
        "weights.", "",
        "| distance | CE | SC | λ1·SC / CE | gradient of λ1·SC / of CE | GC | λ2·GC / CE | gradient of λ2·GC / of CE |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        cells = [row["distance"], f"{row['ce']['value']:.2f}"]
        for term in ("sc", "gc"):
            own = row[term]
            cells += [
                f"{own['value']:.1f}", f"{own['weighted_over_ce']:.3f}", f"{own['weighted_gradient_over_ce']:.3f}"
            ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    weights = rows[0]
    return "\n".join([*lines, "", f"λ1 {weights['sc_weight']:g}, λ2 {weights['gc_weight']:g}.", ""])
