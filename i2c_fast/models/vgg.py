"""VGG16 (Simonyan and Zisserman 2014, arXiv:1409.1556, configuration D) as a stride-8 feature extractor."""

from torch import Tensor, nn

from .initialization import initialize_convolutions

# Output channels of the convolutions between two pools, and that pool's stride. The last two pools keep the resolution,
# so that maps have an eighth of the image's side instead of a thirty-second.
GROUPS = (
    ((64, 64), 2),
    ((128, 128), 2),
    ((256, 256, 256), 2),
    ((512, 512, 512), 1),
    ((512, 512, 512), 1),
)


class VGG16Body(nn.Module):
    """Images [N,3,S,S] → features [N,512,S/8,S/8].

    The thirteen convolutions have torchvision's indices in `features`, so its checkpoints load by name. All five
    max-pools are 3x3 with padding 1, and a 3x3 average pool closes the body. Trained from scratch, weights start as
    He et al. fan-out normal, biases at 0.
    """

    out_channels: int = 512
    stride: int = 8

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for widths, pool_stride in GROUPS:
            for width in widths:
                layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(kernel_size=3, stride=pool_stride, padding=1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AvgPool2d(kernel_size=3, stride=1, padding=1)
        initialize_convolutions(self, "normal")

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.avgpool(self.features(images))
        return features
