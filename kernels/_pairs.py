"""Who belongs together in a batch: what the kernels of SC, class means, GC and their fused form share.

A program finds its image's partner and class itself, by comparing labels a block at a time: for the few hundred images
of a batch that costs less than the launch that would prepare a table.
"""

from ._common import IGNORED_LABEL, L2_EPS
from ._triton import cdiv, next_power_of_2, tl, triton

IGNORED = tl.constexpr(IGNORED_LABEL)
EPS = tl.constexpr(L2_EPS)


def channel_chunks(channels: int) -> tuple[int, dict[str, int]]:
    """How many programs share the channels of an image, and their block, warps and registers.

    A quarter of the channels each, 128 to 512 of them, makes 80 images 320 programs on 132 SMs. 168 registers a thread
    leave room for three programs on an SM; ptxas, left alone, spills a few registers to make room for more.
    """
    block = min(max(next_power_of_2(channels) // 4, 128), 512)
    return cdiv(channels, block), {"BLOCK_D": block, "num_warps": 4, "maxnreg": 168}


def seed_block(seeds: int) -> int:
    """Seeds held at a time: 4 × 512 values of an image and as many of its partner are 32 registers a thread."""
    return min(next_power_of_2(seeds), 4)


def label_block(images: int) -> int:
    """Labels that a program compares at a time: all of them, up to 8 a thread of four warps."""
    return min(next_power_of_2(images), 1024)


def total_sizes(chunks: int) -> dict[str, int]:
    """Blocks and warps of the kernels that add up all terms in one program: 8 values a thread at a time."""
    return {"BLOCK": 2048, "BLOCK_C": min(next_power_of_2(chunks), 256), "num_warps": 8}


@triton.jit
def find_partner(p_labels, p_groups, i_image, images, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Place of the image this one pairs with inside its (class, group), or −1."""
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
def find_class(p_labels, i_image, images, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Label of an image, place of the first image of its class, −1 if it is ignored, and how many the class has."""
    label = tl.load(p_labels + i_image).to(tl.int64)
    b_first = tl.zeros([BLOCK_N], tl.int32) + images
    b_count = tl.zeros([BLOCK_N], tl.int32)
    for start in range(0, images, BLOCK_N):
        o_image = start + tl.arange(0, BLOCK_N)
        m_image = o_image < images
        m_same = m_image & (tl.load(p_labels + o_image, mask=m_image, other=0).to(tl.int64) == label)
        b_first = tl.minimum(b_first, tl.where(m_same, o_image, images))
        b_count += m_same.to(tl.int32)
    return label, tl.where(label == IGNORED, -1, tl.min(b_first, 0)), tl.sum(b_count, 0)


@triton.jit
def next_of_class(p_labels, label, i_image, images, BLOCK_N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Place of the first image of class `label` after `i_image`, or `images`."""
    found = tl.zeros([], tl.int32) + images
    start = i_image + 1
    while (start < images) & (found == images):
        o_image = start + tl.arange(0, BLOCK_N)
        m_image = o_image < images
        m_same = m_image & (tl.load(p_labels + o_image, mask=m_image, other=0).to(tl.int64) == label)
        found = tl.min(tl.where(m_same, o_image, images), 0)
        start += BLOCK_N
    return found


@triton.jit
def load_seeds(  # type: ignore[no-untyped-def]
    p_values, p_indices, i_image, o_seed, o_channel, m_tile,
    seeds, pixels, width, s_image, s_channel, s_row, s_column,
):  # fmt: skip
    """Seed vectors of an image as [BLOCK_K, BLOCK_D] fp32, 0 where masked.

    With `p_indices` they are pixels of a feature map, and one outside of it gives NaN. Without, the values [N, K, D]
    are a map of K rows and one column.
    """
    b_index = o_seed
    if p_indices is not None:
        b_index = tl.load(p_indices + i_image.to(tl.int64) * seeds + o_seed, mask=o_seed < seeds, other=0)
    m_inside = (b_index >= 0) & (b_index < pixels)
    b_pixel = tl.where(m_inside, b_index, 0)
    o_pixel = (b_pixel // width).to(tl.int64) * s_row + (b_pixel % width).to(tl.int64) * s_column
    p_tile = p_values + i_image.to(tl.int64) * s_image + o_pixel[:, None] + o_channel.to(tl.int64)[None, :] * s_channel
    b_tile = tl.load(p_tile, mask=m_tile & m_inside[:, None], other=0.0).to(tl.float32)
    return tl.where(m_tile & ~m_inside[:, None], float("nan"), b_tile)


@triton.jit
def total_parts(  # type: ignore[no-untyped-def]
    p_parts, p_lengths, rows, chunks, SQUARED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Sum of the terms whose squares lie in `p_parts` [rows, chunks]; for l2 their roots, also kept in `p_lengths`."""
    BLOCK_R: tl.constexpr = BLOCK // BLOCK_C
    b_total = tl.zeros([BLOCK_R], tl.float32)
    for start in range(0, rows, BLOCK_R):
        o_row = (start + tl.arange(0, BLOCK_R)).to(tl.int64)
        b_term = tl.zeros([BLOCK_R], tl.float32)
        for first in range(0, chunks, BLOCK_C):
            o_chunk = first + tl.arange(0, BLOCK_C)
            m_part = (o_row < rows)[:, None] & (o_chunk < chunks)[None, :]
            b_term += tl.sum(tl.load(p_parts + o_row[:, None] * chunks + o_chunk[None, :], mask=m_part, other=0.0), 1)
        if not SQUARED:
            b_term = tl.sqrt_rn(b_term)
            tl.store(p_lengths + o_row, b_term, mask=o_row < rows)
        b_total += b_term
    return tl.sum(b_total, 0)


@triton.jit
def count_pairs(p_partners, images, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many images lead a pair."""
    b_count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, images, BLOCK):
        o_image = start + tl.arange(0, BLOCK)
        b_count += (tl.load(p_partners + o_image, mask=o_image < images, other=-1) > o_image).to(tl.int32)
    return tl.sum(b_count, 0)


@triton.jit
def count_classes(p_labels, images, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many rows carry a label."""
    b_count = tl.zeros([BLOCK], tl.int32)
    for start in range(0, images, BLOCK):
        o_image = start + tl.arange(0, BLOCK)
        b_count += (tl.load(p_labels + o_image, mask=o_image < images, other=IGNORED) != IGNORED).to(tl.int32)
    return tl.sum(b_count, 0)
