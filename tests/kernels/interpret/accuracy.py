"""What the kernels' results are held against: fp64 truth, and what plain PyTorch makes of the same inputs."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

# How much more than plain PyTorch a kernel may err, in parts of the largest value: fp32 sums in another order, and one
# unit in the last place of the half types, which the interpreter reaches by truncating (a GPU rounds to nearest).
TOLERANCE = {torch.float32: 2**-20, torch.float16: 2**-10, torch.bfloat16: 2**-7}
DTYPES = list(TOLERANCE)

# [N, C, H, W], and views of it that hold the same numbers.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "sliced": lambda x: x.repeat_interleave(2, 2).repeat(1, 2, 1, 2)[:, : x.shape[1], ::2, : x.shape[3]],
    "sliced channels_last": lambda x: LAYOUTS["channels_last"](x.repeat(1, 2, 1, 2))[:, : x.shape[1], :, : x.shape[3]],
}


def assert_no_worse(got: Tensor, eager: Tensor, truth: Tensor) -> None:
    """`got` errs by at most TOLERANCE more than `eager`, of the same dtype, does, and is NaN where truth is."""
    assert got.dtype == eager.dtype and got.shape == truth.shape
    assert torch.equal(got.isnan(), truth.isnan())
    if not truth.numel():
        return
    truth = truth.nan_to_num(0.0)
    error, unavoidable = ((result.double().nan_to_num(0.0) - truth).abs().max() for result in (got, eager))
    allowed = unavoidable + TOLERANCE[got.dtype] * truth.abs().max()
    assert error <= allowed, f"error {error:.3g} where plain PyTorch has {unavoidable:.3g} and {allowed:.3g} is allowed"


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill all memory that the launchers allocate with NaN, so that an element nobody writes is seen."""
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, _poisoned(getattr(torch, name)))


def _poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments, **options: allocate(*arguments, **options).fill_(math.nan)
