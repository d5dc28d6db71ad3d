"""The class activation map of chosen classes only.

    M*ᵧ[h, w] = Σ_c weight[y, c] · x[c, h, w] + bias[y]           (CAM with a 1×1 convolution; ACoL's simplified method)

In PyTorch: ``torch.einsum("nchw,nc->nhw", x, weight[labels])``. The N×Y×H×W tensor of all class maps is never made.
"""

import torch
from torch import Tensor

from ._common import IGNORED_LABEL, accumulation_dtype, check_device, check_labels, check_same, check_tensor, within
from .normalize_cam import normalize_cam_reference


def label_cam_reference(
    x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, normalize: bool = False
) -> Tensor:
    """Plain PyTorch specification of `label_cam`."""
    classes = labels if labels.dim() == 2 else labels[:, None]
    dtype = accumulation_dtype(x.dtype)
    valid = within(classes, len(weight))
    rows = classes.clamp(0, len(weight) - 1)
    # Zeroed where no class is chosen: a NaN in an ignored image stays out of the gradient of class 0.
    chosen = torch.where(valid[..., None], weight[rows], 0.0)
    # An ambient autocast would round the products to half precision; the contract is fp32 accumulation.
    with torch.autocast(x.device.type, enabled=False):
        maps = torch.einsum("nchw,nlc->nlhw", x.to(dtype), chosen.to(dtype))
        if bias is not None:
            maps = maps + bias[rows].to(dtype)[..., None, None]
    maps = torch.where(valid[..., None, None], maps, torch.nan)
    maps = torch.where((classes == IGNORED_LABEL)[..., None, None], 0.0, maps)
    if normalize:
        maps = normalize_cam_reference(maps)
    return maps if labels.dim() == 2 else maps.squeeze(1)


def label_cam(x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, normalize: bool = False) -> Tensor:
    """Class activation maps of the given classes of each image.

    Args:
        x: [N, C, H, W] input of the classifying 1×1 convolution; any floating dtype, any strides.
        weight: [Y, C] its weight.
        labels: [N] or [N, L] classes to map, integer. −100 gives a map of zeros, any other label outside 0…Y−1 a map of
            NaN (no element outside `weight` is read).
        bias: [Y] its bias.
        normalize: min–max normalize each map to [0, 1] (see `normalize_cam`).

    Returns:
        fp32 (fp64 for fp64 input) [N, H, W] or [N, L, H, W]. Differentiable in x, weight and bias.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    check_tensor("x", x, 4)
    check_tensor("weight", weight, 2)
    check_tensor("labels", labels, (1, 2), integer=True)
    check_same("x.shape[1]", x.shape[1], "weight.shape[1]", weight.shape[1])
    check_same("len(labels)", len(labels), "len(x)", len(x))
    if bias is not None:
        check_tensor("bias", bias, 1)
        check_same("len(bias)", len(bias), "len(weight)", len(weight))
    check_device(x=x, weight=weight, labels=labels, bias=bias)
    check_labels(labels, len(weight))
    return label_cam_reference(x, weight, labels, bias, normalize)
