"""The class activation map of chosen classes only.

    M*ᵧ[h, w] = Σ_c weight[y, c] · x[c, h, w] + bias[y]           (CAM with a 1×1 convolution; ACoL's simplified method)

In PyTorch: ``torch.einsum("nchw,nc->nhw", x, weight[labels])``. The N×Y×H×W tensor of all class maps is never made.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ._common import (
    IGNORED_LABEL,
    accumulation_dtype,
    check_device,
    check_labels,
    check_same,
    check_tensor,
    mask_ignored,
    within,
)
from ._launch import launch
from ._ops import define_op
from ._triton import cdiv, next_power_of_2, runs_triton, tl, triton
from .normalize_cam import normalize_cam, normalize_cam_reference

_IGNORED = tl.constexpr(IGNORED_LABEL)
# Elements of x in one step of a program of 4 warps: 32 a thread, four 16-byte loads of bf16 in flight for each.
TILE = 4096


def label_cam_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, normalize: bool = False, ignore_index: int = -100
) -> Tensor:
    """Plain PyTorch specification of `label_cam`."""
    labels = mask_ignored(labels, ignore_index)
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


def _x_gradient_reference(weight: Tensor, labels: Tensor, gradient: Tensor) -> Tensor:
    """dL/dx[n, c, p] = Σ_l g[n, l, p] · weight[label, c]."""
    valid = within(labels, len(weight))[..., None]
    chosen = torch.where(valid, weight[labels.clamp(0, len(weight) - 1)], 0.0)
    with torch.autocast(gradient.device.type, enabled=False):
        return torch.einsum("nlhw,nlc->nchw", torch.where(valid[..., None], gradient, 0.0), chosen.to(gradient.dtype))


def _weight_gradient_reference(x: Tensor, labels: Tensor, gradient: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Σ g·x over pixels, and Σ g, of each map, summed over the maps of each class."""
    valid = within(labels, classes)
    with torch.autocast(x.device.type, enabled=False):
        rows = torch.einsum("nlhw,nchw->nlc", gradient, x.to(gradient.dtype))
    rows, sums = torch.where(valid[..., None], rows, 0.0), torch.where(valid, gradient.sum((2, 3)), 0.0)
    row = (labels.clamp(0, classes - 1),)
    weight, bias = gradient.new_zeros(classes, x.shape[1]), gradient.new_zeros(classes)
    return weight.index_put_(row, rows, accumulate=True), bias.index_put_(row, sums, accumulate=True)


