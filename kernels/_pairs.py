"""Who belongs together in a batch, and the rows that ranks exchange: what the kernels of SC, class means and GC share.

A program finds its image's partner and class itself, by comparing labels a block at a time: for the few hundred images
of a batch that costs less than the launch that would prepare a table.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ._common import IGNORED_LABEL, L2_EPS, Distance, accumulation_dtype
from ._triton import cdiv, next_power_of_2, tl, triton

IGNORED = tl.constexpr(IGNORED_LABEL)
EPS = tl.constexpr(L2_EPS)


def channel_chunks(channels: int) -> tuple[int, dict[str, int]]:
    """How many programs divide the channels of an image, and their block and warps.

    128 or 256 of them each make 80 images of 2048 channels 640 programs on 132 SMs.
    """
    block = 256 if channels > 512 else 128
    return cdiv(max(channels, 1), block), {"BLOCK_D": block, "num_warps": block // 32}


def seed_block(k: int) -> int:
    """Seed vectors held at a time: of 4, with as many of the partner, ptxas spills some for one more block on an SM."""
    return min(next_power_of_2(k), 2)


def label_block(images: int) -> int:
    """Labels that a program compares at a time: all of them, one to 8 a thread; fewer would cost registers instead."""
    return min(max(next_power_of_2(images), 256), 1024)


def chunk_block(chunks: int) -> int:
    """Chunks of channels whose squares are added at a time: one a thread of two warps at most."""
    return min(next_power_of_2(chunks), 64)


def total_sizes(chunks: int) -> dict[str, int]:
    """Blocks and warps of the kernel that adds up all terms in one program: 2 values a thread at a time."""
    return {"BLOCK": 512, "BLOCK_C": chunk_block(chunks), "num_warps": 8}


class Rows(NamedTuple):
    """What SC, GC and the class means of a batch need of each image: views of one buffer, which ranks exchange.

    A row may also stand for several images of one class, whose numbers are added up.
    """

    sums: Tensor  # [M, D] sum of the seed vectors
    squares: Tensor  # [M, T·chunks] squares of the pair that the image leads, T = 1 for squared_l2 and K for l2
    pairs: Tensor  # [M, 1] how many pairs the image leads, 1 or 0
    images: Tensor  # [M, 1] how many images the row stands for
    labels: Tensor  # int64 [M]


def terms_of(k: int, distance: Distance) -> int:
    """Terms of an image's SC: l2 takes the root of each seed vector's squares."""
    return k if distance == "l2" else 1


def new_rows(like: Tensor, images: int, channels: int, k: int, distance: Distance) -> Tensor:
    """Memory for `Rows` of features like these, each a multiple of 16 bytes; the last 8 bytes are the label."""
    width = channels + terms_of(k, distance) * channel_chunks(channels)[0] + 4
    return like.new_empty(images, (width + 3) // 4 * 4, dtype=accumulation_dtype(like.dtype))


def unpack(rows: Tensor, channels: int, k: int, distance: Distance) -> Rows:
    """The parts of rows that `new_rows` made."""
    size = terms_of(k, distance) * channel_chunks(channels)[0]
    sizes = [channels, size, 1, 1, rows.shape[1] - channels - size - 2]
    sums, squares, pairs, images, _ = rows.split_with_sizes(sizes, 1)
    return Rows(sums, squares, pairs, images, rows.view(torch.int64).select(1, -1))


@triton.jit
def find_partner(p_labels, p_groups, i_image, images, BLOCK_N: tl.constexpr):
    """Index of the image this one pairs with inside its (class, group), or −1."""
    label = tl.load(p_labels + i_image)
    b_earlier = tl.zeros([BLOCK_N], tl.int32)
    b_before = tl.full([BLOCK_N], -1, tl.int32)
    b_after = tl.zeros([BLOCK_N], tl.int32) + images
    for start in range(0, images, BLOCK_N):
        o_image = start + tl.arange(0, BLOCK_N)
        m_image = o_image < images
        m_same = m_image & (tl.load(p_labels + o_image, mask=m_image, other=0) == label)
        if p_groups is not None:
            m_same &= tl.load(p_groups + o_image, mask=m_image, other=0) == tl.load(p_groups + i_image)
        m_earlier = m_same & (o_image < i_image)
        b_earlier += m_earlier.to(tl.int32)
        b_before = tl.where(m_earlier, o_image, b_before)
        b_after = tl.minimum(b_after, tl.where(m_same & (o_image > i_image), o_image, images))
    before, after = tl.max(b_before, 0), tl.min(b_after, 0)
    # The 1st, 3rd, 5th … of a (class, group) leads and waits for the next; the others follow the one before.
    leads = tl.sum(b_earlier, 0) % 2 == 0
    partner = tl.where(leads, tl.where(after < images, after, -1), before)
    return tl.where(label == IGNORED, -1, partner)


@triton.jit
def find_class(p_labels, p_images, label, rows, s_label, s_images, BLOCK_N: tl.constexpr):
    """First row with this label, `rows` if there is none, and how many images all rows with it stand for.

    Without `p_images` each row is one image.
    """
    b_first = tl.zeros([BLOCK_N], tl.int32) + rows
    b_count = tl.zeros([BLOCK_N], tl.int32)
    for start in range(0, rows, BLOCK_N):
        o_row = start + tl.arange(0, BLOCK_N)
        m_row = o_row < rows
        m_same = m_row & (tl.load(p_labels + o_row.to(tl.int64) * s_label, mask=m_row, other=0).to(tl.int64) == label)
        b_first = tl.minimum(b_first, tl.where(m_same, o_row, rows))
        if p_images is None:
            b_count += m_same.to(tl.int32)
        else:
            b_count += tl.load(p_images + o_row.to(tl.int64) * s_images, mask=m_same, other=0.0).to(tl.int32)
    return tl.min(b_first, 0), tl.sum(b_count, 0)


@triton.jit
def load_seeds(
    p_values, p_indices, i_image, o_seed, o_channel, m_tile,
    k, pixels, width, s_image, s_channel, s_row, s_column,
):  # fmt: skip
    """[BLOCK_K, BLOCK_D] seed vectors of an image in fp32; NaN at an index outside of the map, 0 outside of `m_tile`.

    `p_values` is a map of `pixels` and `p_indices` [N, K] says where its seeds are; seed vectors, without `p_indices`,
    are a map of K rows and one column. Image −1, nobody's partner, has no indices; `m_tile` leaves out its values.
    """
    b_index = o_seed
    if p_indices is not None:
        m_index = (o_seed < k) & (i_image >= 0)
        b_index = tl.load(p_indices + i_image.to(tl.int64) * k + o_seed, mask=m_index, other=0)
    m_inside = (b_index >= 0) & (b_index < pixels)
    b_pixel = tl.where(m_inside, b_index, 0)
    o_pixel = (b_pixel // width).to(tl.int64) * s_row + (b_pixel % width).to(tl.int64) * s_column
    p_tile = p_values + i_image.to(tl.int64) * s_image + o_pixel[:, None] + o_channel.to(tl.int64)[None, :] * s_channel
    b_tile = tl.load(p_tile, mask=m_tile & m_inside[:, None], other=0.0).to(tl.float32)
    return tl.where(m_tile & ~m_inside[:, None], float("nan"), b_tile)


@triton.jit
def sum_squares(p_squares, m_term, chunks, BLOCK_C: tl.constexpr):
    """[…] sums over the chunks of channels of the terms at `p_squares`; 0 outside of `m_term`."""
    b_sum = tl.zeros(m_term.shape, tl.float32)
    for start in range(0, chunks, BLOCK_C):
        o_chunk = start + tl.arange(0, BLOCK_C)
        m_part = m_term[:, None] & (o_chunk < chunks)[None, :]
        b_sum += tl.sum(tl.load(p_squares[:, None] + o_chunk[None, :], mask=m_part, other=0.0), 1)
    return b_sum
