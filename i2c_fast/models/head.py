"""The localization head of the paper's section 4.1, after ACoL (Zhang et al. 2018, arXiv:1804.06962)."""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ..kernels import Slots, label_cam, pooled_head, tap_dropout
from .initialization import InitScheme, initialize_convolutions


class LocalizationHead(nn.Module):
    """Features [N,D,H,W] → x [N,width,H,W], which `fc8` (1x1) turns into class maps and class scores.

    The map of class y is channel y of fc8(x) and its logit that map's mean. Both are linear, so logits = W·mean(x) + b,
    and only the maps asked for are computed: the [N,Y,H,W] tensor never exists. Elementwise dropout stands before fc6,
    fc7 and fc8, and is active while the training maps are computed.

    Args:
        in_channels: D, the channels of the features.
        num_classes: Y.
        width: channels of fc6, fc7 and x.
        dropout: probability that an element is dropped.
        init: draw of the three weights (see `initialize_convolutions`); biases start at 0.
    """

    def __init__(
        self, in_channels: int, num_classes: int, width: int = 1024, dropout: float = 0.5, init: InitScheme = "xavier"
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc6 = nn.Conv2d(in_channels, width, kernel_size=3, padding=1)
        self.fc7 = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.fc8 = nn.Conv2d(width, num_classes, kernel_size=1)
        self.relu = nn.ReLU(inplace=True)
        initialize_convolutions(self, init)

    def forward(self, features: Tensor) -> Tensor:
        """Features [N,D,H,W] → x [N,width,H,W]."""
        return self._convolve(self.dropout(features))

    def tapped(self, features: Tensor, k: int) -> tuple[Tensor, Slots]:
        """`forward`, and slots by which the gradient of `k` pixels an image joins that of the first dropout."""
        dropped, slots = tap_dropout(features, k, self.dropout.p, self.training)
        return self._convolve(dropped), slots

    def _convolve(self, dropped: Tensor) -> Tensor:
        x = self.relu(self.fc6(dropped))
        x = self.relu(self.fc7(self.dropout(x)))
        output: Tensor = self.dropout(x)
        return output

    def pooled(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """x and labels int64 [N] → (logits [N,Y], the label's maps fp32 [N,H,W], which are constants to autograd)."""
        logits, maps = pooled_head(x, self._weight, self.fc8.bias, labels)
        return logits, maps

    def logits(self, x: Tensor) -> Tensor:
        """x → logits [N,Y] without any map."""
        pooled = x.mean(dim=(2, 3), dtype=self.fc8.weight.dtype)
        return nn.functional.linear(pooled, self._weight, self.fc8.bias)

    def class_maps(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        """x and classes int64 [N] or [N,L], None for all → raw fp32 maps [N,H,W] or [N,L,H,W], bias included."""
        if classes is not None:
            return label_cam(x, self._weight, self.fc8.bias, classes)
        # Autocast would round them. An exported graph must hold neither its context nor a cast, which names a device.
        device = x.device.type
        with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext():
            x = x if x.dtype == self._weight.dtype else x.to(self._weight.dtype)
            return nn.functional.linear(x.permute(0, 2, 3, 1), self._weight, self.fc8.bias).permute(0, 3, 1, 2)

    @property
    def _weight(self) -> Tensor:
        return self.fc8.weight.flatten(1)
