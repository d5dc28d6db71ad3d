import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2c_fast.kernels import Slots, gather_pixels, tap

from . import oracles

INDICES = torch.tensor([[0, 11, 5], [7, 7, 2]])  # of 3×4 maps; image 1 names pixel 7 twice


def whole_numbers(*shape: int) -> Tensor:
    """Values whose sums are exact in fp32, so that the order of additions cannot show."""
    return torch.randint(-8, 9, shape).float()


@pytest.fixture
def features() -> Tensor:
    return whole_numbers(2, 5, 3, 4)


def test_worked_example() -> None:
    # [N=1, D=2, H=2, W=2]: pixel 2 is row 1, column 0
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]])
    assert gather_pixels(features, torch.tensor([[2, 1]])).tolist() == [[[3.0, 7.0], [2.0, 6.0]]]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_equals_the_loop(features: Tensor, dtype: torch.dtype) -> None:
    values = gather_pixels(features, INDICES.to(dtype))
    assert torch.equal(values, oracles.gathered(features, INDICES.tolist()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_values_keep_their_dtype_and_bits(dtype: torch.dtype) -> None:
    features = torch.randn(2, 5, 3, 4).to(dtype)
    values = gather_pixels(features, INDICES)
    assert values.dtype == dtype
    assert torch.equal(values, oracles.gathered(features, INDICES.tolist()))


def test_dense_gradient_is_the_derivative() -> None:
    features = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: gather_pixels(f, INDICES), features)


def test_gradient_through_slots_is_the_derivative() -> None:
    def head_and_values(f: Tensor) -> tuple[Tensor, Tensor]:
        tapped, slots = tap(f, 3)
        return tapped.square().sum(1), gather_pixels(tapped, INDICES, slots)

    features = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(head_and_values, features)


def test_slots_change_no_value(features: Tensor) -> None:
    tapped, slots = tap(features, 3)
    assert torch.equal(gather_pixels(tapped, INDICES, slots), gather_pixels(features, INDICES))


def test_tap_copies_nothing(features: Tensor) -> None:
    last = features.contiguous(memory_format=torch.channels_last)
    tapped, _ = tap(last, 3)
    assert tapped.data_ptr() == last.data_ptr()
    assert tapped.stride() == last.stride()


HEADS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": lambda f, z: (f * z).sum(),
    "sum with another branch": lambda f, z: ((f + z) * z.detach()).sum(),
    "twice": lambda f, z: (f * z).sum() + (f.square() * 2).sum(),
    "sum of itself": lambda f, z: ((f + f) * z).sum(),
    "stride-0 gradient": lambda f, z: f.sum(),
    "mean over pixels": lambda f, z: (f.mean((2, 3)) * 12 * z[:, :, 0, 0]).sum(),
    "unused": lambda f, z: z.sum() * 0,
}


def gradients(
    f: Tensor, z: Tensor, head: Callable[[Tensor, Tensor], Tensor], use: Callable[[Tensor], Tensor], tapped: bool
) -> tuple[Tensor, ...]:
    """Gradients of F and of the branch z that the head adds, for a head on F and a use of the gathered columns."""
    through, slots = tap(f, 3) if tapped else (f, None)
    loss = head(through, z) + use(gather_pixels(through, INDICES, slots))
    return torch.autograd.grad(loss, (f, z), materialize_grads=True)


@pytest.mark.parametrize("use", [Tensor.sum, lambda v: (v * v).sum()], ids=["sum", "square"])
@pytest.mark.parametrize("name", HEADS)
def test_tapped_gradients_equal_the_dense_ones_exactly(features: Tensor, name: str, use: Any) -> None:
    f, z = features.requires_grad_(), whole_numbers(*features.shape).requires_grad_()
    dense = gradients(f, z, HEADS[name], use, tapped=False)
    tapped = gradients(f, z, HEADS[name], use, tapped=True)
    assert torch.equal(tapped[0], dense[0])
    assert torch.equal(tapped[1], dense[1])


@pytest.mark.parametrize("tapped", [False, True])
def test_gradients_of_a_repeated_pixel_add(tapped: bool) -> None:
    features = torch.zeros(1, 1, 1, 3, requires_grad=True)
    through, slots = tap(features, 4) if tapped else (features, None)
    values = gather_pixels(through, torch.tensor([[2, 0, 2, 2]]), slots)
    (values * torch.tensor([1.0, 10.0, 100.0, 1000.0]).view(1, 4, 1)).sum().backward()
    assert features.grad is not None
    assert features.grad.flatten().tolist() == [10.0, 0.0, 1101.0]


