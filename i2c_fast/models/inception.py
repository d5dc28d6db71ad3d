"""InceptionV3 (Szegedy et al. 2015, arXiv:1512.00567) up to Mixed_6e as a stride-8 feature extractor."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .initialization import initialize_convolutions

Kernel = tuple[int, int]
# A branch by its name in the state dict: (output channels, kernel) of its convolutions from first to last.
Branches = Mapping[str, Sequence[tuple[int, Kernel]]]


class ConvBN(nn.Module):
    """Convolution without bias, BatchNorm, ReLU."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Kernel, stride: int = 1, padding: Kernel = (0, 0)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.relu(self.bn(self.conv(x)))
        return output


class InceptionBlock(nn.Module):
    """Parallel branches over the same input, concatenated by channels; every one keeps the resolution.

    The branch named `branch_pool` begins with `pool`. Convolutions are named as in torchvision: the branch's own name
    where it has one, and with `_1`, `_2` … appended where it has several.
    """

    def __init__(self, in_channels: int, branches: Branches, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool
        self.branches: dict[str, list[str]] = {}
        for branch, convolutions in branches.items():
            names = [branch] if len(convolutions) == 1 else [f"{branch}_{i + 1}" for i in range(len(convolutions))]
            channels = in_channels
            for name, (width, kernel) in zip(names, convolutions, strict=True):
                self.add_module(name, ConvBN(channels, width, kernel, padding=(kernel[0] // 2, kernel[1] // 2)))
                channels = width
            self.branches[branch] = names

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for branch, names in self.branches.items():
            y = self.pool(x) if branch == "branch_pool" else x
            for name in names:
                y = getattr(self, name)(y)
            outputs.append(y)
        return torch.cat(outputs, dim=1)


def _average_pool() -> nn.Module:
    return nn.AvgPool2d(kernel_size=3, stride=1, padding=1)


def _block_5(in_channels: int, pool_width: int) -> InceptionBlock:
    """Mixed_5*: figure 5 of the paper. Gives 224 + `pool_width` channels."""
    branches: Branches = {
        "branch1x1": [(64, (1, 1))],
        "branch5x5": [(48, (1, 1)), (64, (5, 5))],
        "branch3x3dbl": [(64, (1, 1)), (96, (3, 3)), (96, (3, 3))],
        "branch_pool": [(pool_width, (1, 1))],
    }
    return InceptionBlock(in_channels, branches, _average_pool())


def _block_6a(in_channels: int) -> InceptionBlock:
    """Mixed_6a: figure 10, but with stride 1 and padding where the paper halves the map. Gives 480 more channels."""
    branches: Branches = {
        "branch3x3": [(384, (3, 3))],
        "branch3x3dbl": [(64, (1, 1)), (96, (3, 3)), (96, (3, 3))],
        "branch_pool": [],
    }
    return InceptionBlock(in_channels, branches, nn.MaxPool2d(kernel_size=3, stride=1, padding=1))


def _block_6(in_channels: int, width: int) -> InceptionBlock:
    """Mixed_6b to Mixed_6e: figure 6, 7x7 convolutions factored into 1x7 and 7x1. Gives 768 channels."""
    row, column = (1, 7), (7, 1)
    branches: Branches = {
        "branch1x1": [(192, (1, 1))],
        "branch7x7": [(width, (1, 1)), (width, row), (192, column)],
        "branch7x7dbl": [(width, (1, 1)), (width, column), (width, row), (width, column), (192, row)],
        "branch_pool": [(192, (1, 1))],
    }
    return InceptionBlock(in_channels, branches, _average_pool())


def _stem_pool() -> nn.Module:
    # The unpadded 3x3 convolution before each leaves an even side: rounding up keeps the pooled side at S/4 and S/8.
    return nn.MaxPool2d(kernel_size=3, stride=2, padding=1, ceil_mode=True)


class InceptionV3Body(nn.Module):
    """Images [N,3,S,S] → features [N,768,S/8,S/8].

    Images are normalized by ImageNet's mean and std like every other body's (no `transform_input`); there is no
    auxiliary classifier. Trained from scratch, convolutions start as He et al. fan-out normal, BatchNorm as scale 1 and
    shift 0.
    """

    out_channels: int = 768
    stride: int = 8

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvBN(3, 32, (3, 3), stride=2, padding=(1, 1))
        self.Conv2d_2a_3x3 = ConvBN(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = ConvBN(32, 64, (3, 3), padding=(1, 1))
        self.maxpool1 = _stem_pool()
        self.Conv2d_3b_1x1 = ConvBN(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = ConvBN(80, 192, (3, 3))
        self.maxpool2 = _stem_pool()
        self.Mixed_5b = _block_5(192, pool_width=32)
        self.Mixed_5c = _block_5(256, pool_width=64)
        self.Mixed_5d = _block_5(288, pool_width=64)
        self.Mixed_6a = _block_6a(288)
        self.Mixed_6b = _block_6(768, width=128)
        self.Mixed_6c = _block_6(768, width=160)
        self.Mixed_6d = _block_6(768, width=160)
        self.Mixed_6e = _block_6(768, width=192)
        initialize_convolutions(self, "normal")

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for layer in self.children():  # in the order of __init__
            x = layer(x)
        return x
