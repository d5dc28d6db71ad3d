"""Seed pixels: K random pixels of each image where the class map is confident.

    region = {p : M[p] > δ},  M the min–max normalized map;   seeds = K of them at random      (paper, section 3.1)

The region is found on the raw map as m > min + δ·(max − min), so normalizing first changes nothing but rounding.
Random choice takes the K smallest of one Philox word per pixel, a uniform draw without replacement. In PyTorch:
``keys = torch.where(above, torch.rand(above.shape), inf); keys.topk(k, largest=False).indices``.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ._common import check_device, check_same, check_tensor
from ._launch import launch
from ._ops import define_op
from ._philox import philox
from ._triton import next_power_of_2, runs_triton, tl, triton

SeedChoice = Literal["random", "first"]

# Keys are held in registers, this many at a time. The reference draws more than that.
MAX_BLOCK = 2048
# Up to so many pixels of a map that fits into a block are found one by one, without a sort. Each takes a round with a
# barrier, so that the sort, which takes as long for any K, is kept for more.
MAX_ROUNDS = 16
# AMD's compiler has no such option.
REGISTERS = {} if torch.version.hip else {"maxnreg": 255}


def sample_pixels_reference(
    maps: Tensor,
    k: int,
    threshold: float,
    seed: Tensor,
    image_ids: Tensor | None = None,
    choice: SeedChoice = "random",
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch specification of `sample_pixels`."""
    m = maps.detach().flatten(1).float()
    pixels = torch.arange(m.shape[1], device=m.device)
    low, high = m.amin(1, keepdim=True), m.amax(1, keepdim=True)
    above = m > low + threshold * (high - low)  # a Python number is rounded to fp32 first
    counts = above.sum(1)

    if choice == "random":
        images = torch.arange(len(m), device=m.device) if image_ids is None else image_ids.long()
        run, step = seed.long()  # int32 cannot be shifted by 32
        word = philox((run, run >> 32), (pixels, images[:, None], step, step >> 32))[0]
    else:
        word = torch.zeros_like(above, dtype=torch.int64)
    # The pixel's index in the low bits breaks ties between equal words, so the order is total.
    keys = torch.where(above, (word << 31) | pixels, torch.iinfo(torch.int64).max)
    order = keys.topk(min(k, m.shape[1]), largest=False).indices
    wrapped = torch.arange(k, device=m.device) % counts.clamp(1, m.shape[1])[:, None]
    drawn = order.gather(1, wrapped)

    brightest = torch.where(m == high, pixels, m.shape[1]).amin(1, keepdim=True)
    indices = torch.where(counts[:, None] > 0, drawn, brightest)
    # amin and amax propagate NaN; a map that has one says nothing about where the object is.
    unknown = low.isnan() | high.isnan()
    indices = torch.where(unknown, 0, indices)
    counts = torch.where(unknown.squeeze(1), 0, counts)
    return indices.int(), counts.int()


