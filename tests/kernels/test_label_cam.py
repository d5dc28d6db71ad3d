import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2c_fast.kernels import label_cam, normalize_cam

from . import oracles

LABELS = torch.tensor([3, 0, 3])


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
    x = torch.tensor([[[[1.0, 2.0]], [[3.0, 5.0]]]])  # channel 0: 1 2, channel 1: 3 5
    weight = torch.tensor([[9.0, 9.0], [2.0, -1.0]])
    # 2·1 − 1·3 + .5 = −.5 and 2·2 − 1·5 + .5 = −.5; without the bias −1 and −1
    assert label_cam(x, weight, torch.tensor([7.0, 0.5]), torch.tensor([1])).tolist() == [[[-0.5, -0.5]]]
    assert label_cam(x, weight, None, torch.tensor([1])).tolist() == [[[-1.0, -1.0]]]


@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_the_loop(x: Tensor, weight: Tensor, bias: Tensor, with_bias: bool) -> None:
    used = bias if with_bias else None
    maps = label_cam(x, weight, used, LABELS)
    torch.testing.assert_close(maps.double(), oracles.class_map(x, weight, LABELS, used), rtol=1e-5, atol=1e-5)


def test_several_labels_an_image_stack_the_maps_of_each(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    labels = torch.tensor([[0, 3], [2, 2], [-100, 1]])
    maps = label_cam(x, weight, bias, labels)
    assert maps.shape == (3, 2, 4, 6)
    for column in range(2):
        torch.testing.assert_close(maps[:, column], label_cam(x, weight, bias, labels[:, column]))


def test_normalize_is_normalize_cam_afterwards(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    maps = label_cam(x, weight, bias, LABELS)
    torch.testing.assert_close(label_cam(x, weight, bias, LABELS, normalize=True), normalize_cam(maps))


@pytest.mark.parametrize("normalize", [False, True])
def test_gradients_are_the_derivatives(normalize: bool) -> None:
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[3, 0], [1, 1]])  # class 1 twice: its gradients add
    assert torch.autograd.gradcheck(lambda x, w, b: label_cam(x, w, b, labels, normalize=normalize), (x, weight, bias))


def test_gradient_reaches_chosen_classes_only(x: Tensor, weight: Tensor) -> None:
    weight.requires_grad_()
    label_cam(x, weight, None, LABELS).square().sum().backward()
    assert weight.grad is not None
    assert weight.grad.ne(0).any(1).tolist() == [True, False, False, True]


def test_ignored_image_has_a_map_of_zeros_and_no_gradient(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    x.requires_grad_()
    maps = label_cam(x, weight, bias, torch.tensor([3, -100, 0]))
    maps.sum().backward()
    assert x.grad is not None
    assert torch.equal(maps[1], torch.zeros(4, 6))
    assert torch.equal(x.grad[1], torch.zeros(5, 4, 6))


@pytest.mark.parametrize("ignore_index", [0, 255])
def test_another_label_may_be_the_ignored_one(x: Tensor, weight: Tensor, bias: Tensor, ignore_index: int) -> None:
    tensors = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    maps = label_cam(*tensors, torch.tensor([3, ignore_index, -100]), ignore_index=ignore_index)
    expected = label_cam(*tensors, torch.tensor([3, -100, 7]))
    torch.testing.assert_close(maps, expected, equal_nan=True)
    wanted = torch.autograd.grad(expected[:2].sum(), tensors)
    torch.testing.assert_close(torch.autograd.grad(maps[:2].sum(), tensors), wanted)


@pytest.mark.parametrize("label", [4, -1, -99, 10**6, 2**40])
def test_label_out_of_range_gives_nan_and_spoils_no_other_image(x: Tensor, weight: Tensor, label: int) -> None:
    maps = label_cam(x, weight, None, torch.tensor([3, label, 0]))
    assert maps[1].isnan().all()
    torch.testing.assert_close(maps[[0, 2]], label_cam(x[[0, 2]], weight, None, torch.tensor([3, 0])))


@pytest.mark.parametrize("label", [-100, 7])
def test_nan_features_of_an_image_without_class_reach_no_weight_gradient(weight: Tensor, label: int) -> None:
    x = torch.randn(2, 5, 2, 2)
    x[0] = math.nan
    weight.requires_grad_()
    label_cam(x, weight, None, torch.tensor([label, 2])).sum().backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_image_leaves_the_others_alone(x: Tensor, weight: Tensor, bad: float) -> None:
    alone = label_cam(x[1:], weight, None, LABELS[1:])
    x[0, 2, 1, 1] = bad
    maps = label_cam(x, weight, None, LABELS)
    torch.testing.assert_close(maps[1:], alone)
    assert not maps[0, 1, 1].isfinite()
    assert maps[0].isfinite().sum() == 4 * 6 - 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_accumulates_in_fp32(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(3, 64, 4, 4).to(dtype), torch.randn(4, 64).to(dtype), torch.randn(4).to(dtype)
    maps = label_cam(x, weight, bias, LABELS)
    assert maps.dtype == torch.float32
    # The inputs are exact in fp64; what remains is fp32 rounding of 64 products.
    torch.testing.assert_close(maps.double(), oracles.class_map(x, weight, LABELS, bias), rtol=1e-5, atol=1e-5)


def test_autocast_does_not_round_the_products(x: Tensor, weight: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = label_cam(x, weight, None, LABELS)
    assert torch.equal(maps, label_cam(x, weight, None, LABELS))


def test_half_precision_gradients_have_their_inputs_dtype() -> None:
    x = torch.randn(3, 5, 2, 2).bfloat16().requires_grad_()
    weight = torch.randn(4, 5).requires_grad_()
    label_cam(x, weight, None, LABELS).sum().backward()
    assert x.grad is not None and weight.grad is not None
    assert (x.grad.dtype, weight.grad.dtype) == (torch.bfloat16, torch.float32)
    # dM/dx is the weight itself, rounded once to bf16 (8 bits).
    torch.testing.assert_close(x.grad[0, :, 0, 0].float(), weight[3].detach(), rtol=2**-8, atol=0)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :, ::2, 1:],
        lambda x: x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).unsqueeze(-1),
        lambda x: x[:1].expand(3, -1, -1, -1),
    ],
    ids=["channels_last", "transposed", "sliced", "tokens", "expanded"],
)
def test_strides_do_not_matter(x: Tensor, weight: Tensor, view: Callable[[Tensor], Tensor]) -> None:
    torch.testing.assert_close(
        label_cam(view(x), weight, None, LABELS), label_cam(view(x).contiguous(), weight, None, LABELS)
    )