def test_without_a_gather_the_tap_passes_the_heads_gradient(features: Tensor) -> None:
    features.requires_grad_()
    tapped, _ = tap(features, 3)
    tapped.square().sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad, 2 * features.detach())


def test_a_gather_that_reaches_no_loss_leaves_the_heads_gradient(features: Tensor) -> None:
    features.requires_grad_()
    tapped, slots = tap(features, 3)
    gather_pixels(tapped, INDICES, slots)
    tapped.square().sum().backward()
    assert features.grad is not None
    assert torch.equal(features.grad, 2 * features.detach())


def test_without_a_head_the_columns_alone_arrive(features: Tensor) -> None:
    features.requires_grad_()
    tapped, slots = tap(features, 3)
    gather_pixels(tapped, INDICES, slots).sum().backward()
    assert features.grad is not None
    uses = torch.zeros(2, 12).scatter_add(1, INDICES, torch.ones(2, 3)).view(2, 1, 3, 4)
    assert torch.equal(features.grad, uses.expand(2, 5, 3, 4))


@pytest.mark.parametrize("tapped", [False, True])
@pytest.mark.parametrize("index", [12, -1, 2**31 - 1])
def test_index_out_of_range_gives_nan_and_no_gradient(features: Tensor, index: int, tapped: bool) -> None:
    features.requires_grad_()
    indices = torch.tensor([[0, index, 5], [7, 7, 2]], dtype=torch.int32)
    through, slots = tap(features, 3) if tapped else (features, None)
    values = gather_pixels(through, indices, slots)
    assert values[0, 1].isnan().all()
    assert values.isfinite().sum() == 5 * 5
    values.backward(torch.ones_like(values))
    assert features.grad is not None
    assert features.grad[0, 0].flatten().nonzero().flatten().tolist() == [0, 5]


@pytest.mark.parametrize("tapped", [False, True])
def test_a_nan_pixel_stays_in_its_column(features: Tensor, tapped: bool) -> None:
    features[0, :, 2, 3] = math.nan  # pixel 11
    features.requires_grad_()
    through, slots = tap(features, 3) if tapped else (features, None)
    values = gather_pixels(through, INDICES, slots)
    values.square().sum().backward()
    assert features.grad is not None
    assert values[0, 1].isnan().all()
    assert values.isfinite().sum() == 5 * 5
    assert features.grad.isnan().sum() == 5


@pytest.mark.parametrize(
    "view",
    [
        lambda f: f.contiguous(memory_format=torch.channels_last),
        lambda f: f.transpose(2, 3).contiguous().transpose(2, 3),
        lambda f: torch.cat([f, f], 3)[:, :, :, ::2].contiguous()[:, :, :, :4],
        lambda f: torch.cat([f, f], 1)[:, ::2],
    ],
    ids=["channels_last", "transposed", "cut", "every other channel"],
)
@pytest.mark.parametrize("tapped", [False, True])
def test_strides_do_not_matter(view: Callable[[Tensor], Tensor], tapped: bool) -> None:
    leaf = torch.randn(2, 5, 3, 4, requires_grad=True)
    features = view(leaf)
    through, slots = tap(features, 3) if tapped else (features, None)
    values = gather_pixels(through, INDICES, slots)
    assert torch.equal(values, oracles.gathered(features, INDICES.tolist()))
    (given,) = torch.autograd.grad(values.square().sum() + through.sum(), leaf)
    (expected,) = torch.autograd.grad(
        oracles.gathered(view(leaf), INDICES.tolist()).square().sum() + view(leaf).sum(), leaf
    )
    torch.testing.assert_close(given, expected)


def test_token_features_are_a_view() -> None:
    tokens = torch.randn(2, 12, 5, requires_grad=True)  # [N, T, D]
    tapped, slots = tap(tokens.transpose(1, 2).unsqueeze(-1), 3)
    values = gather_pixels(tapped, INDICES, slots)
    assert torch.equal(values, torch.stack([tokens[n, INDICES[n]] for n in range(2)]))
    values.sum().backward()
    assert tokens.grad is not None
    assert tokens.grad[1, :, 0].tolist() == [0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0]


