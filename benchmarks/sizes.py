"""The sizes at which kernels are measured and compiled: one usual batch, and that batch with one thing changed."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Size:
    """A batch as the ops see it: N images of Y classes, K seeds each, F [N, D, H, W] and x [N, C, H, W]."""

    images: int = 80
    classes: int = 1000
    seeds: int = 3
    features: int = 2048
    height: int = 28
    width: int = 28
    head: int = 1024
    layout: str = "channels_last"
    dtype: str = "bf16"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def pixels(self) -> int:
        return self.height * self.width

    def only(self, fields: tuple[str, ...]) -> "Size":
        """This size where `fields` say something, and the usual one elsewhere."""
        return replace(BASE, **{field: getattr(self, field) for field in fields})

    def changes(self) -> str:
        """What is unlike the usual batch."""
        changed = {name: value for name, value in asdict(self).items() if value != getattr(BASE, name)}
        return " ".join(f"{name}={value}" for name, value in changed.items()) or "usual"

    def random(self, *shape: int, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers, [N, C, H, W] in this size's layout."""
        tensor = torch.randn(shape, device=device).to(self.torch_dtype if dtype is None else dtype)
        if self.layout == "channels_last" and tensor.dim() == 4:
            tensor = tensor.to(memory_format=torch.channels_last)
        return tensor

    def labels(self, device: torch.device) -> Tensor:
        """Two images of a class next to each other, as the sampler of the trainer gives them."""
        return (torch.arange(self.images, device=device) // 2 * 7) % self.classes


# ResNet50 at 224 px in half precision: what a training step looks like.
BASE = Size()
# 2048×28×28 and 40×40 are ResNet50's, 512 VGG16's and 768 InceptionV3's features.
SIZES: tuple[Size, ...] = tuple(
    replace(BASE, **changes)
    for changes in (
        {}, {"images": 10}, {"classes": 200}, {"seeds": 20}, {"height": 40, "width": 40},
        {"features": 512}, {"features": 768}, {"layout": "NCHW"}, {"dtype": "fp16"}, {"dtype": "fp32"}, {"images": 320},
    )
)  # fmt: skip
# For a machine without a GPU: every path, few programs.
TINY: tuple[Size, ...] = (
    Size(4, 5, 3, 8, 5, 6, 8, "channels_last", "fp32"),
    Size(4, 5, 20, 8, 5, 6, 8, "NCHW", "fp32"),
    Size(4, 5, 3, 8, 5, 6, 8, "channels_last", "bf16"),
)
# Shapes nobody tunes for, to compile: single elements, primes, more than one block of everything.
ODD: tuple[Size, ...] = (
    Size(1, 1, 1, 1, 1, 1, 1, "NCHW", "fp32"),
    Size(7, 5, 7, 3, 7, 7, 3, "NCHW", "fp16"),
    Size(5, 20, 100, 2050, 13, 17, 65, "channels_last", "bf16"),
    Size(1500, 70, 4, 64, 128, 128, 130, "NCHW", "bf16"),
)


def describe(size: Size) -> dict[str, Any]:
    """For the results file."""
    return asdict(size)
