"""Logits and the label's map from one pass over the head's last features.

    logits = weight · mean_{h,w}(x) + bias,     maps = label_cam(x, weight, labels, bias) without gradient

The 1×1 convolution and global average pooling are linear, so pooling first gives the same logits without class maps.
In PyTorch: ``F.linear(x.mean((2, 3)), weight, bias)``.
"""

import torch
from torch import Tensor

from ._common import accumulation_dtype, check_device, check_labels, check_same, check_tensor
from .label_cam import label_cam_reference


def pooled_head_reference(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Plain PyTorch specification of `pooled_head`."""
    pooled = x.mean((2, 3), dtype=accumulation_dtype(x.dtype)).to(weight.dtype)
    logits = torch.nn.functional.linear(pooled, weight, bias)
    with torch.no_grad():
        maps = label_cam_reference(x, weight, labels, bias)
    return logits, maps


def pooled_head(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Classify by global average pooling and map the label's class.

    Args:
        x: [N, C, H, W] input of the classifying 1×1 convolution; any floating dtype, any strides.
        weight: [Y, C]; bias: [Y] or None.
        labels: [N] integer; −100 gives a map of zeros, any other label outside 0…Y−1 a map of NaN.

    Returns:
        logits [N, Y], differentiable (in the ambient autocast dtype), and maps [N, H, W] in fp32, which are constants:
        seeds are chosen by them, no gradient flows through the choice (paper, section 3.1).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    check_tensor("x", x, 4)
    check_tensor("weight", weight, 2)
    check_tensor("labels", labels, 1, integer=True)
    check_same("x.shape[1]", x.shape[1], "weight.shape[1]", weight.shape[1])
    check_same("len(labels)", len(labels), "len(x)", len(x))
    if bias is not None:
        check_tensor("bias", bias, 1)
        check_same("len(bias)", len(bias), "len(weight)", len(weight))
    check_device(x=x, weight=weight, bias=bias, labels=labels)
    check_labels(labels, len(weight))
    return pooled_head_reference(x, weight, bias, labels)