@pytest.mark.parametrize("tapped", [False, True])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)])
def test_half_precision_gradient_rounds_no_more_than_it_adds(dtype: torch.dtype, rounding: float, tapped: bool) -> None:
    # Positive numbers cancel nothing: each of at most 3 additions to a pixel errs by one rounding.
    features = torch.rand(2, 5, 3, 4).to(dtype).requires_grad_()
    head, columns = torch.rand(2, 5, 3, 4).to(dtype), torch.rand(2, 3, 5).to(dtype)
    through, slots = tap(features, 3) if tapped else (features, None)
    ((through * head).sum() + (gather_pixels(through, INDICES, slots) * columns).sum()).backward()
    truth = head.double()
    for n, row in enumerate(INDICES.tolist()):
        for k, p in enumerate(row):
            truth[n, :, p // 4, p % 4] += columns[n, k].double()
    assert features.grad is not None
    assert features.grad.dtype == dtype
    torch.testing.assert_close(features.grad.double(), truth, rtol=3 * rounding, atol=0)


@given(n=st.integers(1, 3), d=st.integers(1, 3), h=st.integers(1, 3), w=st.integers(1, 3), data=st.data())
@settings(max_examples=30)
def test_any_shape_and_indices_give_the_dense_gradient(n: int, d: int, h: int, w: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 4))
    row = st.lists(st.integers(-1, h * w), min_size=k, max_size=k)
    indices = torch.tensor(data.draw(st.lists(row, min_size=n, max_size=n)))
    f, z = torch.arange(2.0 * n * d * h * w).view(2, n, d, h, w).requires_grad_().unbind()
    columns = torch.arange(n * k * d).view(n, k, d) + 1.0

    def gradient(through: Tensor, slots: Slots | None) -> Tensor:
        outputs = (gather_pixels(through, indices, slots), through + z)
        return torch.autograd.grad(outputs, f, (columns, torch.ones_like(z)))[0]

    assert torch.equal(gradient(*tap(f, k)), gradient(f, None))


def test_an_empty_batch_gathers_nothing() -> None:
    assert gather_pixels(torch.zeros(0, 5, 2, 2), torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3, 5)


def test_slots_serve_one_gather(features: Tensor) -> None:
    tapped, slots = tap(features, 3)
    gather_pixels(tapped, INDICES, slots)
    with pytest.raises(RuntimeError, match="already served a gather; call tap once"):
        gather_pixels(tapped, INDICES, slots)


def test_slots_of_another_shape_are_refused_and_stay_usable(features: Tensor) -> None:
    tapped, slots = tap(features, 3)
    with pytest.raises(ValueError, match=r"opened for \[2, 3, 5\] \[N, K, D\], this gather needs \[2, 2, 5\]"):
        gather_pixels(tapped, INDICES[:, :2], slots)
    gather_pixels(tapped, INDICES, slots)


def test_tap_refuses_what_it_cannot_carry(features: Tensor) -> None:
    with pytest.raises(ValueError, match=r"k ≥ 1 .* k=0"):
        tap(features, 0)
    with pytest.raises(ValueError, match=r"features must be floating-point with 4 dimensions, got shape \[5, 3, 4\]"):
        tap(features[0], 3)
    tap(torch.empty(1, 1, 4096, 4096, device="meta"), 3)
    with pytest.raises(ValueError, match=r"H·W ≤ 16777216.*\[1, 1, 4096, 4097\]"):
        tap(torch.empty(1, 1, 4096, 4097, device="meta"), 3)


def test_refusals_name_what_does_not_fit(features: Tensor) -> None:
    with pytest.raises(ValueError, match=r"features must be floating-point .* torch\.int64"):
        gather_pixels(features.long(), INDICES)
    with pytest.raises(ValueError, match=r"indices must be int32 or int64 with 2 dimensions, got shape \[2\]"):
        gather_pixels(features, INDICES[:, 0])
    with pytest.raises(ValueError, match=r"indices must be int32 or int64 .* torch\.float32"):
        gather_pixels(features, INDICES.float())
    with pytest.raises(ValueError, match=r"len\(indices\) is 1 but len\(features\) is 2"):
        gather_pixels(features, INDICES[:1])
    with pytest.raises(ValueError, match=r"features on cpu, indices on meta"):
        gather_pixels(features, INDICES.to("meta"))
