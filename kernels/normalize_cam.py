"""Min–max normalization of class activation maps.

    M = (M* − min M*) / (max M* − min M*)                                        (paper, section 3.1)

In PyTorch: ``low = maps.amin((-2, -1), keepdim=True); (maps - low) / (maps.amax((-2, -1), keepdim=True) - low)``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._common import accumulation_dtype, check_tensor
from ._launch import launch
from ._ops import define_op
from ._triton import next_power_of_2, runs_triton, tl, triton

# Pixels a program holds at a time, 16 a thread of 8 warps; a larger map takes several steps in each pass over it.
MAX_BLOCK = 4096


def normalize_cam_reference(maps: Tensor) -> Tensor:
    """Plain PyTorch specification of `normalize_cam`."""
    m = maps.to(accumulation_dtype(maps.dtype))  # the span of an fp16 map may exceed what fp16 holds
    low = m.amin((-2, -1), keepdim=True)
    span = m.amax((-2, -1), keepdim=True) - low
    constant = span == 0
    return torch.where(constant, 0.0, (m - low) / torch.where(constant, 1.0, span)).to(maps.dtype)


def _gradient_reference(maps: Tensor, gradient: Tensor) -> Tensor:
    """With y the output and s the span: dL/dm = g/s; the pixels at the minimum add equal parts of Σ g·(y − 1)/s and
    those at the maximum equal parts of −Σ g·y/s, as torch's amin and amax divide a gradient among ties."""
    m, g = (tensor.to(accumulation_dtype(maps.dtype)) for tensor in (maps, gradient))
    low, high = m.amin((-2, -1), keepdim=True), m.amax((-2, -1), keepdim=True)
    span = high - low
    y, lowest, highest = (m - low) / span, m == low, m == high
    to_low = (g * (y - 1)).sum((-2, -1), keepdim=True) / lowest.sum((-2, -1), keepdim=True)
    to_high = -(g * y).sum((-2, -1), keepdim=True) / highest.sum((-2, -1), keepdim=True)
    of_extremes = torch.where(lowest, to_low, 0.0) + torch.where(highest, to_high, 0.0)
    return torch.where(span == 0, 0.0, (g + of_extremes) / span).to(maps.dtype)


@triton.jit
def _extremes(p_map, pixels, BLOCK: tl.constexpr):
    """Minimum and maximum of one contiguous map; NaN, as torch has it, if any pixel is."""
    b_low = tl.full([BLOCK], float("inf"), tl.float32)
    b_high = tl.full([BLOCK], float("-inf"), tl.float32)
    b_nan = tl.zeros([BLOCK], tl.int32)
    for start in range(0, pixels, BLOCK):
        o_pixel = start + tl.arange(0, BLOCK)
        m_pixel = o_pixel < pixels
        b_map = tl.load(p_map + o_pixel, mask=m_pixel, other=0.0).to(tl.float32)
        b_nan |= (m_pixel & (b_map != b_map)).to(tl.int32)
        b_low = tl.minimum(b_low, tl.where(m_pixel, b_map, float("inf")))
        b_high = tl.maximum(b_high, tl.where(m_pixel, b_map, float("-inf")))
    nan = tl.where(tl.max(b_nan, 0) > 0, float("nan"), 0.0)
    return tl.min(b_low, 0) + nan, tl.max(b_high, 0) + nan


@triton.jit
def _normalize_cam_forward(p_maps, p_out, pixels, BLOCK: tl.constexpr):
    i_map = tl.program_id(0).to(tl.int64)
    p_map, p_out = p_maps + i_map * pixels, p_out + i_map * pixels
    low, high = _extremes(p_map, pixels, BLOCK)
    span = high - low
    divisor = tl.where(span == 0, 1.0, span)
    for start in range(0, pixels, BLOCK):
        o_pixel = start + tl.arange(0, BLOCK)
        m_pixel = o_pixel < pixels
        b_map = tl.load(p_map + o_pixel, mask=m_pixel, other=0.0).to(tl.float32)
        # Rounded to nearest, unlike `/`: the maximum becomes exactly 1.
        b_out = tl.where(span == 0, 0.0, tl.div_rn(b_map - low, divisor))
        tl.store(p_out + o_pixel, b_out.to(p_out.dtype.element_ty), mask=m_pixel)


