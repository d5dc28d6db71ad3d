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
    p_x, p_weight, p_labels, p_means, p_maps, classes, channels, pixels,
    strip, width, stride_n, stride_c, stride_h, stride_w, stride_class, stride_weight,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sum x[strip of pixels × BLOCK_C channels] both ways: over its pixels, and, weighted, over its channels."""
    strips, chunks = tl.cdiv(pixels, strip), tl.cdiv(channels, BLOCK_C)
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
    end = tl.minimum(i_strip * strip + strip, pixels)
    # Two steps are under way while one is summed: the sums across warps would otherwise hold back the next loads.
    for start in tl.range(i_strip * strip, end, BLOCK_P, num_stages=3):
        o_pixel = start + tl.arange(0, BLOCK_P)
        m_pixel = o_pixel < pixels
        p_tile = p_channel[None, :] + pixel_offsets(o_pixel, width, stride_h, stride_w)[:, None]
        b_x = tl.load(p_tile, mask=m_pixel[:, None] & m_channel[None, :], other=0.0).to(tl.float32)
        b_map = tl.sum(b_x * b_weight[None, :], 1)
        tl.store(p_maps + (i_image * chunks + i_chunk) * pixels + o_pixel, b_map, mask=m_pixel)
        b_sum += b_x
    p_share = p_means + (i_image * strips + i_strip) * channels + o_channel
    tl.store(p_share, (tl.sum(b_sum, 0) / pixels).to(p_means.dtype.element_ty), mask=m_channel)


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
    p_shares, p_chunk_maps, p_bias, p_labels, p_means, p_maps,
    classes, channels, pixels, strips, chunks, channel_blocks,
    BLOCK_T: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Maps from the chunks' maps, after means from the strips' shares in the first `channel_blocks` of an image."""
    blocks = channel_blocks + tl.cdiv(pixels, BLOCK)
    i_image = (tl.program_id(0) // blocks).to(tl.int64)
    i_block = tl.program_id(0) % blocks
    if i_block < channel_blocks:
        o_channel = i_block * BLOCK + tl.arange(0, BLOCK)
        b_mean = _sum_parts(p_shares + i_image * strips * channels, strips, channels, o_channel, BLOCK_T, BLOCK)
        p_mean = p_means + i_image * channels + o_channel
        tl.store(p_mean, b_mean.to(p_means.dtype.element_ty), mask=o_channel < channels)
    else:
        o_pixel = (i_block - channel_blocks) * BLOCK + tl.arange(0, BLOCK)
        b_map = _sum_parts(p_chunk_maps + i_image * chunks * pixels, chunks, pixels, o_pixel, BLOCK_T, BLOCK)
        b_map = finish_map(b_map, p_bias, tl.load(p_labels + i_image), classes)
        tl.store(p_maps + i_image * pixels + o_pixel, b_map, mask=o_pixel < pixels)


# Programs that keep any chip's memory busy: four for each of an H100's 132 SMs.
ENOUGH = 528


def _config(images: int, channels: int, pixels: int, channels_last: bool) -> tuple[int, dict[str, int]]:
    """Pixels of a strip, and steps of 16 pixels × 128 channels, 16 elements a thread, of which 28×28 are 49 whole ones.

    With the pixels contiguous 32 of them make a row of 64 bytes (bf16). Chunks of 128 channels keep the maps to be
    combined at 1.6 % of x. At 80 images of 1024 channels they are programs enough, a strip is the whole image and its
    means are complete; fewer images are divided into strips of equally many steps, four at least. Maps, from which
    seeds are drawn, do not depend on the strips: how a batch is divided alters no bit of them.
    """
    block_p = min(next_power_of_2(pixels), 16 if channels_last else 32)
    block_c = min(next_power_of_2(channels), 128)
    steps = cdiv(pixels, block_p)
    strips = min(cdiv(ENOUGH, images * cdiv(channels, block_c)), cdiv(steps, 4))
    sizes = {"BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": max(1, block_p * block_c // 512)}
    return cdiv(steps, strips) * block_p, sizes


# 8 parts are a head of 1024 channels in one step.
_COMBINE_CONFIG = {"BLOCK_T": 8, "BLOCK": 256, "num_warps": 4}


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Means [N, C] in `dtype` and maps [N, H, W] in the accumulation dtype."""
    if not (runs_triton(x) and x.numel()):
        pooled = x.mean((2, 3), dtype=accumulation_dtype(x.dtype)).to(dtype)
        return pooled, label_cam_reference(x, weight, bias, labels).contiguous()
    images, channels, height, width = x.shape
    pixels = height * width
    strip, config = _config(images, channels, pixels, x.stride(1) == 1)
    strips, chunks = cdiv(pixels, strip), cdiv(channels, config["BLOCK_C"])
    fp32: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    chunk_maps, maps = torch.empty(images, chunks, pixels, **fp32), torch.empty(images, height, width, **fp32)
    pooled = torch.empty(images, channels, dtype=dtype, device=x.device)
    shares = pooled if strips == 1 else torch.empty(images, strips, channels, **fp32)
    labels = labels.contiguous()
    launch(
        _pooled_head_strips, (images * strips * chunks,),
        x, weight, labels, shares, chunk_maps, len(weight), channels, pixels, strip,
        *addressing(x), *weight.stride(), **config,
    )  # fmt: skip
    channel_blocks = 0 if strips == 1 else cdiv(channels, _COMBINE_CONFIG["BLOCK"])
    launch(
        _pooled_head_combine, (images * (channel_blocks + cdiv(pixels, _COMBINE_CONFIG["BLOCK"])),),
        shares, chunk_maps, None if bias is None else bias.contiguous(), labels, pooled, maps,
        len(weight), channels, pixels, strips, chunks, channel_blocks, **_COMBINE_CONFIG,
    )  # fmt: skip
    return pooled, maps


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    images, channels, height, width = x.shape
    maps = x.new_empty((images, height, width), dtype=accumulation_dtype(x.dtype))
    return x.new_empty((images, channels), dtype=dtype), maps


_op = define_op(
    "pooled_head(Tensor x, Tensor weight, Tensor? bias, Tensor labels, ScalarType dtype) -> (Tensor, Tensor)",
    _forward,
    _fake,
)


class _PooledHead(torch.autograd.Function):
    """Differentiable in x through the means alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        pooled, maps = _op(x, weight, bias, labels, dtype)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.channels_last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.mark_non_differentiable(maps)
        ctx.set_materialize_grads(False)
        return pooled, maps

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, None, None, None, None]:
        if gradient is None:
            return None, None, None, None, None
        # Plain PyTorch: a compiler fuses the broadcast with the backward of the dropout and ReLU before it.
        per_pixel = (gradient.to(accumulation_dtype(ctx.dtype)) / (ctx.shape[2] * ctx.shape[3])).to(ctx.dtype)
        x_grad = per_pixel[:, :, None, None].expand(ctx.shape)
        if ctx.channels_last:
            # An expanded tensor counts as NCHW, and dropout's backward on a GPU would write all gradients before it so.
            x_grad = x_grad.contiguous(memory_format=torch.channels_last)
        return x_grad, None, None, None, None


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
    # Means in the dtype that the product computes in need no pass that casts them.
    dtype, device = weight.dtype, x.device.type
    if dtype != torch.float64 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    pooled, maps = _PooledHead.apply(x, *constants, labels, dtype)
    return torch.nn.functional.linear(pooled, weight, bias), maps
