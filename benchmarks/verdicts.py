"""How far a result may be from the truth, which is computed in fp64: element by element, each result on its own.

The error of an element is |got − truth| / (|truth| + s), where s is the root of the mean square of the truth's elements
that are not 0: a small element is held to the size of its neighbors, a large one to its own. The largest error may be
that of the plain reference in the same dtypes, which rounds where PyTorch does, plus a tolerance. Whole numbers have to
be equal.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# One unit in the last place of a half-precision result; in fp32 what sums of some thousand numbers lose by their order.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
# Others than ours may compute in the coarsest dtype of their inputs, and round once more on the way.
OTHERS_FACTOR = 2


class Verdict(NamedTuple):
    """The largest error of a result's elements, and what is allowed."""

    error: float
    allowed: float

    @property
    def right(self) -> bool:
        return self.error <= self.allowed  # a NaN is not


Verdicts = dict[str, Verdict]  # by the name of the result


def largest_error(got: Tensor, truth: Tensor) -> float:
    """Of all elements, as above; NaN where either has one, infinity for another shape."""
    if got.shape != truth.shape:
        return torch.inf
    if not truth.numel():
        return 0.0
    got, truth = got.detach().double(), truth.detach().double()
    size = truth.square().sum().div((truth != 0).sum().clamp(min=1)).sqrt()
    return float(((got - truth).abs() / (truth.abs() + size).clamp(min=1e-300)).max())


def verdict(
    got: Tensor,
    truth: Tensor,
    plain: Tensor,
    coarsest: torch.dtype | None = None,
    products: torch.dtype | None = None,
) -> Verdict:
    """Judge one result.

    Args:
        truth: in fp64; plain: of the plain reference in the working dtypes; whole numbers: equal in both.
        coarsest: dtype that a provider other than ours may compute in. Ours also have to return the dtype of `plain`.
        products: dtype of a product that the result comes from, where autocast chooses it: it rounds ours, too.
    """
    if not truth.is_floating_point():
        return Verdict(0.0 if got.shape == truth.shape and bool((got == truth).all()) else torch.inf, 0.0)
    if coarsest is None and got.dtype != plain.dtype:
        return Verdict(torch.inf, 0.0)
    own = max(TOLERANCES[dtype] for dtype in (plain.dtype, products) if dtype is not None)
    tolerance = own if coarsest is None else OTHERS_FACTOR * TOLERANCES[coarsest]
    return Verdict(largest_error(got, truth), largest_error(plain, truth) + tolerance)


def coarsest_of(*tensors: Tensor) -> torch.dtype:
    """The floating dtype with the fewest digits."""
    dtypes = [tensor.dtype for tensor in tensors if tensor.is_floating_point()]
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def is_ours(provider: str) -> bool:
    """Whether a provider is judged as one of this project's, whose results are exact but for their last rounding."""
    return provider.startswith("fused")


def worst(verdicts: Verdicts) -> str:
    """The name of the result that misses its bound by most, or comes closest to it."""

    def share(name: str) -> float:
        error, allowed = verdicts[name]
        if error != error:
            return torch.inf
        return error / allowed if allowed else error

    return max(verdicts, key=share)
