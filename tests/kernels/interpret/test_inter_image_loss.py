"""The kernels of inter_image_loss."""

import math
import sys
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2c_fast import InterImageLoss
from i2c_fast.kernels import InterImageOutput, inter_image_loss, inter_image_loss_reference, tap
from i2c_fast.ranks import rows_of_table, table_of_classes

from .accuracy import DTYPES, LAYOUTS, assert_no_worse
from .objective import CENTERS, GROUPS, LABELS, poison, use_small_blocks

MODULE = sys.modules["i2c_fast.kernels.inter_image_loss"]  # the package's attribute of that name is the function
DISTANCES = ["squared_l2", "l2"]
# N, D, H, W, K
SIZES = [
    (1, 1, 1, 1, 1), (3, 3, 7, 7, 3), (5, 64, 13, 17, 4), (3, 2050, 7, 7, 3), (9, 3, 28, 28, 7), (3, 5, 32, 32, 100),
    (2, 3, 128, 128, 1),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _poisoned_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch)


class Case(NamedTuple):
    features: Tensor
    indices: Tensor
    labels: Tensor
    centers: Tensor

    def double(self) -> "Case":
        return Case(self.features.double(), self.indices, self.labels, self.centers.double())


def random_case(n: int, d: int, h: int, w: int, k: int, dtype: torch.dtype = torch.float32) -> Case:
    """Labels without one out of range, which makes GC NaN; indices with repeats where there is room."""
    generator = torch.Generator().manual_seed(n + d + h + k)
    indices = torch.randint(h * w, (n, k), generator=generator, dtype=torch.int32)
    indices[:, k // 2] = indices[:, 0]
    labels = torch.tensor([{70: 4, -2: 2}.get(label, label) for label in LABELS[:n]])
    centers = torch.randn(CENTERS, d, generator=generator)
    return Case(torch.randn(n, d, h, w, generator=generator).to(dtype), indices, labels, centers)


class Results(NamedTuple):
    judged: tuple[Tensor, ...]  # SC, GC, class means, gradients of features and centers
    exact: tuple[Tensor, ...]  # counts of pairs and classes, labels and counts of the means


def run(function: Any, case: Case, weights: tuple[float, float] = (-1.5, 0.75), **options: Any) -> Results:
    features, centers = case.features.detach().requires_grad_(), case.centers.detach().requires_grad_()
    sums: InterImageOutput = function(features, case.indices, case.labels, centers, **options)
    # Two gradients of different sizes, each straight into its loss.
    upstream = [torch.tensor(weight, dtype=sums.sc.dtype) for weight in weights]
    gradients = torch.autograd.grad((sums.sc, sums.gc), (features, centers), upstream)
    of_class = sums.class_means
    return Results(
        (sums.sc.detach(), sums.gc.detach(), of_class.means, *gradients),
        (sums.pairs, sums.classes, of_class.labels, of_class.counts),
    )


def check(case: Case, **options: Any) -> None:
    got = run(inter_image_loss, case, **options)
    eager = run(inter_image_loss_reference, case, **options)
    truth = run(inter_image_loss_reference, case.double(), **options)
    for mine, plain, exact in zip(got.judged, eager.judged, truth.judged, strict=True):
        assert_no_worse(mine, plain, exact)
    for mine, plain in zip(got.exact, eager.exact, strict=True):
        assert mine.dtype == plain.dtype
        assert torch.equal(mine, plain)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: tuple[int, int, int, int, int], distance: Any) -> None:
    check(random_case(*size), distance=distance)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_reductions(reduction: Any, distance: Any) -> None:
    check(random_case(9, 6, 3, 3, 3), reduction=reduction, distance=distance, groups=torch.tensor(GROUPS))


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_gradient_of_means_is_the_derivative_in_fp64(distance: Any) -> None:
    case = random_case(5, 2, 2, 2, 2).double()

    def means(features: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
        sums = inter_image_loss(features, *case[1:3], centers, distance=distance, reduction="mean")
        return sums.sc, sums.gc

    assert torch.autograd.gradcheck(means, (case.features.requires_grad_(), case.centers.requires_grad_()))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_precisions(dtype: torch.dtype, distance: Any) -> None:
    check(random_case(5, 40, 5, 5, 3, dtype), distance=distance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    case = random_case(5, 6, 4, 3, 3)
    check(case._replace(features=LAYOUTS[layout](case.features)))


def test_token_features() -> None:
    case = random_case(5, 6, 12, 1, 3)
    tokens = case.features.flatten(2).transpose(1, 2).contiguous()
    check(case._replace(features=tokens.transpose(1, 2).unsqueeze(-1)))


def test_one_map_for_all_images() -> None:
    case = random_case(5, 6, 4, 3, 3)
    check(case._replace(features=case.features[:1].expand(5, -1, -1, -1)))


def test_strides_and_integer_types_of_the_small_arguments() -> None:
    case = random_case(9, 3, 2, 3, 2)
    check(
        Case(
            case.features,
            case.indices.long().T.contiguous().T,
            case.labels.int().repeat_interleave(2)[::2],
            case.centers.T.contiguous().T,
        ),
        groups=torch.tensor(GROUPS, dtype=torch.int32).repeat_interleave(2)[::2],
    )


@pytest.mark.parametrize("distance", DISTANCES)
def test_batches_larger_than_the_blocks(monkeypatch: pytest.MonkeyPatch, distance: Any) -> None:
    for name in ("inter_image_loss", "class_means"):
        use_small_blocks(monkeypatch, sys.modules[f"i2c_fast.kernels.{name}"])
    check(random_case(9, 300, 2, 3, 2), distance=distance)  # three chunks


def test_the_gradient_has_the_layout_of_the_features() -> None:
    case = random_case(3, 6, 4, 3, 2)
    for layout in (torch.channels_last, torch.contiguous_format):
        features = case.features.contiguous(memory_format=layout)
        gradient = run(inter_image_loss, case._replace(features=features)).judged[3]
        assert gradient.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distance", DISTANCES)
def test_slots(dtype: torch.dtype, distance: Any) -> None:
    def tapped(function: Any) -> Any:
        def call(features: Tensor, *arguments: Any, **options: Any) -> InterImageOutput:
            _, slots = tap(features, 3)
            result: InterImageOutput = function(features, *arguments, slots=slots, **options)
            return result

        return call

    case = random_case(5, 6, 4, 3, 3, dtype)
    got = run(tapped(inter_image_loss), case, distance=distance)
    eager = run(inter_image_loss_reference, case, distance=distance)
    truth = run(inter_image_loss_reference, case.double(), distance=distance)
    for mine, plain, exact in zip(got.judged, eager.judged, truth.judged, strict=True):
        assert_no_worse(mine, plain, exact)


def test_a_head_that_uses_the_tapped_features_twice() -> None:
    case = random_case(5, 6, 4, 3, 3)
    features, weight = case.features.requires_grad_(), torch.randn(6, 4, 3)
    tapped, slots = tap(features, 3)
    through = inter_image_loss(tapped, *case[1:], slots=slots)
    (got,) = torch.autograd.grad(through.sc + through.gc + (tapped + tapped * weight).sum(), features)
    plain = inter_image_loss_reference(features, *case[1:])
    (expected,) = torch.autograd.grad(plain.sc + plain.gc + (features + features * weight).sum(), features)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("which", ["sc", "gc"])
@pytest.mark.parametrize("tapped", [False, True])
def test_one_loss_without_the_other(which: str, tapped: bool) -> None:
    case = random_case(5, 6, 4, 3, 3)
    features = case.features.requires_grad_()
    slots = tap(features, 3)[1] if tapped else None
    (got,) = torch.autograd.grad(getattr(inter_image_loss(features, *case[1:], slots=slots), which), features)
    (expected,) = torch.autograd.grad(getattr(inter_image_loss_reference(features, *case[1:]), which), features)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("index", [12, -1, 2**40])
def test_an_index_outside_of_the_map_is_nan_and_gets_no_gradient(index: int, distance: Any) -> None:
    case = random_case(5, 6, 4, 3, 3)
    indices = case.indices.long()
    indices[2, 1] = index  # image 2 is the partner of image 0
    got = run(inter_image_loss, case._replace(indices=indices), distance=distance)
    plain = run(inter_image_loss_reference, case._replace(indices=indices), distance=distance)
    for mine, theirs in zip(got.judged, plain.judged, strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True)
    assert got.judged[3][[1, 3, 4]].isfinite().all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_labels_out_of_range_make_gc_nan_and_nothing_else(distance: Any) -> None:
    case = random_case(9, 3, 2, 3, 2)._replace(labels=torch.tensor(LABELS))
    check(case, distance=distance)
    got = run(inter_image_loss, case, distance=distance)
    assert got.judged[1].isnan()
    assert all(result.isfinite().all() for result in (got.judged[0], *got.judged[2:]))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_image_spoils_no_other_class(bad: float, distance: Any) -> None:
    case = random_case(6, 4, 2, 3, 2)
    case.features[2] = bad  # with image 0 of class 1
    got = run(inter_image_loss, case, distance=distance)
    _, _, means, to_features, to_centers = got.judged
    assert means[[1, 5]].isfinite().all() and not means[0].isfinite().any()
    assert to_features[[1, 3, 4, 5]].isfinite().all()
    assert to_centers[[0, 2, 3, 4]].isfinite().all()


@pytest.mark.parametrize("labels", [[-100, -100, -100], [0, 1, 2], [3, -100, 4]])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_batches_without_pairs_or_classes(labels: list[int], reduction: Any) -> None:
    check(random_case(3, 4, 2, 3, 2)._replace(labels=torch.tensor(labels)), reduction=reduction)


def test_an_empty_batch() -> None:
    case = Case(torch.zeros(0, 3, 2, 2), torch.zeros(0, 2, dtype=torch.int32), torch.zeros(0).long(), torch.zeros(4, 3))
    check(case)


def test_two_runs_give_the_same_bits() -> None:
    case = random_case(9, 70, 3, 3, 5)
    first, second = (run(inter_image_loss, case, distance="l2") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.judged, second.judged, strict=True))


@given(
    labels=st.lists(st.sampled_from([-100, 0, 1, 3]), min_size=1, max_size=6),
    grouped=st.booleans(),
    seeds=st.integers(1, 5),
    options=st.fixed_dictionaries(
        {"distance": st.sampled_from(DISTANCES), "reduction": st.sampled_from(["sum", "mean"])}
    ),
)
@settings(max_examples=25)
def test_any_batch(labels: list[int], grouped: bool, seeds: int, options: dict[str, Any]) -> None:
    case = random_case(len(labels), 2, 2, 2, seeds)._replace(labels=torch.tensor(labels))
    check(case, groups=torch.tensor(GROUPS[: len(labels)]) if grouped else None, **options)


def test_the_module_trains_as_with_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(steps: int) -> list[Tensor]:
        loss = InterImageLoss(5, 4, k=2, threshold=0.4, alpha=0.5, distance="l2")
        seen = []
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            features = torch.randn(6, 4, 3, 5, generator=generator, requires_grad=True)
            terms = loss(features, torch.rand(6, 3, 5, generator=generator), torch.tensor([1, 3, 1, -100, 3, 0]))
            (0.3 * terms.sc + 0.7 * terms.gc).backward()
            assert features.grad is not None
            seen += [terms.sc.detach(), terms.gc.detach(), terms.counts, features.grad]
        return seen + list(loss.state_dict().values())

    got = train(3)
    names = [name for name in sys.modules if name.startswith("i2c_fast.kernels.")]
    for name in names:
        monkeypatch.setattr(sys.modules[name], "runs_triton", lambda tensor: False, raising=False)
    for mine, plain in zip(got, train(3), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-6)


class Together:
    """The exchange of two ranks in one process, through a table of classes or row by row."""

    ranks = 2

    def __init__(self, rows: list[Tensor], table: bool) -> None:
        self.rows, self.table = rows, table

    def __call__(self, rows: Tensor, channels: int, k: int, distance: Any) -> Tensor:
        if not self.table:
            return torch.cat(self.rows)
        tables = [table_of_classes(own, CENTERS, channels, k, distance) for own in self.rows]
        return rows_of_table(tables[0] + tables[1], channels, k, distance)


@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("k", [1, 3])
def test_two_ranks_that_exchange_rows_compute_what_one_computes(table: bool, distance: Any, k: int) -> None:
    case = random_case(8, 6, 4, 3, k)._replace(labels=torch.tensor([0, 0, 3, -100, 3, 3, 0, 1]))
    halves = [slice(0, 4), slice(4, 8)]
    mine = [Case(*(tensor[half] for tensor in case[:3]), case.centers) for half in halves]
    rows = [MODULE._op_rows(*own[:3], None, distance)[2] for own in mine]
    parts = [run(inter_image_loss, own, distance=distance, exchange=Together(rows, table)) for own in mine]
    whole = run(inter_image_loss, case, distance=distance, groups=torch.arange(8) // 4)
    for part in parts:
        for got, expected in zip(part.judged[:2], whole.judged[:2], strict=True):
            torch.testing.assert_close(got, expected)
        torch.testing.assert_close(part.judged[4], whole.judged[4])
        assert [*map(int, part.exact[:2])] == [*map(int, whole.exact[:2])]
    # The mean over ranks of what each gets, of which the other's images have nothing.
    torch.testing.assert_close(torch.cat([part.judged[3] for part in parts]) / 2, whole.judged[3])


def test_refusals_name_what_does_not_fit() -> None:
    case = random_case(5, 6, 4, 3, 3)
    with pytest.raises(ValueError, match=r"reduction must be one of mean, sum, got 'none'"):
        inter_image_loss(*case, reduction="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"slots were opened for \[5, 2, 6\] .* needs \[5, 3, 6\]"):
        inter_image_loss(*case, slots=tap(case.features, 2)[1])
    slots = tap(case.features, 3)[1]
    inter_image_loss(*case, slots=slots)
    with pytest.raises(RuntimeError, match=r"these slots already served a gather"):
        inter_image_loss(*case, slots=slots)