def test_int32_labels_serve_as_int64_ones(x: Tensor, weight: Tensor) -> None:
    assert torch.equal(label_cam(x, weight, None, LABELS.int()), label_cam(x, weight, None, LABELS))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2)])
def test_tiny_maps(weight: Tensor, height: int, width: int) -> None:
    x = torch.randn(3, 5, height, width)
    torch.testing.assert_close(label_cam(x, weight, None, LABELS).double(), oracles.class_map(x, weight, LABELS))


def test_an_empty_batch_has_no_maps(weight: Tensor) -> None:
    assert label_cam(torch.zeros(0, 5, 2, 3), weight, None, torch.zeros(0, dtype=torch.int64)).shape == (0, 2, 3)


@given(n=st.integers(1, 4), c=st.integers(1, 5), h=st.integers(1, 4), w=st.integers(1, 4), data=st.data())
@settings(max_examples=25)
def test_any_shape_and_label_equals_the_loop(n: int, c: int, h: int, w: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(n * 1000 + c * 100 + h * 10 + w)
    x = torch.randn(n, c, h, w, dtype=torch.float64, generator=generator)
    weight = torch.randn(3, c, dtype=torch.float64, generator=generator)
    labels = torch.tensor(data.draw(st.lists(st.sampled_from([-100, -1, 0, 1, 2, 3]), min_size=n, max_size=n)))
    torch.testing.assert_close(label_cam(x, weight, None, labels), oracles.class_map(x, weight, labels), equal_nan=True)


def test_refusals_name_what_does_not_fit(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    with pytest.raises(ValueError, match=r"x must be floating-point with 4 dimensions, got shape \[5, 4, 6\]"):
        label_cam(x[0], weight, None, LABELS)
    with pytest.raises(ValueError, match=r"x\.shape\[1\] is 5 but weight\.shape\[1\] is 3"):
        label_cam(x, weight[:, :3], None, LABELS)
    with pytest.raises(ValueError, match=r"labels must be int32 or int64 .* torch\.float32"):
        label_cam(x, weight, None, LABELS.float())
    with pytest.raises(ValueError, match=r"labels must be int32 or int64 .* torch\.uint8"):
        label_cam(x, weight, None, LABELS.to(torch.uint8))
    with pytest.raises(ValueError, match=r"len\(labels\) is 2 but len\(x\) is 3"):
        label_cam(x, weight, None, LABELS[:2])
    with pytest.raises(ValueError, match=r"len\(bias\) is 2 but len\(weight\) is 4"):
        label_cam(x, weight, bias[:2], LABELS)
    with pytest.raises(ValueError, match=r"weight on meta"):
        label_cam(x, weight.to("meta"), None, LABELS)
