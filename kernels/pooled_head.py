"""Logits and the label's map from one pass over the head's last features.

    logits = weight · mean_{h,w}(x) + bias,     maps = label_cam(x, weight, bias, labels) without gradient

The 1×1 convolution and global average pooling are linear, so pooling first gives the same logits without class maps.
In PyTorch: ``F.linear(x.mean((2, 3)), weight, bias)``.
"""

from typing import Any

import torch
from torch import Tensor

from ._common import accumulation_dtype, check_tensor
from ._launch import launch
from ._ops import define_op
from ._triton import cdiv, next_power_of_2, runs_triton, tl, triton
from .label_cam import addressing, checked_labels, finish_map, label_cam_reference, pixel_offsets


def pooled_head_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch specification of `pooled_head`."""
    pooled = x.mean((2, 3), dtype=accumulation_dtype(x.dtype)).to(weight.dtype)
    logits = torch.nn.functional.linear(pooled, weight, bias)
    with torch.no_grad():
        maps = label_cam_reference(x, weight, bias, labels, ignore_index=ignore_index)
    return logits, maps


@triton.jit
def _pooled_head_strips(
    p_x, p_weight, p_labels, p_sums, p_maps, classes, channels, pixels,
    width, stride_n, stride_c, stride_h, stride_w, stride_class, stride_weight,
    STRIP: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sum x[STRIP pixels × BLOCK_C channels] both ways: over its pixels, and, weighted, over its channels."""
    strips, chunks = tl.cdiv(pixels, STRIP), tl.cdiv(channels, BLOCK_C)
    i_program = tl.program_id(0)
    i_chunk = i_program % chunks
    i_strip = i_program // chunks % strips
    i_image = (i_program // chunks // strips).to(tl.int64)
    label = tl.load(p_labels + i_image)
    known = (label >= 0) & (label < classes)
    o_channel = i_chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    m_channel = o_channel < channels
    p_channel = p_x + i_image * stride_n + o_channel.to(tl.int64) * stride_c
    p_row = p_weight + tl.where(known, label, 0).to(tl.int64) * stride_class
    m_weight = m_channel & known
    b_weight = tl.load(p_row + o_channel.to(tl.int64) * stride_weight, mask=m_weight, other=0.0).to(tl.float32)
    b_sum = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    end = tl.minimum(i_strip * STRIP + STRIP, pixels)
    # Two steps are under way while one is summed: the sums across warps would otherwise hold back the next loads.
    for start in tl.range(i_strip * STRIP, end, BLOCK_P, num_stages=3):
        o_pixel = start + tl.arange(0, BLOCK_P)
        m_pixel = o_pixel < pixels
        p_tile = p_channel[None, :] + pixel_offsets(o_pixel, width, stride_h, stride_w)[:, None]
        b_x = tl.load(p_tile, mask=m_pixel[:, None] & m_channel[None, :], other=0.0).to(tl.float32)
        b_map = tl.sum(b_x * b_weight[None, :], 1)
        tl.store(p_maps + (i_image * chunks + i_chunk) * pixels + o_pixel, b_map, mask=m_pixel)
        b_sum += b_x
    tl.store(p_sums + (i_image * strips + i_strip) * channels + o_channel, tl.sum(b_sum, 0), mask=m_channel)


@triton.jit
def _sum_parts(p_parts, parts, columns, o_column, BLOCK_T: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of the rows of a [parts, columns] table, BLOCK_T at a time, at BLOCK columns."""
    b_sum = tl.zeros([BLOCK_T, BLOCK], tl.float32)
    for start in range(0, parts, BLOCK_T):
        o_part = start + tl.arange(0, BLOCK_T)
        p_tile = p_parts + o_part.to(tl.int64)[:, None] * columns + o_column[None, :]
        b_sum += tl.load(p_tile, mask=(o_part < parts)[:, None] & (o_column < columns)[None, :], other=0.0)
    return tl.sum(b_sum, 0)


@triton.jit
def _pooled_head_combine(
    p_sums, p_chunk_maps, p_bias, p_labels, p_pooled, p_maps, classes, channels, pixels, strips, chunks,
    BLOCK_T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Means from the strips' sums and maps from the chunks' maps. Channels first, then pixels."""
    channel_blocks, pixel_blocks = tl.cdiv(channels, BLOCK), tl.cdiv(pixels, BLOCK)
    i_image = (tl.program_id(0) // (channel_blocks + pixel_blocks)).to(tl.int64)
    i_block = tl.program_id(0) % (channel_blocks + pixel_blocks)
    if i_block < channel_blocks:
        o_channel = i_block * BLOCK + tl.arange(0, BLOCK)
        b_sum = _sum_parts(p_sums + i_image * strips * channels, strips, channels, o_channel, BLOCK_T, BLOCK)
        tl.store(p_pooled + i_image * channels + o_channel, b_sum / pixels, mask=o_channel < channels)
    else:
        o_pixel = (i_block - channel_blocks) * BLOCK + tl.arange(0, BLOCK)
        b_map = _sum_parts(p_chunk_maps + i_image * chunks * pixels, chunks, pixels, o_pixel, BLOCK_T, BLOCK)
        b_map = finish_map(b_map, p_bias, tl.load(p_labels + i_image), classes)
        tl.store(p_maps + i_image * pixels + o_pixel, b_map, mask=o_pixel < pixels)


def _config(channels: int, pixels: int) -> dict[str, int]:
    """Steps of 32 pixels × 128 channels, 16 elements a thread: a row is whole 32-byte sectors in either layout.

    Chunks of 128 channels keep the maps to be combined at 1.6 % of x (in bf16), strips of 256 pixels the sums at 1 %,
    and programs enough for a whole chip at ten images.
    """
    block_p = min(next_power_of_2(max(pixels, 1)), 32)
    block_c = min(next_power_of_2(max(channels, 1)), 128)
    return {"STRIP": 256, "BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": max(1, block_p * block_c // 512)}


# 8 parts are a head of 1024 channels in one step.
_COMBINE_CONFIG = {"BLOCK_T": 8, "BLOCK": 256, "num_warps": 4}


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Means [N, C] and maps [N, H, W], both in the accumulation dtype."""
    if not runs_triton(x):
        pooled = x.mean((2, 3), dtype=accumulation_dtype(x.dtype))
        return pooled, label_cam_reference(x, weight, bias, labels).contiguous()
    images, channels, height, width = x.shape
    pixels = height * width
    config = _config(channels, pixels)
    strips, chunks = cdiv(pixels, config["STRIP"]), cdiv(channels, config["BLOCK_C"])
    fp32: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    sums, chunk_maps = torch.empty(images, strips, channels, **fp32), torch.empty(images, chunks, pixels, **fp32)
    pooled, maps = torch.empty(images, channels, **fp32), torch.empty(images, height, width, **fp32)
    labels = labels.contiguous()
    if x.numel():
        launch(
            _pooled_head_strips, (images * strips * chunks,),
            x, weight, labels, sums, chunk_maps, len(weight), channels, pixels,
            *addressing(x), *weight.stride(), **config,
        )  # fmt: skip
    blocks = cdiv(channels, _COMBINE_CONFIG["BLOCK"]) + cdiv(pixels, _COMBINE_CONFIG["BLOCK"])
    if images * blocks:
        launch(
            _pooled_head_combine, (images * blocks,),
            sums, chunk_maps, None if bias is None else bias.contiguous(), labels, pooled, maps,
            len(weight), channels, pixels, strips, chunks, **_COMBINE_CONFIG,
        )  # fmt: skip
    return pooled, maps


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    images, channels, height, width = x.shape
    dtype = accumulation_dtype(x.dtype)
    return x.new_empty((images, channels), dtype=dtype), x.new_empty((images, height, width), dtype=dtype)


_op = define_op(
    "pooled_head(Tensor x, Tensor weight, Tensor? bias, Tensor labels) -> (Tensor, Tensor)", _forward, _fake
)


class _PooledHead(torch.autograd.Function):
    """Differentiable in x through the means alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
        pooled, maps = _op(x, weight, bias, labels)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.channels_last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.mark_non_differentiable(maps)
        ctx.set_materialize_grads(False)
        return pooled, maps

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, None, None, None]:
        if gradient is None:
            return None, None, None, None
        # Plain PyTorch: a compiler fuses the broadcast with the backward of the dropout and ReLU before it.
        per_pixel = (gradient / (ctx.shape[2] * ctx.shape[3])).to(ctx.dtype)
        x_grad = per_pixel[:, :, None, None].expand(ctx.shape)
        if ctx.channels_last:
            # An expanded tensor counts as NCHW, and dropout's backward on a GPU would write all gradients before it so.
            x_grad = x_grad.contiguous(memory_format=torch.channels_last)
        return x_grad, None, None, None


def pooled_head(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """Classify by global average pooling and map the label's class.

    Args:
        x: [N, C, H, W] input of the classifying 1×1 convolution; any floating dtype, any strides.
        weight: [Y, C] its weight.
        bias: [Y] its bias, or None.
        labels: [N] integer; `ignore_index` gives a map of zeros, any other label outside 0…Y−1 a map of NaN.
        ignore_index: the label of images that have no class. They are classified all the same.

    Returns:
        logits [N, Y], differentiable (in the ambient autocast dtype), and maps [N, H, W] in fp32, which are constants:
        seed pixels are chosen by them, and no gradient flows through the choice (paper, section 3.1).

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    check_tensor("labels", labels, 1, integer=True)
    labels = checked_labels(x, weight, bias, labels, ignore_index)
    constants = weight.detach(), None if bias is None else bias.detach()
    pooled, maps = _PooledHead.apply(x, *constants, labels)
    return torch.nn.functional.linear(pooled.to(weight.dtype), weight, bias), maps
