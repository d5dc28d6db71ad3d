"""Residual networks (He et al. 2015, arXiv:1512.03385) as stride-8 feature extractors.

As in torchvision, a bottleneck strides in its 3x3 convolution and not in the 1x1 before it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from .initialization import initialize_convolutions


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


class Residual(nn.Module, ABC):
    """relu(branch(x) + shortcut(x)), where the shortcut is projected if the branch changes the shape."""

    expansion: int

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                _convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
            )

    @abstractmethod
    def branch(self, x: Tensor) -> Tensor:
        """The convolutions beside the shortcut; their last BatchNorm has no ReLU behind it."""

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        output: Tensor = self.relu(self.branch(x).add_(shortcut))
        return output


class BasicBlock(Residual):
    """Two 3x3 convolutions (ResNet18)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__(in_channels, width, stride)
        self.conv1 = _convolution(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        output: Tensor = self.bn2(self.conv2(x))
        return output


class Bottleneck(Residual):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide (ResNet50)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__(in_channels, width, stride)
        self.conv1 = _convolution(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        output: Tensor = self.bn3(self.conv3(x))
        return output


class ResNetBody(nn.Module):
    """A stride-4 stem, then stages `layer1`, `layer2` … of `depths` blocks; each stage's first block has its stride.

    Trained from scratch, convolutions start as He et al. fan-out normal, BatchNorm as scale 1 and shift 0.
    """

    out_channels: int
    stride: int = 8

    def __init__(self, block: type[Residual], depths: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = _convolution(3, 64, 7, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.stages: list[str] = []
        channels = 64
        for i, (depth, stride) in enumerate(zip(depths, strides, strict=True)):
            width = 64 * 2**i
            blocks: list[nn.Module] = [block(channels, width, stride)]
            channels = width * block.expansion
            blocks += [block(channels, width, 1) for _ in range(depth - 1)]
            self.stages.append(f"layer{i + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*blocks))
        initialize_convolutions(self, "normal")

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in self.stages:
            features = getattr(self, stage)(features)
        return features


class ResNet50Body(ResNetBody):
    """Images [N,3,S,S] → features [N,2048,S/8,S/8]: layer3 and layer4 have stride 1."""

    out_channels = 2048

    def __init__(self) -> None:
        super().__init__(Bottleneck, depths=(3, 4, 6, 3), strides=(1, 2, 1, 1))


class ResNet18Body(ResNetBody):
    """Images [N,3,S,S] → features [N,256,S/8,S/8]: cut after layer3, which has stride 1. For small sets, quick runs."""

    out_channels = 256

    def __init__(self) -> None:
        super().__init__(BasicBlock, depths=(2, 2, 2), strides=(1, 2, 1))
