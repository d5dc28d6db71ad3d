import math

import pytest
import torch
from torch import Tensor

from i2c_fast.kernels import label_cam, pooled_head

from . import oracles

LABELS = torch.tensor([3, 0, 2])


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, 4, 6)


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(4, 5)


@pytest.fixture
def bias() -> Tensor:
    return torch.randn(4)


def test_worked_example() -> None:
    x = torch.tensor([[[[1.0, 3.0]], [[4.0, 0.0]]]])  # means 2 and 2
    weight = torch.tensor([[1.0, 1.0], [0.5, -1.0]])
    logits, maps = pooled_head(x, weight, torch.tensor([10.0, 0.0]), torch.tensor([1]))
    assert logits.tolist() == [[14.0, -1.0]]  # 2 + 2 + 10 and 1 − 2
    assert maps.tolist() == [[[-3.5, 1.5]]]  # .5·1 − 4 and .5·3 − 0


@pytest.mark.parametrize("with_bias", [True, False])
def test_logits_are_the_means_of_all_class_maps(x: Tensor, weight: Tensor, bias: Tensor, with_bias: bool) -> None:
    used = bias if with_bias else None
    logits, _ = pooled_head(x, weight, used, LABELS)
    for label in range(4):
        maps = oracles.class_map(x, weight, torch.full((3,), label), used)
        torch.testing.assert_close(logits[:, label].double(), maps.mean((1, 2)), rtol=1e-5, atol=1e-5)


def test_maps_are_those_of_label_cam_and_constants(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    _, maps = pooled_head(x.requires_grad_(), weight.requires_grad_(), bias, LABELS)
    torch.testing.assert_close(maps, label_cam(x, weight, bias, LABELS).detach())
    assert not maps.requires_grad


def test_logit_gradients_are_the_derivatives() -> None:
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w, b: pooled_head(x, w, b, LABELS[:2])[0], (x, weight, bias))


def test_ignored_image_is_classified_but_not_mapped(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    logits, maps = pooled_head(x, weight, bias, torch.tensor([3, -100, 2]))
    torch.testing.assert_close(logits, pooled_head(x, weight, bias, LABELS)[0])
    assert torch.equal(maps[1], torch.zeros(4, 6))


def test_another_label_may_be_the_ignored_one(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    logits, maps = pooled_head(x, weight, bias, torch.tensor([3, 0, -100]), ignore_index=0)
    expected_logits, expected_maps = pooled_head(x, weight, bias, torch.tensor([3, -100, 7]))
    torch.testing.assert_close(logits, expected_logits)
    torch.testing.assert_close(maps, expected_maps, equal_nan=True)


def test_label_out_of_range_spoils_its_own_map_only(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    logits, maps = pooled_head(x, weight, bias, torch.tensor([3, 4, 2]))
    expected_logits, expected_maps = pooled_head(x, weight, bias, LABELS)
    torch.testing.assert_close(logits, expected_logits)
    torch.testing.assert_close(maps[[0, 2]], expected_maps[[0, 2]])
    assert maps[1].isnan().all()


def test_a_nan_image_leaves_the_others_alone(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    expected_logits, expected_maps = pooled_head(x, weight, bias, LABELS)
    x[1, 0, 0, 0] = math.nan
    logits, maps = pooled_head(x, weight, bias, LABELS)
    torch.testing.assert_close(logits[[0, 2]], expected_logits[[0, 2]])
    torch.testing.assert_close(maps[[0, 2]], expected_maps[[0, 2]])
    assert logits[1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_averaged_in_fp32(dtype: torch.dtype, weight: Tensor, bias: Tensor) -> None:
    # 4096 pixels near 1: a half-precision running sum would stop growing at 256 (bf16) or 2048 (fp16).
    x = (1 + 0.1 * torch.randn(1, 5, 64, 64)).to(dtype)
    logits, maps = pooled_head(x, weight, bias, LABELS[:1])
    truth = weight.double() @ x.double().mean((2, 3))[0] + bias.double()
    assert logits.dtype == maps.dtype == torch.float32
    torch.testing.assert_close(logits[0].double(), truth, rtol=1e-5, atol=1e-5)


def test_logits_follow_the_ambient_autocast(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    expected, expected_maps = pooled_head(x, weight, bias, LABELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, maps = pooled_head(x, weight, bias, LABELS)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=2**-6, atol=2**-6)
    assert torch.equal(maps, expected_maps)


def test_channels_last_and_transposed_features_give_the_same(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    expected = pooled_head(x, weight, bias, LABELS)
    for same in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)):
        torch.testing.assert_close(pooled_head(same, weight, bias, LABELS), expected)


def test_the_gradient_reaches_a_dropout_before_it_in_the_layout_of_its_output(x: Tensor, weight: Tensor) -> None:
    strides: list[tuple[int, ...]] = []
    leaf = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    dropped = torch.nn.functional.dropout(leaf)
    dropped.register_hook(lambda gradient: strides.append(gradient.stride()))
    pooled_head(dropped, weight, None, LABELS)[0].sum().backward()
    assert strides == [dropped.stride()]


@pytest.mark.parametrize("size", [(1, 1), (1, 2)])
def test_tiny_maps(weight: Tensor, size: tuple[int, int]) -> None:
    x = torch.randn(3, 5, *size)
    logits, maps = pooled_head(x, weight, None, LABELS)
    torch.testing.assert_close(maps.mean((1, 2)), logits[torch.arange(3), LABELS])


def test_refusals_name_what_does_not_fit(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    with pytest.raises(ValueError, match=r"labels must be int32 or int64 with 1 dimensions"):
        pooled_head(x, weight, bias, LABELS[:, None])
    with pytest.raises(ValueError, match=r"x\.shape\[1\] is 5 but weight\.shape\[1\] is 4"):
        pooled_head(x, weight[:, :4], bias, LABELS)
    with pytest.raises(ValueError, match=r"len\(bias\) is 3 but len\(weight\) is 4"):
        pooled_head(x, weight, bias[:3], LABELS)
    with pytest.raises(ValueError, match=r"len\(labels\) is 2 but len\(x\) is 3"):
        pooled_head(x, weight, bias, LABELS[:2])
    with pytest.raises(ValueError, match=r"bias on meta"):
        pooled_head(x, weight, bias.to("meta"), LABELS)
