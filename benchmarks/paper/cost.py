"""What a model costs: parameters and multiply–adds of body and head, and what GC adds."""

from typing import Any

import torch
from torch import Tensor, nn

from i2c_fast.models import build_localizer

BACKBONES = ("vgg16", "resnet50", "inception_v3")
PAPER = "InceptionV3: 27 M parameters, 21.42 G FLOPs; GC adds .8 M parameters (2.9 %) and 3 K FLOPs."


def cost(backbone: str, classes: int, size: int, head_width: int = 0, k: int = 3) -> dict[str, Any]:
    """Counts for one image of `size` pixels.

    Multiply–adds are those of convolutions and linear layers. GC adds a center of D numbers for each class, and for
    each image the mean of its K seeds and its distance from one center: (K + 2)·D operations in training, none later.
    """
    model = build_localizer(backbone, classes, head_width).eval()
    counted = {"body": 0, "head": 0}

    def count(part: str) -> Any:
        def hook(layer: nn.Module, _: Any, output: Tensor) -> None:
            assert isinstance(layer, nn.Conv2d)
            counted[part] += output[0].numel() * layer.weight[0].numel()

        return hook

    for part in counted:
        for layer in model.get_submodule(part).modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(count(part))
    with torch.inference_mode():
        features = model.body(torch.zeros(1, 3, size, size))
        x = model.head(features)
        model.head.fc8(x)  # every class's map
    parameters = {part: sum(p.numel() for p in model.get_submodule(part).parameters()) for part in counted}
    centers = classes * model.feature_dim
    return {
        "backbone": backbone, "classes": classes, "image_size": size,
        "parameters": parameters, "multiply_adds": counted,
        "gc_parameters": centers, "gc_parameters_relative": centers / sum(parameters.values()),
        "gc_operations_an_image_in_training": (k + 2) * model.feature_dim,
    }  # fmt: skip


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        f"**Cost**, {rows[0]['classes']} classes. The paper: {PAPER}", "",
        "| body / head of | parameters, M | multiply–adds, G | parameters of GC, M | operations of GC an image |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        own, adds = row["parameters"], row["multiply_adds"]
        lines.append(
            f"| {row['backbone']}, {row['image_size']} px | {own['body'] / 1e6:.2f} / {own['head'] / 1e6:.2f} | "
            f"{adds['body'] / 1e9:.2f} / {adds['head'] / 1e9:.2f} | {row['gc_parameters'] / 1e6:.2f} "
            f"({row['gc_parameters_relative']:.1%}) | {row['gc_operations_an_image_in_training']:,} |"
        )
    return "\n".join([*lines, ""])
