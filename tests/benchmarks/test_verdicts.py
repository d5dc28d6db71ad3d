"""Results are held to their own dtype, element by element."""

import pytest
import torch

from benchmarks.verdicts import TOLERANCES, coarsest_of, verdict, worst

TRUTH = torch.tensor([1.1, -2.3, 3.7, 1e-3], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_rounded_result_is_right_and_one_wrong_element_of_many_is_not(dtype: torch.dtype) -> None:
    truth = torch.randn(10_000, generator=torch.Generator().manual_seed(0)).double()
    got = truth.to(dtype)
    assert verdict(got, truth, got).right
    got[17] += 8 * TOLERANCES[dtype] * (1 + got[17].abs())
    assert not verdict(got, truth, truth.to(dtype)).right
    assert (got.double() - truth).norm() / truth.norm() < TOLERANCES[dtype]  # which a norm does not tell


def test_what_plain_pytorch_loses_in_the_same_dtype_is_allowed() -> None:
    plain = (TRUTH * 1.01).float()
    assert verdict(plain, TRUTH, plain).right
    assert not verdict(plain, TRUTH, TRUTH.float()).right


def test_ours_are_held_to_the_dtype_of_the_result_and_others_to_that_of_the_inputs() -> None:
    got, plain = TRUTH.bfloat16().float(), TRUTH.float()
    assert not verdict(got, TRUTH, plain).right
    assert verdict(got, TRUTH, plain, coarsest_of(torch.ones(1), torch.ones(1).bfloat16())).right
    assert verdict(got, TRUTH, plain, products=torch.bfloat16).right  # which autocast multiplies in, ours too
    assert not verdict(got * 1.02, TRUTH, plain, products=torch.bfloat16).right
    assert not verdict(TRUTH.bfloat16(), TRUTH, plain).right  # ours returned another dtype


def test_whole_numbers_shapes_and_zeros_have_to_be_equal() -> None:
    counts = torch.tensor([3, 0])
    assert verdict(counts.int(), counts, counts).right
    assert not verdict(counts + 1, counts, counts).right
    assert not verdict(TRUTH[:2].float(), TRUTH, TRUTH.float()).right
    zeros = torch.zeros(2).double()
    assert verdict(zeros.float(), zeros, zeros.float()).right
    assert not verdict(zeros.float() + 1e-20, zeros, zeros.float()).right


def test_a_nan_is_wrong_and_the_worst() -> None:
    broken = TRUTH.float()
    broken[0] = torch.nan
    verdicts = {"good": verdict(TRUTH.float(), TRUTH, TRUTH.float()), "nan": verdict(broken, TRUTH, TRUTH.float())}
    assert not verdicts["nan"].right and worst(verdicts) == "nan"
    assert not verdict(TRUTH.float(), broken.double(), TRUTH.float()).right
