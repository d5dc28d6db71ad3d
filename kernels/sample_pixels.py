"""Seed pixels: K random pixels of each image where the class map is confident.

    region = {p : M[p] > δ},  M the min–max normalized map;   seeds = K of them at random      (paper, section 3.1)

The region is found on the raw map as m > min + δ·(max − min), so normalizing first changes nothing but rounding.
Random choice takes the K smallest of one Philox word per pixel, a uniform draw without replacement.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from ._common import check_device, check_same, check_tensor
from ._philox import philox

SeedChoice = Literal["random", "first"]


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
    above = m > low + torch.tensor(threshold, dtype=torch.float32) * (high - low)
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
        k: seeds an image, at least 1. An image with fewer confident pixels repeats the drawn ones in draw order.
        threshold: δ of the paper, 0 ≤ δ < 1.
        seed: int64 [2] on the maps' device: the run's seed and the step. Equal values give equal draws.
        image_ids: [N] integer place of each image in the global batch (default 0…N−1), so that a draw does not depend
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
    return sample_pixels_reference(maps, k, threshold, seed, image_ids, choice)
