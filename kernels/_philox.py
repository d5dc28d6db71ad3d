"""Philox 4×32-10, the counter-based generator of Salmon et al. (SC 2011), in PyTorch.

A draw is a pure function of key and counter: no state, no order, the same on every device and for any division of a
batch over ranks.
"""

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random 32-bit words for each counter.

    Args:
        key: two int64 tensors, of which the low 32 bits count.
        counter: four int64 tensors that broadcast with each other, likewise.

    Returns:
        Four int64 tensors with values in 0…2³²−1.
    """
    k0, k1 = key[0] & _MASK, key[1] & _MASK
    c0, c1, c2, c3 = torch.broadcast_tensors(*(word & _MASK for word in counter))
    for _ in range(10):
        # int64 products wrap modulo 2⁶⁴, and their bits are those of the unsigned product.
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((high >> 32) & _MASK) ^ c1 ^ k0, high & _MASK
        c2, c3 = ((low >> 32) & _MASK) ^ c3 ^ k1, low & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3
