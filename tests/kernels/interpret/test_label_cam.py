"""The kernels of label_cam."""

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2c_fast.kernels import label_cam, label_cam_reference, normalize_cam

from .accuracy import DTYPES, LAYOUTS, assert_no_worse, poison

MODULE = sys.modules["i2c_fast.kernels.label_cam"]  # the package's attribute of that name is the function
SIZES = [(3, 1, 1, 1), (3, 3, 7, 7), (5, 64, 13, 17), (1, 2050, 3, 5), (2, 65, 28, 28), (1, 3, 32, 32)]


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)


class Case(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor
    upstream: Tensor


def random_case(size: tuple[int, ...], labels: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Case:
    """Four classes; labels are drawn, and the first of several images is ignored, unless they are given."""
    n, c, height, width = size
    generator = torch.Generator().manual_seed(c + height)
    if labels is None:
        labels = torch.randint(4, (n,), generator=generator)
        labels[: n // 2 and 1] = -100
    x = torch.randn(size, generator=generator).to(dtype)
    weight, bias = torch.randn(4, c, generator=generator), torch.randn(4, generator=generator)
    # Around 1, so that no sum of it is small beside its terms.
    return Case(x, weight, bias, labels, 1 + torch.randn(*labels.shape, height, width, generator=generator))


def run(function: Callable[..., Tensor], case: Case, **options: Any) -> tuple[Tensor, ...]:
    """The maps, then the gradients of x, weight and bias."""
    leaves = [tensor.detach().requires_grad_() for tensor in case[:3] if tensor is not None]
    maps = function(leaves[0], leaves[1], leaves[2] if len(leaves) == 3 else None, case.labels, **options)
    return maps.detach(), *torch.autograd.grad(maps, leaves, case.upstream.to(maps.dtype))


def check(case: Case, **options: Any) -> None:
    exact = Case(*(None if t is None else t if t is case.labels else t.double() for t in case))
    results, plain = run(label_cam, case, **options), run(label_cam_reference, case, **options)
    for got, eager, truth in zip(results, plain, run(label_cam_reference, exact, **options), strict=True):
        assert_no_worse(got, eager, truth)


@pytest.mark.parametrize(
    ("size", "dtype"), [*((size, torch.float32) for size in SIZES), *((SIZES[2], dtype) for dtype in DTYPES[1:])]
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_maps_and_gradients_are_as_exact_as_plain_pytorch(
    size: tuple[int, int, int, int], layout: str, dtype: torch.dtype
) -> None:
    case = random_case(size, dtype=dtype)
    check(case._replace(x=LAYOUTS[layout](case.x)))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_large_maps_are_as_exact_as_plain_pytorch(layout: str) -> None:
    case = random_case((1, 3, 49, 49))
    check(case._replace(x=LAYOUTS[layout](case.x)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(layout: str) -> None:
    case = random_case((3, 5, 6, 7))
    x = LAYOUTS[layout](case.x)
    assert torch.equal(x, case.x)
    check(case._replace(x=x))


@pytest.mark.parametrize(("height", "width"), [(1, 5), (5, 1)])
def test_a_single_row_or_column_is_read_by_its_own_stride(height: int, width: int) -> None:
    case = random_case((2, 3, height, width))
    check(case._replace(x=case.x.repeat_interleave(2, 2).repeat_interleave(3, 3)[:, :, ::2, ::3]))


def test_expanded_features_serve_every_image() -> None:
    case = random_case((3, 5, 4, 6))
    check(case._replace(x=case.x[:1].expand(3, -1, -1, -1)))


def test_an_expanded_gradient_is_read_right() -> None:
    case = random_case((3, 5, 4, 6))
    check(case._replace(upstream=torch.ones(()).expand(3, 4, 6)))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_the_gradient_has_the_strides_of_the_features(layout: str) -> None:
    case = random_case((2, 5, 4, 6))
    x = LAYOUTS[layout](case.x)
    gradient = run(label_cam, case._replace(x=x))[1]
    assert gradient.stride() == x.stride()


@pytest.mark.parametrize(
    "labels",
    [
        [[0, 3], [2, 2], [-100, 1]],
        [[1, 1, 1], [1, 3, 0], [0, -100, 1]],
        [[3], [-1], [4]],
        [[2**40, 0], [-(2**40), 1], [-99, -101]],
    ],
)
def test_several_labels_an_image_in_any_order(labels: list[list[int]]) -> None:
    check(random_case((3, 5, 4, 6), torch.tensor(labels)))


@pytest.mark.parametrize("ignore_index", [1, 2**40])
def test_another_label_may_be_the_ignored_one(ignore_index: int) -> None:
    labels = torch.tensor([[0, 1], [ignore_index, 2], [-100, 1]])
    check(random_case((3, 5, 4, 6), labels), ignore_index=ignore_index)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_several_labels_of_maps_of_many_tiles(layout: str) -> None:
    case = random_case((2, 65, 13, 17), torch.tensor([[3, 0], [1, 3]]))
    check(case._replace(x=LAYOUTS[layout](case.x)))


def test_int32_labels_and_strided_ones_serve_too() -> None:
    check(random_case((3, 5, 4, 6), torch.tensor([3, -100, 1], dtype=torch.int32)))
    check(random_case((3, 5, 4, 6), torch.tensor([[3, 9, 2], [0, 9, 2]]).t()))


def test_no_bias_is_no_bias() -> None:
    check(random_case((3, 5, 4, 6))._replace(bias=None))


def test_parameters_may_be_strided_and_of_another_dtype() -> None:
    case = random_case((3, 5, 4, 6))
    assert case.bias is not None
    check(case._replace(weight=case.weight.t().contiguous().t(), bias=case.bias.repeat_interleave(2)[::2]))
    check(case._replace(weight=case.weight.bfloat16(), bias=case.bias.half()))


def test_normalized_maps_are_those_of_normalize_cam() -> None:
    case = random_case((3, 5, 4, 6), torch.tensor([[0, 3], [2, 2], [-100, 7]]))
    check(case._replace(bias=None), normalize=True)  # a bias changes nothing here: its gradient is rounding alone
    maps = label_cam(case.x, case.weight, case.bias, case.labels, normalize=True)
    assert torch.equal(maps[:2], normalize_cam(label_cam(case.x, case.weight, case.bias, case.labels))[:2])


def test_the_maps_of_one_class_are_summed_over_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"BLOCK_L": 4, "BLOCK_M": 2, "BLOCK_C": 4, "num_warps": 1}
    monkeypatch.setattr(MODULE, "_class_config", lambda maps, channels: few)
    check(random_case((11, 9, 2, 3), torch.tensor([2, 0, 2, 2, -100, 0, 2, 2, 9, 2, 0])))


@pytest.mark.parametrize("label", [-100, 7])
def test_nan_in_an_image_without_class_stays_there(label: int) -> None:
    case = random_case((3, 5, 4, 6), torch.tensor([2, label, 0]))
    case.x[1], case.upstream[1] = math.nan, math.nan
    maps, *gradients = run(label_cam, case)
    expected = torch.zeros(4, 6) if label == -100 else torch.full((4, 6), math.nan)
    torch.testing.assert_close(maps[1], expected, equal_nan=True)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert torch.equal(gradients[0][1], torch.zeros(5, 4, 6))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_pixel_spoils_itself_alone(bad: float) -> None:
    case = random_case((3, 5, 4, 6))
    case.x[2, 3, 1, 1] = bad
    maps = label_cam(case.x, case.weight, case.bias, case.labels)
    assert not maps[2, 1, 1].isfinite()
    assert maps.isfinite().sum() == maps.numel() - 1


@pytest.mark.parametrize("asked", range(1, 8))
def test_only_what_is_asked_is_computed(asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case((3, 5, 4, 6))
    assert case.bias is not None
    all_gradients = run(label_cam, case)[1:]
    read: list[int] = []
    original = MODULE._op_weight_gradient
    monkeypatch.setattr(MODULE, "_op_weight_gradient", lambda x, *rest: read.append(x.numel()) or original(x, *rest))
    if not asked & 1:
        monkeypatch.delattr(MODULE, "_op_x_gradient")
    leaves = [tensor.detach().requires_grad_(bool(asked >> i & 1)) for i, tensor in enumerate(case[:3])]
    label_cam(*leaves, case.labels).backward(case.upstream)
    for leaf, gradient in zip(leaves, all_gradients, strict=True):
        assert (leaf.grad is not None) == leaf.requires_grad
        assert leaf.grad is None or torch.equal(leaf.grad, gradient)
    assert read == ([case.x.numel()] if asked & 2 else [0] if asked & 4 else [])


@pytest.mark.parametrize("shape", [(0, 5, 2, 3), (3, 0, 2, 3), (3, 5, 0, 3)])
def test_nothing_to_read_gives_the_bias_or_nothing(shape: tuple[int, int, int, int]) -> None:
    check(random_case(shape, labels=torch.arange(shape[0])))


def test_no_label_gives_no_map_and_zero_gradients() -> None:
    check(random_case((3, 5, 2, 3), torch.zeros(3, 0, dtype=torch.int64)))


@given(
    n=st.integers(1, 4), c=st.integers(1, 9), height=st.integers(1, 5), width=st.integers(1, 5),
    per_image=st.integers(1, 3), layout=st.sampled_from(list(LAYOUTS)), data=st.data(),
)  # fmt: skip
@settings(max_examples=15)
def test_any_shape_label_and_layout_agrees(
    n: int, c: int, height: int, width: int, per_image: int, layout: str, data: st.DataObject
) -> None:
    choices = st.lists(st.sampled_from([-100, -1, 0, 1, 2, 3, 4]), min_size=n * per_image, max_size=n * per_image)
    case = random_case((n, c, height, width), torch.tensor(data.draw(choices)).view(n, per_image))
    check(case._replace(x=LAYOUTS[layout](case.x)))