@triton.jit
def _load_pixels(p_map, start, pixels, width, stride_row, stride_column, BLOCK: tl.constexpr):
    """Indices [BLOCK] from `start` on, which of them are pixels, and those pixels in fp32."""
    o_pixel = start + tl.arange(0, BLOCK)
    m_pixel = o_pixel < pixels
    o_map = (o_pixel // width).to(tl.int64) * stride_row + (o_pixel % width).to(tl.int64) * stride_column
    return o_pixel, m_pixel, tl.load(p_map + o_map, mask=m_pixel, other=0.0).to(tl.float32)


@triton.jit
def _level(low, high, threshold):
    """In fp32 as the reference has it: an interpreted argument is a Python float, of 64 bits."""
    return low + tl.full([], threshold, tl.float32) * (high - low)


@triton.jit
def _keys(o_pixel, m_above, p_seed, stride_seed, p_image_ids, stride_id, i_image, RANDOM: tl.constexpr):
    """int64 keys [BLOCK], all different, the smaller the sooner drawn; the largest number where a pixel is not above.

    The pixel stands in the low 31 bits, a random word before it.
    """
    b_key = o_pixel.to(tl.int64)
    if RANDOM:
        run = tl.load(p_seed).to(tl.int64)
        step = tl.load(p_seed + stride_seed).to(tl.int64)
        image_id = i_image if p_image_ids is None else tl.load(p_image_ids + i_image.to(tl.int64) * stride_id)
        b_word = tl.philox(run, o_pixel, image_id.to(tl.int32), step.to(tl.int32), (step >> 32).to(tl.int32))[0]
        b_key |= b_word.to(tl.int64) << 31
    return tl.where(m_above, b_key, 0x7FFFFFFFFFFFFFFF)


@triton.jit
def _sample_few_pixels(
    p_maps, p_seed, p_image_ids, p_indices, p_counts,
    k, threshold, pixels, width, stride_image, stride_row, stride_column, stride_seed, stride_id,
    RANDOM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program an image, whose pixels are one block; each round finds the smallest key above the last."""
    i_image = tl.program_id(0)
    p_map = p_maps + i_image.to(tl.int64) * stride_image
    o_pixel, m_pixel, b_map = _load_pixels(p_map, 0, pixels, width, stride_row, stride_column, BLOCK)
    low = tl.min(tl.where(m_pixel, b_map, float("inf")), 0)
    high = tl.max(tl.where(m_pixel, b_map, float("-inf")), 0)
    nan = tl.max((m_pixel & (b_map != b_map)).to(tl.int32), 0) > 0
    m_above = m_pixel & (b_map > _level(low, high, threshold))
    count = tl.where(nan, 0, tl.sum(m_above.to(tl.int32), 0))
    tl.store(p_counts + i_image, count)

    b_key = _keys(o_pixel, m_above, p_seed, stride_seed, p_image_ids, stride_id, i_image, RANDOM)
    # With none above, one round finds the first of the brightest, or pixel 0 of a map with a NaN.
    m_else = tl.where(nan, o_pixel == 0, m_pixel & (b_map == high))
    b_key = tl.where(count > 0, b_key, tl.where(m_else, o_pixel.to(tl.int64), 0x7FFFFFFFFFFFFFFF))
    drawn = tl.minimum(tl.maximum(count, 1), k)
    o_draw = tl.arange(0, BLOCK_K)
    b_drawn = tl.zeros([BLOCK_K], tl.int32)
    last = tl.full([], -1, tl.int64)
    for i_round in range(0, drawn):
        last = tl.min(tl.where(b_key > last, b_key, 0x7FFFFFFFFFFFFFFF), 0)
        # Fewer than K are written again and again, in draw order.
        b_drawn = tl.where(o_draw % drawn == i_round, (last & 0x7FFFFFFF).to(tl.int32), b_drawn)
    tl.store(p_indices + i_image.to(tl.int64) * k + o_draw, b_drawn, mask=o_draw < k)


@triton.jit
def _sample_pixels(
    p_maps, p_seed, p_image_ids, p_indices, p_counts,
    k, threshold, pixels, width, stride_image, stride_row, stride_column, stride_seed, stride_id,
    RANDOM: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program an image; the map is read block by block, [BLOCK], and the best [BLOCK_K] keys so far are kept."""
    i_image = tl.program_id(0)
    p_map = p_maps + i_image.to(tl.int64) * stride_image
    b_low = tl.full([BLOCK], float("inf"), tl.float32)
    b_high = tl.full([BLOCK], float("-inf"), tl.float32)
    b_nan = tl.zeros([BLOCK], tl.int32)
    for start in range(0, pixels, BLOCK):
        o_pixel, m_pixel, b_map = _load_pixels(p_map, start, pixels, width, stride_row, stride_column, BLOCK)
        b_nan |= (m_pixel & (b_map != b_map)).to(tl.int32)
        b_low = tl.minimum(b_low, tl.where(m_pixel, b_map, float("inf")))
        b_high = tl.maximum(b_high, tl.where(m_pixel, b_map, float("-inf")))
    low, high = tl.min(b_low, 0), tl.max(b_high, 0)
    level = _level(low, high, threshold)

    b_above = tl.zeros([BLOCK], tl.int32)
    b_brightest = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
    # Keys are negated, for topk finds the largest; b_best ascends, so that it and the descending b_top form a bitonic
    # sequence whose pairwise maxima are the best of both.
    b_best = tl.full([BLOCK_K], -0x7FFFFFFFFFFFFFFF, tl.int64)
    for start in range(0, pixels, BLOCK):
        o_pixel, m_pixel, b_map = _load_pixels(p_map, start, pixels, width, stride_row, stride_column, BLOCK)
        m_above = m_pixel & (b_map > level)
        b_above += m_above.to(tl.int32)
        b_brightest = tl.minimum(b_brightest, tl.where(m_pixel & (b_map == high), o_pixel, 0x7FFFFFFF))
        b_key = _keys(o_pixel, m_above, p_seed, stride_seed, p_image_ids, stride_id, i_image, RANDOM)
        b_best = tl.bitonic_merge(tl.maximum(b_best, tl.topk(-b_key, BLOCK_K)))

    nan = tl.max(b_nan, 0) > 0
    count = tl.where(nan, 0, tl.sum(b_above, 0))
    tl.store(p_counts + i_image, count)
    b_pixel = tl.where(count > 0, (-b_best & 0x7FFFFFFF).to(tl.int32), tl.where(nan, 0, tl.min(b_brightest, 0)))
    # Fewer than K are written again and again, in draw order.
    drawn = tl.where(count > 0, tl.minimum(count, BLOCK_K), BLOCK_K)
    o_draw = BLOCK_K - 1 - tl.arange(0, BLOCK_K)
    for start in range(0, k, drawn):
        m_draw = (o_draw < drawn) & (start + o_draw < k)
        tl.store(p_indices + i_image.to(tl.int64) * k + start + o_draw, b_pixel, mask=m_draw)


def _config(pixels: int, k: int) -> tuple[Any, dict[str, int]]:
    """The kernel, and a block that holds the whole map where it can: 1024 keys for 28×28, 2048 for 40×40.

    4 keys a thread give a scheduler two warps to choose from. The sort has 8, which it exchanges with fewer others,
    and holds at least K. A batch of 80 leaves SMs idle, so a program may use all registers: by itself ptxas spills
    some of the sort's for occupancy.
    """
    block = max(16, min(next_power_of_2(pixels), MAX_BLOCK))
    if k <= MAX_ROUNDS and pixels <= block:
        return _sample_few_pixels, {"BLOCK": block, "BLOCK_K": next_power_of_2(k), "num_warps": max(1, block // 128)}
    sizes = {"BLOCK": block, "BLOCK_K": max(2, next_power_of_2(min(k, pixels))), "num_warps": max(1, block // 256)}
    return _sample_pixels, sizes | REGISTERS


def _launch(
    maps: Tensor, k: int, threshold: float, seed: Tensor, image_ids: Tensor | None, random: bool
) -> tuple[Tensor, Tensor]:
    pixels = maps.shape[1] * maps.shape[2]
    if not runs_triton(maps) or min(k, pixels) > MAX_BLOCK:
        return sample_pixels_reference(maps, k, threshold, seed, image_ids, "random" if random else "first")
    indices = torch.empty(len(maps), k, dtype=torch.int32, device=maps.device)
    counts = torch.empty(len(maps), dtype=torch.int32, device=maps.device)
    if len(maps):
        kernel, config = _config(pixels, k)
        launch(
            kernel, (len(maps),),
            maps, seed, image_ids, indices, counts, k, threshold, pixels, maps.shape[2],
            *maps.stride(), seed.stride(0), 0 if image_ids is None else image_ids.stride(0),
            RANDOM=random, **config,
            enable_fp_fusion=False,  # a fused multiply-add would round the threshold otherwise than the reference
        )  # fmt: skip
    return indices, counts


def _fake(maps: Tensor, k: int, *_: Any) -> tuple[Tensor, Tensor]:
    return maps.new_empty(maps.shape[0], k, dtype=torch.int32), maps.new_empty(maps.shape[0], dtype=torch.int32)


_op = define_op(
    "sample_pixels(Tensor maps, SymInt k, float threshold, Tensor seed, Tensor? image_ids, bool random)"
    " -> (Tensor, Tensor)",
    _launch,
    _fake,
)


def sample_pixels(
    maps: Tensor,
    k: int,
    threshold: float,
    seed: Tensor,
    image_ids: Tensor | None = None,
    choice: SeedChoice = "random",
) -> tuple[Tensor, Tensor]:
    """Draw K pixels of each map from those above `threshold` of its range.

    Args:
        maps: [N, H, W] raw or normalized class maps, any floating dtype.
        k: pixels to draw from each map, at least 1. A map with fewer above the threshold repeats the drawn ones in draw
            order.
        threshold: δ of the paper, 0 ≤ δ < 1.
        seed: int64 [2] on the maps' device: the run's random seed and the step. Equal values give equal draws.
        image_ids: [N] integer index of each image in the global batch (default 0…N−1), so that a draw does not depend
            on how the batch is divided.
        choice: ``random`` (the paper) or ``first`` in row-major order (the released implementation).

    Returns:
        int32 indices [N, K] into the flattened map, and int32 counts [N] of the pixels above the threshold. No pixel
        above, or a constant map: the (first) brightest pixel K times, count 0. A map with a NaN: pixel 0, count 0.

    Raises:
        ValueError: k, threshold, choice, shapes, dtypes or devices that do not fit.
    """
    check_tensor("maps", maps, 3)
    if k < 1 or not 0 <= threshold < 1:
        raise ValueError(f"k must be at least 1 and threshold in [0, 1), got k={k}, threshold={threshold}")
    if choice not in get_args(SeedChoice):
        raise ValueError(f"choice must be one of {', '.join(get_args(SeedChoice))}, got {choice!r}")
    if 0 in maps.shape[1:]:
        raise ValueError(f"maps must have at least one pixel, got {list(maps.shape)}")
    check_tensor("seed", seed, 1, integer=True)
    check_same("len(seed)", len(seed), "the number of its parts (seed, step)", 2)
    if image_ids is not None:
        check_tensor("image_ids", image_ids, 1, integer=True)
        check_same("len(image_ids)", len(image_ids), "len(maps)", len(maps))
    check_device(maps=maps, seed=seed, image_ids=image_ids)
    indices, counts = _op(maps.detach(), k, threshold, seed, image_ids, choice == "random")
    return indices, counts