@triton.jit
def pixel_offsets(o_pixel, width, stride_h, stride_w):
    """Where flattened pixels lie in an image; without a `width` one stride leads through all of them."""
    if width is None:
        offsets = o_pixel.to(tl.int64) * stride_w
    else:
        offsets = (o_pixel // width).to(tl.int64) * stride_h + (o_pixel % width).to(tl.int64) * stride_w
    return offsets


@triton.jit
def finish_map(b_map, p_bias, label, classes):
    """Add the class's bias; zeros for an ignored image, NaN for a label that names no class."""
    known = (label >= 0) & (label < classes)
    if p_bias is not None:
        b_map += tl.load(p_bias + label, mask=known, other=0.0).to(tl.float32)
    return tl.where(known, b_map, tl.where(label == _IGNORED, 0.0, float("nan")))


@triton.jit
def _label_cam_forward(
    p_x, p_weight, p_bias, p_labels, p_maps, labels_per_image, classes, channels, pixels,
    width, stride_n, stride_c, stride_h, stride_w, stride_class, stride_weight,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One program a tile of BLOCK_P pixels and label. Labels are innermost: all but a tile's first find x in L2."""
    i_program = tl.program_id(0)
    i_tile = i_program // labels_per_image % tl.cdiv(pixels, BLOCK_P)
    i_image = (i_program // labels_per_image // tl.cdiv(pixels, BLOCK_P)).to(tl.int64)
    i_map = i_image * labels_per_image + i_program % labels_per_image
    label = tl.load(p_labels + i_map)
    known = (label >= 0) & (label < classes)
    o_pixel = i_tile * BLOCK_P + tl.arange(0, BLOCK_P)
    m_pixel = o_pixel < pixels
    p_pixel = p_x + i_image * stride_n + pixel_offsets(o_pixel, width, stride_h, stride_w)
    p_row = p_weight + tl.where(known, label, 0).to(tl.int64) * stride_class
    # Summed over channels once, at the end: the steps need no exchange between threads.
    b_sum = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, tl.where(known, channels, 0), BLOCK_C):
        o_channel = start + tl.arange(0, BLOCK_C).to(tl.int64)
        m_channel = o_channel < channels
        m_tile = m_pixel[:, None] & m_channel[None, :]
        b_x = tl.load(p_pixel[:, None] + o_channel[None, :] * stride_c, mask=m_tile, other=0.0).to(tl.float32)
        b_weight = tl.load(p_row + o_channel * stride_weight, mask=m_channel, other=0.0).to(tl.float32)
        b_sum += b_x * b_weight[None, :]
    b_map = finish_map(tl.sum(b_sum, 1), p_bias, label, classes)
    tl.store(p_maps + i_map * pixels + o_pixel, b_map, mask=m_pixel)


@triton.jit
def _label_cam_x_gradient(
    p_grad, p_weight, p_labels, p_out, labels_per_image, classes, channels, pixels,
    width, stride_n, stride_c, stride_h, stride_w, stride_class, stride_weight,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dL/dx[n, c, p] = Σ_l g[n, l, p] · weight[label, c], with the tiles of the forward pass."""
    i_tile = tl.program_id(0) % tl.cdiv(pixels, BLOCK_P)
    i_image = (tl.program_id(0) // tl.cdiv(pixels, BLOCK_P)).to(tl.int64)
    o_pixel = i_tile * BLOCK_P + tl.arange(0, BLOCK_P)
    m_pixel = o_pixel < pixels
    p_pixel = p_out + i_image * stride_n + pixel_offsets(o_pixel, width, stride_h, stride_w)
    for start in range(0, channels, BLOCK_C):
        o_channel = start + tl.arange(0, BLOCK_C).to(tl.int64)
        m_channel = o_channel < channels
        b_out = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
        for i_label in range(labels_per_image):
            i_map = i_image * labels_per_image + i_label
            label = tl.load(p_labels + i_map)
            known = (label >= 0) & (label < classes)
            p_row = p_weight + tl.where(known, label, 0).to(tl.int64) * stride_class
            b_weight = tl.load(p_row + o_channel * stride_weight, mask=m_channel & known, other=0.0).to(tl.float32)
            b_grad = tl.load(p_grad + i_map * pixels + o_pixel, mask=m_pixel & known, other=0.0)
            b_out += b_grad[:, None] * b_weight[None, :]
        p_tile = p_pixel[:, None] + o_channel[None, :] * stride_c
        tl.store(p_tile, b_out.to(p_out.dtype.element_ty), mask=m_pixel[:, None] & m_channel[None, :])


@triton.jit
def _label_cam_map_gradient(
    p_x, p_grad, p_labels, p_rows, p_sums, labels_per_image, classes, channels, pixels,
    width, stride_n, stride_c, stride_h, stride_w,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What one map gives to its class's weight, Σ_p g·x for BLOCK_C channels, and to its bias, Σ_p g."""
    chunks = tl.maximum(tl.cdiv(channels, BLOCK_C), 1)
    i_program = tl.program_id(0)
    i_chunk = i_program // labels_per_image % chunks
    i_image = (i_program // labels_per_image // chunks).to(tl.int64)
    i_map = i_image * labels_per_image + i_program % labels_per_image
    label = tl.load(p_labels + i_map)
    known = (label >= 0) & (label < classes)
    o_channel = i_chunk * BLOCK_C + tl.arange(0, BLOCK_C)
    m_channel = o_channel < channels
    p_channel = p_x + i_image * stride_n + o_channel.to(tl.int64) * stride_c
    b_row = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    b_sum = tl.zeros([BLOCK_P], tl.float32)
    for start in range(0, tl.where(known, pixels, 0), BLOCK_P):
        o_pixel = start + tl.arange(0, BLOCK_P)
        m_pixel = o_pixel < pixels
        p_tile = p_channel[None, :] + pixel_offsets(o_pixel, width, stride_h, stride_w)[:, None]
        b_x = tl.load(p_tile, mask=m_pixel[:, None] & m_channel[None, :], other=0.0).to(tl.float32)
        b_grad = tl.load(p_grad + i_map * pixels + o_pixel, mask=m_pixel, other=0.0)
        b_row += b_grad[:, None] * b_x
        b_sum += b_grad
    tl.store(p_rows + i_map * channels + o_channel, tl.sum(b_row, 0), mask=m_channel)
    tl.store(p_sums + i_map, tl.sum(b_sum, 0), mask=i_chunk == 0)


@triton.jit
def _label_cam_class_gradient(
    p_rows, p_sums, p_labels, p_weight_grad, p_bias_grad, maps, channels,
    BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sum over the maps of one class, always in one order; zeros for a class that has none.

    Most classes have none, so labels are first searched BLOCK_L at a time.
    """
    i_class = tl.program_id(0).to(tl.int64)
    o_channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_channel = o_channel < channels
    b_found = tl.zeros([BLOCK_L], tl.int32)
    for start in range(0, maps, BLOCK_L):
        o_map = start + tl.arange(0, BLOCK_L)
        b_found += (tl.load(p_labels + o_map, mask=o_map < maps, other=-1) == i_class).to(tl.int32)
    b_row = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, tl.where(tl.sum(b_found, 0) > 0, maps, 0), BLOCK_M):
        o_map = start + tl.arange(0, BLOCK_M)
        m_map = tl.load(p_labels + o_map, mask=o_map < maps, other=-1) == i_class
        p_tile = p_rows + o_map.to(tl.int64)[:, None] * channels + o_channel[None, :]
        b_row += tl.load(p_tile, mask=m_map[:, None] & m_channel[None, :], other=0.0)
        b_sum += tl.load(p_sums + o_map, mask=m_map, other=0.0)
    tl.store(p_weight_grad + i_class * channels + o_channel, tl.sum(b_row, 0), mask=m_channel)
    tl.store(p_bias_grad + i_class, tl.sum(b_sum, 0), mask=tl.program_id(1) == 0)


def addressing(x: Tensor) -> tuple[int | None, int, int, int, int]:
    """(width, strides of image, channel, row, column) of x; width None where one stride leads through all pixels."""
    height, width = x.shape[2:]
    image, channel, row, column = x.stride()
    if width == 1:
        return None, image, channel, row, row
    return (None if height == 1 or row == width * column else width), image, channel, row, column


def _config(channels: int, pixels: int, channels_last: bool, sums_channels: bool = True) -> dict[str, int]:
    """Tile of a kernel that sums over channels, or else over pixels.

    256 elements of the dimension that is contiguous in memory if that one is summed: one row is one load of a warp (8
    elements of bf16 a thread). Otherwise 64 of it, whole 128-byte lines, and more where the sum is short. A sum over
    pixels takes twice the warps: where addresses are not contiguous each element has its own, two more registers.
    """
    kept, summed = (pixels, channels) if sums_channels else (channels, pixels)
    kept, summed = (next_power_of_2(max(size, 1)) for size in (kept, summed))
    if channels_last == sums_channels:
        summed = min(summed, 256)
        kept = min(kept, TILE // summed)
    else:
        kept = min(kept, max(64, TILE // summed))
        summed = min(summed, TILE // kept)
    block_p, block_c = (kept, summed) if sums_channels else (summed, kept)
    warps = max(1, min(4, kept * summed // 1024)) * (1 if sums_channels else 2)
    return {"BLOCK_P": block_p, "BLOCK_C": block_c, "num_warps": warps}


def _class_config(maps: int, channels: int) -> dict[str, int]:
    """Few maps belong to one class, so a tile is wide in channels; one step searches the labels of any usual batch."""
    maps, channels = next_power_of_2(max(maps, 1)), next_power_of_2(max(channels, 1))
    return {"BLOCK_L": min(maps, 1024), "BLOCK_M": min(maps, 8), "BLOCK_C": min(channels, 256), "num_warps": 4}


def checked_labels(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, ignore_index: int) -> Tensor:
    """The labels, with −100 for what is ignored; ValueError unless arguments of `label_cam` or `pooled_head` fit."""
    check_tensor("x", x, 4)
    check_tensor("weight", weight, 2)
    check_same("x.shape[1]", x.shape[1], "weight.shape[1]", weight.shape[1])
    check_same("len(labels)", len(labels), "len(x)", len(x))
    if bias is not None:
        check_tensor("bias", bias, 1)
        check_same("len(bias)", len(bias), "len(weight)", len(weight))
    check_device(x=x, weight=weight, bias=bias, labels=labels)
    check_labels(labels, len(weight), ignore_index)
    return mask_ignored(labels, ignore_index)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    if not runs_triton(x):
        return label_cam_reference(x, weight, bias, labels).contiguous()
    _, channels, height, width = x.shape
    maps = torch.empty((*labels.shape, height, width), dtype=torch.float32, device=x.device)
    if maps.numel():
        config = _config(channels, height * width, x.stride(1) == 1)
        launch(
            _label_cam_forward, (labels.numel() * cdiv(height * width, config["BLOCK_P"]),),
            x, weight, None if bias is None else bias.contiguous(), labels.contiguous(), maps,
            labels.shape[1], len(weight), channels, height * width, *addressing(x), *weight.stride(), **config,
        )  # fmt: skip
    return maps


def _x_gradient(x: Tensor, weight: Tensor, labels: Tensor, gradient: Tensor) -> Tensor:
    out = torch.empty_like(x)
    if not runs_triton(x):
        return out.copy_(_x_gradient_reference(weight, labels, gradient))
    images, channels, height, width = x.shape
    if out.numel():
        config = _config(channels, height * width, out.stride(1) == 1)
        launch(
            _label_cam_x_gradient, (images * cdiv(height * width, config["BLOCK_P"]),),
            gradient.contiguous(), weight, labels.contiguous(), out,
            labels.shape[1], len(weight), channels, height * width, *addressing(out), *weight.stride(), **config,
        )  # fmt: skip
    return out


def _weight_gradient(x: Tensor, labels: Tensor, gradient: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    if not runs_triton(x):
        return _weight_gradient_reference(x, labels, gradient, classes)
    _, channels, height, width = x.shape
    maps, labels = labels.numel(), labels.contiguous()
    fp32: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    rows, sums = torch.empty(maps, channels, **fp32), torch.empty(maps, **fp32)
    weight, bias = torch.empty(classes, channels, **fp32), torch.empty(classes, **fp32)
    if maps:
        config = _config(channels, height * width, x.stride(1) == 1, sums_channels=False)
        launch(
            _label_cam_map_gradient, (maps * max(1, cdiv(channels, config["BLOCK_C"])),),
            x, gradient.contiguous(), labels, rows, sums,
            labels.shape[1], classes, channels, height * width, *addressing(x), **config,
        )  # fmt: skip
    if classes:
        config = _class_config(maps, channels)
        launch(
            _label_cam_class_gradient,
            (classes, max(1, cdiv(channels, config["BLOCK_C"]))),
            rows,
            sums,
            labels,
            weight,
            bias,
            maps,
            channels,
            **config,
        )
    return weight, bias


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    return x.new_empty((*labels.shape, *x.shape[2:]), dtype=accumulation_dtype(x.dtype))


def _fake_weight_gradient(x: Tensor, labels: Tensor, gradient: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    dtype = accumulation_dtype(x.dtype)
    return x.new_empty((classes, x.shape[1]), dtype=dtype), x.new_empty(classes, dtype=dtype)


_op = define_op("label_cam(Tensor x, Tensor weight, Tensor? bias, Tensor labels) -> Tensor", _forward, _fake)
_op_x_gradient = define_op(
    "label_cam_x_gradient(Tensor x, Tensor weight, Tensor labels, Tensor gradient) -> Tensor",
    _x_gradient,
    lambda x, *_: torch.empty_like(x),
)
_op_weight_gradient = define_op(
    "label_cam_weight_gradient(Tensor x, Tensor labels, Tensor gradient, SymInt classes) -> (Tensor, Tensor)",
    _weight_gradient,
    _fake_weight_gradient,
)


class _LabelCam(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias, labels)
        return _op(x, weight, bias, labels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, labels = ctx.saved_tensors
        of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        x_grad = weight_grad = bias_grad = None
        if of_x:
            x_grad = _op_x_gradient(x, weight, labels, gradient)
        if of_weight or of_bias:
            # The bias alone needs no pass over x.
            summed = x if of_weight else x[:, :0]
            weight_grad, bias_grad = _op_weight_gradient(summed, labels, gradient, len(weight))
            weight_grad = weight_grad.to(weight.dtype) if of_weight else None
            bias_grad = bias_grad.to(bias.dtype) if of_bias else None
        return x_grad, weight_grad, bias_grad, None


def label_cam(
    x: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, normalize: bool = False, ignore_index: int = -100
) -> Tensor:
    """Class activation maps of the given classes of each image.

    Args:
        x: [N, C, H, W] input of the classifying 1×1 convolution; any floating dtype, any strides.
        weight: [Y, C] its weight.
        bias: [Y] its bias, or None.
        labels: [N] or [N, L] classes to map, integer. `ignore_index` gives a map of zeros, any other label outside
            0…Y−1 a map of NaN (no element outside `weight` is read).
        normalize: min–max normalize each map to [0, 1] (see `normalize_cam`).
        ignore_index: the label of images that have no class.

    Returns:
        fp32 (fp64 for fp64 input) [N, H, W] or [N, L, H, W]. Differentiable in x, weight and bias.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
    """
    check_tensor("labels", labels, (1, 2), integer=True)
    labels = checked_labels(x, weight, bias, labels, ignore_index)
    maps: Tensor = _LabelCam.apply(x, weight, bias, labels if labels.dim() == 2 else labels[:, None])
    if normalize:
        maps = normalize_cam(maps)
    return maps if labels.dim() == 2 else maps.squeeze(1)
