"""The equations once more, slowly: per-image Python loops that share no line with the ops they judge."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

IGNORED = -100


def normalized(maps: Tensor) -> Tensor:
    """Min–max normalization of [N, H, W] maps, pixel by pixel in Python floats."""
    out = torch.zeros(maps.shape, dtype=torch.float64)
    for n, image in enumerate(maps.double().tolist()):
        low, high = min(map(min, image)), max(map(max, image))
        for y, row in enumerate(image):
            for x, value in enumerate(row):
                out[n, y, x] = (value - low) / (high - low) if high > low else 0.0
    return out


def class_map(x: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None) -> Tensor:
    """fp64 class activation map [N, H, W] of one label an image."""
    out = torch.zeros(len(x), *x.shape[2:], dtype=torch.float64)
    for n, label in enumerate(labels.tolist()):
        if label == IGNORED:
            continue
        if not 0 <= label < len(weight):
            out[n] = math.nan
            continue
        for c in range(x.shape[1]):
            out[n] += weight[label, c].double() * x[n, c].double()
        if bias is not None:
            out[n] += bias[label].double()
    return out


def philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, ...]:
    """Philox 4×32-10 in unbounded Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second & 0xFFFFFFFF, first >> 32 ^ c[3] ^ k[1], first & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def confident(pixels: np.ndarray, threshold: float) -> list[int]:
    """Row-major pixels of one flattened fp32 map above min + δ·(max − min), in fp32."""
    low, high = pixels.min(), pixels.max()
    cut = np.float32(low + np.float32(np.float32(threshold) * np.float32(high - low)))
    return [p for p, value in enumerate(pixels) if value > cut]


def seeds(
    maps: Tensor,
    k: int,
    threshold: float,
    run: int,
    step: int,
    image_ids: Sequence[int] | None = None,
    first: bool = False,
) -> tuple[list[list[int]], list[int]]:
    """Seed pixels [N, K] and how many pixels were above, for finite maps."""
    ids = range(len(maps)) if image_ids is None else image_ids
    indices, counts = [], []
    for image, image_id in zip(maps.float().flatten(1).numpy(), ids, strict=True):
        above = confident(image, threshold)
        key = (run % 2**32, run >> 32 & 0xFFFFFFFF)
        place = {p: philox(key, (p, image_id, step % 2**32, step >> 32))[0] for p in above}
        order = above if first else sorted(above, key=lambda p: (place[p], p))
        order = order[:k] or [int(image.argmax())]
        indices.append([order[i % len(order)] for i in range(k)])
        counts.append(len(above))
    return indices, counts


def gathered(features: Tensor, indices: Sequence[Sequence[int]]) -> Tensor:
    """[N, K, D] columns of F, one at a time; differentiable."""
    width = features.shape[3]
    return torch.stack(
        [
            torch.stack([features[n, :, p // width, p % width] for p in chosen])
            for n, chosen in enumerate(indices)
        ]
    )  # fmt: skip


def pairs(labels: Sequence[int], groups: Sequence[int] | None = None) -> list[tuple[int, int]]:
    """Pairs inside each (class, group) in batch order."""
    waiting: dict[tuple[int, int], int] = {}
    found = []
    for n, label in enumerate(labels):
        if label == IGNORED:
            continue
        slot = (label, 0 if groups is None else groups[n])
        if slot in waiting:
            found.append((waiting.pop(slot), n))
        else:
            waiting[slot] = n
    return found


def distance(a: Tensor, b: Tensor, kind: str) -> Tensor:
    """‖a − b‖², or ‖a − b + 1e-6‖, of two vectors."""
    if kind == "squared_l2":
        return (a - b).pow(2).sum()
    return (a - b + 1e-6).pow(2).sum().sqrt()


def pair_sum(values: Tensor, found: Sequence[tuple[int, int]], kind: str) -> Tensor:
    """Σ over pairs of Eq. 1."""
    total = values.new_zeros(())
    for i, j in found:
        for k in range(values.shape[1]):
            total = total + distance(values[i, k], values[j, k], kind) / values.shape[1]
    return total


def means_by_class(values: Tensor, labels: Sequence[int]) -> dict[int, Tensor]:
    """Eq. 2, keyed by class in order of appearance."""
    out: dict[int, Tensor] = {}
    for label in labels:
        if label != IGNORED and label not in out:
            rows = [values[n, k] for n, y in enumerate(labels) if y == label for k in range(values.shape[1])]
            out[label] = sum(rows[1:], rows[0]) / len(rows)
    return out


def center_sum(means: dict[int, Tensor], centers: Tensor, kind: str) -> Tensor:
    """Σ over classes of Eq. 5's terms."""
    total = centers.new_zeros(())
    for label, mean in means.items():
        total = total + distance(centers[label], mean, kind)
    return total


def move_centers(centers: Tensor, steps: list[int], means: dict[int, Tensor], alpha: float) -> None:
    """Eq. 3 and 4, in place on fp64 centers and a list of counters."""
    for label, mean in means.items():
        rate = math.exp(-alpha * steps[label])
        centers[label] = (1 - rate) * centers[label] + rate * mean
        steps[label] += 1
