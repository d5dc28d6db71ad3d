"""The sizes at which kernels are measured and compiled: one usual batch, and that batch with one thing changed."""

from collections.abc import Callable
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
    batch: str = "paired"  # of BATCHES; one other than "paired" is checked, not timed

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
        """int64 [N] of this size's batch; −100 is an ignored image."""
        labels = BATCHES[self.batch](torch.arange(self.images, device=device))
        return torch.where(labels < 0, labels, labels % self.classes)

    def ranks(self, device: torch.device) -> Tensor:
        """int64 [N] the rank of each image where two divide the batch."""
        return torch.arange(self.images, device=device) // (self.images // 2)


def _ignored(i: Tensor) -> Tensor:
    return torch.where(i % 3 == 1, -100, i // 2 * 7)


# Classes of the images i of a batch, on which SC and GC depend.
BATCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "paired": lambda i: i // 2 * 7,  # two images of a class next to each other, as the trainer's sampler gives them
    "unpaired": lambda i: i // 3 * 7,  # each third image is left over
    "ignored": _ignored,  # each third image, and with it its pair
    "many members": lambda i: torch.where(i % 5 == 4, 1, 0),  # two classes
    "singletons": lambda i: i,  # no pair at all
}

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
# Checked before anything is timed: batches that no sampler gives, sizes that no block divides, pixels so few that
# seeds repeat.
UNUSUAL: tuple[Size, ...] = tuple(
    Size(78, 131, 5, 515, 7, 9, 130, layout, dtype, batch)
    for batch in BATCHES
    if batch != "paired"
    for layout, dtype in (("NCHW", "fp32"), ("channels_last", "bf16"))
)
TINY_UNUSUAL: tuple[Size, ...] = tuple(
    Size(6, 11, 3, 9, 2, 5, 8, "channels_last", "fp32", batch) for batch in BATCHES if batch != "paired"
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