@triton.jit
def _normalize_cam_backward(p_maps, p_grad, p_out, pixels, BLOCK: tl.constexpr):
    """See `_gradient_reference`."""
    i_map = tl.program_id(0).to(tl.int64)
    p_map, p_grad, p_out = p_maps + i_map * pixels, p_grad + i_map * pixels, p_out + i_map * pixels
    low, high = _extremes(p_map, pixels, BLOCK)
    span = high - low
    scale = 1.0 / tl.where(span == 0, 1.0, span)
    b_to_low = tl.zeros([BLOCK], tl.float32)
    b_to_high = tl.zeros([BLOCK], tl.float32)
    b_lowest = tl.zeros([BLOCK], tl.int32)
    b_highest = tl.zeros([BLOCK], tl.int32)
    for start in range(0, pixels, BLOCK):
        o_pixel = start + tl.arange(0, BLOCK)
        m_pixel = o_pixel < pixels
        b_map = tl.load(p_map + o_pixel, mask=m_pixel, other=0.0).to(tl.float32)
        b_grad = tl.load(p_grad + o_pixel, mask=m_pixel, other=0.0).to(tl.float32)
        b_y = (b_map - low) * scale
        b_to_low += tl.where(m_pixel, b_grad * (b_y - 1.0), 0.0)
        b_to_high += tl.where(m_pixel, b_grad * b_y, 0.0)
        b_lowest += (m_pixel & (b_map == low)).to(tl.int32)
        b_highest += (m_pixel & (b_map == high)).to(tl.int32)
    to_low = tl.sum(b_to_low, 0) * scale / tl.sum(b_lowest, 0).to(tl.float32)
    to_high = -tl.sum(b_to_high, 0) * scale / tl.sum(b_highest, 0).to(tl.float32)
    for start in range(0, pixels, BLOCK):
        o_pixel = start + tl.arange(0, BLOCK)
        m_pixel = o_pixel < pixels
        b_map = tl.load(p_map + o_pixel, mask=m_pixel, other=0.0).to(tl.float32)
        b_grad = tl.load(p_grad + o_pixel, mask=m_pixel, other=0.0).to(tl.float32)
        b_out = b_grad * scale + tl.where(b_map == low, to_low, 0.0) + tl.where(b_map == high, to_high, 0.0)
        tl.store(p_out + o_pixel, tl.where(span == 0, 0.0, b_out).to(p_out.dtype.element_ty), mask=m_pixel)


def _config(pixels: int) -> dict[str, int]:
    """One block for maps up to 64×64; four pixels a thread."""
    block = min(next_power_of_2(pixels), MAX_BLOCK)
    return {"BLOCK": block, "num_warps": max(1, min(8, block // 128))}


def _launch(kernel: Any, maps: Tensor, *others: Tensor) -> Tensor:
    """Run a kernel with one program a map; maps are small, so one that is not contiguous is copied."""
    out = torch.empty(maps.shape, dtype=maps.dtype, device=maps.device)
    pixels = maps.shape[-2] * maps.shape[-1]
    if maps.numel():
        tensors = (tensor.contiguous() for tensor in (maps, *others))
        launch(kernel, (maps.numel() // pixels,), *tensors, out, pixels, **_config(pixels))
    return out


def _forward(maps: Tensor) -> Tensor:
    if runs_triton(maps):
        return _launch(_normalize_cam_forward, maps)
    return normalize_cam_reference(maps).contiguous()


def _backward(maps: Tensor, gradient: Tensor) -> Tensor:
    if runs_triton(maps):
        return _launch(_normalize_cam_backward, maps, gradient)
    return _gradient_reference(maps, gradient).contiguous()


def _fake(maps: Tensor, *_: Tensor) -> Tensor:
    return maps.new_empty(maps.shape)


_op = define_op("normalize_cam(Tensor maps) -> Tensor", _forward, _fake)
_op_backward = define_op("normalize_cam_backward(Tensor maps, Tensor gradient) -> Tensor", _backward, _fake)


class _NormalizeCam(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        ctx.save_for_backward(maps)
        return _op(maps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (maps,) = ctx.saved_tensors
        return _op_backward(maps, gradient)


def normalize_cam(maps: Tensor) -> Tensor:
    """Scale each map to [0, 1] by its own minimum and maximum.

    Args:
        maps: [..., H, W], floating point, any strides.

    Returns:
        Same shape and dtype. A constant map becomes zeros (and has zero gradient); a map with a NaN becomes all NaN.
        Differentiable; where several pixels have the extreme value its gradient is divided evenly among them.

    Raises:
        ValueError: not floating point, fewer than two dimensions, or an empty map.
    """
    if maps.dim() < 2 or 0 in maps.shape[-2:]:
        raise ValueError(f"maps must have shape [..., H, W] with at least one pixel, got {list(maps.shape)}")
    check_tensor("maps", maps, maps.dim())
    out: Tensor = _NormalizeCam.apply(maps)
    return out
