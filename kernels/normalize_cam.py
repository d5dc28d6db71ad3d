"""Min–max normalization of class activation maps.

    M = (M* − min M*) / (max M* − min M*)                                        (paper, section 3.1)

In PyTorch: ``low = maps.amin((-2, -1), keepdim=True); (maps - low) / (maps.amax((-2, -1), keepdim=True) - low)``.
"""

import torch
from torch import Tensor

from ._common import accumulation_dtype, check_tensor


def normalize_cam_reference(maps: Tensor) -> Tensor:
    """Plain PyTorch specification of `normalize_cam`."""
    m = maps.to(accumulation_dtype(maps.dtype))  # the span of an fp16 map may exceed what fp16 holds
    low = m.amin((-2, -1), keepdim=True)
    span = m.amax((-2, -1), keepdim=True) - low
    constant = span == 0
    return torch.where(constant, 0.0, (m - low) / torch.where(constant, 1.0, span)).to(maps.dtype)


def normalize_cam(maps: Tensor) -> Tensor:
    """Scale each map to [0, 1] by its own minimum and maximum.

    Args:
        maps: [..., H, W], floating point, any strides.

    Returns:
        Same shape and dtype. A constant map becomes zeros (and has zero gradient); a map with a NaN becomes all NaN.
        Differentiable; where several pixels share the extreme value its gradient is divided evenly among them.

    Raises:
        ValueError: not floating point, fewer than two dimensions, or an empty map.
    """
    if maps.dim() < 2 or 0 in maps.shape[-2:]:
        raise ValueError(f"maps must have shape [..., H, W] with at least one pixel, got {list(maps.shape)}")
    check_tensor("maps", maps, maps.dim())
    return normalize_cam_reference(maps)
