"""The kernels of pooled_head."""

import math
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2c_fast.kernels import label_cam, pooled_head, pooled_head_reference

from .accuracy import DTYPES, LAYOUTS, assert_no_worse, poison

MODULE: Any = sys.modules["i2c_fast.kernels.pooled_head"]  # the package's attribute of that name is the function

# Maps of less than a step of pixels, of one strip and of several; less than a chunk of channels, several, and more
# chunks than are combined in one step.
SIZES = [(3, 1, 1, 1), (3, 3, 7, 7), (5, 64, 13, 17), (1, 2050, 3, 5), (2, 130, 28, 28), (1, 3, 32, 32)]


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)


class Case(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    labels: Tensor


def random_case(size: tuple[int, ...], labels: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Case:
    """Four classes; labels are drawn, and the first of several images is ignored, unless they are given."""
    n, c = size[:2]
    generator = torch.Generator().manual_seed(c)
    if labels is None:
        labels = torch.randint(4, (n,), generator=generator)
        labels[: n // 2 and 1] = -100
    x = torch.randn(size, generator=generator).to(dtype)
    return Case(x, torch.randn(4, c, generator=generator), torch.randn(4, generator=generator), labels)


def run(function: Callable[..., tuple[Tensor, Tensor]], case: Case, **options: int) -> tuple[Tensor, ...]:
    """Logits and maps, then the gradients of x, weight and bias."""
    leaves = [tensor.detach().requires_grad_() for tensor in case[:3] if tensor is not None]
    logits, maps = function(leaves[0], leaves[1], leaves[2] if len(leaves) == 3 else None, case.labels, **options)
    upstream = torch.linspace(-1, 2, logits.numel(), dtype=torch.float64).view(logits.shape)
    assert not maps.requires_grad
    return logits.detach(), maps, *torch.autograd.grad(logits, leaves, upstream.to(logits.dtype))


def check(case: Case, **options: int) -> None:
    exact = Case(*(None if t is None else t if t is case.labels else t.double() for t in case))
    results, plain = run(pooled_head, case, **options), run(pooled_head_reference, case, **options)
    for got, eager, truth in zip(results, plain, run(pooled_head_reference, exact, **options), strict=True):
        assert_no_worse(got, eager, truth)


@pytest.mark.parametrize(
    ("size", "dtype"), [*((size, torch.float32) for size in SIZES), *((SIZES[2], dtype) for dtype in DTYPES[1:])]
)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_logits_maps_and_gradients_are_as_exact_as_plain_pytorch(
    size: tuple[int, int, int, int], layout: str, dtype: torch.dtype
) -> None:
    case = random_case(size, dtype=dtype)
    check(case._replace(x=LAYOUTS[layout](case.x)))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_strips_than_are_combined_in_one_step_are_as_exact_as_plain_pytorch(layout: str) -> None:
    case = random_case((1, 3, 49, 49))
    check(case._replace(x=LAYOUTS[layout](case.x)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_matter(layout: str) -> None:
    case = random_case((3, 5, 6, 7))
    check(case._replace(x=LAYOUTS[layout](case.x)))


def test_expanded_features_serve_every_image() -> None:
    case = random_case((3, 5, 4, 6))
    check(case._replace(x=case.x[:1].expand(3, -1, -1, -1)))


def test_many_strips_and_chunks_agree_with_label_cam() -> None:
    case = random_case((1, 300, 24, 24), torch.tensor([2]))
    _, maps = pooled_head(*case)
    torch.testing.assert_close(maps, label_cam(case.x, case.weight, case.bias, case.labels), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_maps_are_the_same_bits_however_many_images_share_the_batch(layout: str) -> None:
    images = random_case((3, 5, 12, 12), torch.tensor([1, 2, 3]))
    images = images._replace(x=LAYOUTS[layout](images.x))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "ENOUGH", 1)  # as in a batch of very many
        logits, maps = pooled_head(*images)
    for i in range(3):
        alone = images._replace(x=images.x[i : i + 1], labels=images.labels[i : i + 1])
        alone_logits, alone_map = pooled_head(*alone)
        assert torch.equal(alone_map[0], maps[i])
        torch.testing.assert_close(alone_logits[0], logits[i])


def test_no_bias_is_no_bias() -> None:
    check(random_case((3, 5, 4, 6))._replace(bias=None))


def test_a_strided_weight_and_int32_labels_serve_too() -> None:
    case = random_case((3, 5, 4, 6), torch.tensor([3, -100, 1], dtype=torch.int32))
    check(case._replace(weight=case.weight.t().contiguous().t()))


@pytest.mark.parametrize("label", [-100, 4, -1, 2**40, -(2**40)])
def test_an_image_without_class_is_classified_but_not_mapped(label: int) -> None:
    check(random_case((3, 5, 4, 6), torch.tensor([3, label, 2])))


def test_another_label_may_be_the_ignored_one() -> None:
    check(random_case((3, 5, 4, 6), torch.tensor([3, 1, -100])), ignore_index=1)


def test_a_nan_image_leaves_the_others_alone() -> None:
    case = random_case((3, 5, 4, 6))
    expected_logits, expected_maps = pooled_head(*case)
    case.x[1, 0, 0, 0] = math.nan
    logits, maps = pooled_head(*case)
    assert torch.equal(logits[[0, 2]], expected_logits[[0, 2]])
    assert torch.equal(maps[[0, 2]], expected_maps[[0, 2]])
    assert logits[1].isnan().all()
    assert maps[1].isnan().tolist()[0][0]
    assert maps[1].isnan().sum() == 1


def test_an_ignored_image_of_nan_has_a_map_of_zeros() -> None:
    case = random_case((3, 5, 4, 6), torch.tensor([3, -100, 2]))
    case.x[1] = math.nan
    _, maps = pooled_head(*case)
    assert torch.equal(maps[1], torch.zeros(4, 6))


@pytest.mark.parametrize("size", [(3, 5, 4, 6), (1, 3, 17, 17)])  # one strip, several
def test_logits_follow_the_ambient_autocast_and_maps_do_not(size: tuple[int, ...]) -> None:
    case = random_case(size)
    logits, maps = pooled_head(*case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast_logits, cast_maps = pooled_head(*case)
    assert cast_logits.dtype == torch.bfloat16
    assert torch.equal(cast_maps, maps)
    torch.testing.assert_close(cast_logits.float(), logits, rtol=2**-6, atol=2**-6)


def test_the_gradient_of_the_features_is_an_expanded_view() -> None:
    case = random_case((3, 5, 4, 6), dtype=torch.bfloat16)
    x = case.x.requires_grad_()
    logits, _ = pooled_head(x, *case[1:])
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    assert gradient.dtype == torch.bfloat16
    assert gradient.stride()[2:] == (0, 0)


def test_frozen_features_need_no_gradient() -> None:
    case = random_case((3, 5, 4, 6))
    weight = case.weight.requires_grad_()
    logits, _ = pooled_head(case.x, weight, case.bias, case.labels)
    logits.sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, case.x.mean((2, 3)).sum(0).expand(4, -1))


def test_no_image_and_no_channel_are_no_launch() -> None:
    check(random_case((0, 5, 2, 3)))
    check(random_case((3, 0, 2, 3)))


@given(
    n=st.integers(1, 4), c=st.integers(1, 9), height=st.integers(1, 7), width=st.integers(1, 7),
    layout=st.sampled_from(list(LAYOUTS)), data=st.data(),
)  # fmt: skip
@settings(max_examples=15)
def test_any_shape_label_and_layout_agrees(
    n: int, c: int, height: int, width: int, layout: str, data: st.DataObject
) -> None:
    choices = st.lists(st.sampled_from([-100, -1, 0, 1, 2, 3, 4]), min_size=n, max_size=n)
    case = random_case((n, c, height, width), torch.tensor(data.draw(choices)))
    check(case._replace(x=LAYOUTS[layout](case.x)))
