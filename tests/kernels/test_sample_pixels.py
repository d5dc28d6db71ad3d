import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2c_fast.kernels import normalize_cam, sample_pixels

from . import oracles

SEED = torch.tensor([7, 3])


def flat(*values: float) -> Tensor:
    """One map of one row."""
    return torch.tensor([[values]], dtype=torch.float32)


def test_worked_example() -> None:
    # range 0…10, δ .7: above 7 lie pixels 1 (8) and 3 (10); 7 itself is not above
    indices, counts = sample_pixels(flat(0, 8, 7, 10), 2, 0.7, SEED)
    assert sorted(indices[0].tolist()) == [1, 3]
    assert counts.tolist() == [2]
    assert indices.dtype == counts.dtype == torch.int32


@pytest.mark.parametrize("choice", ["random", "first"])
@pytest.mark.parametrize("seed", [(0, 0), (7, 3), (-5, 2**33 + 1), (2**40 + 3, 9)])
def test_equals_the_loop(choice: Any, seed: tuple[int, int]) -> None:
    maps = torch.randn(4, 5, 6)
    indices, counts = sample_pixels(maps, 3, 0.4, torch.tensor(seed), choice=choice)
    expected = oracles.seeds(maps, 3, 0.4, *seed, first=choice == "first")
    assert (indices.tolist(), counts.tolist()) == expected


def test_draws_are_distinct_pixels_above_the_threshold() -> None:
    maps = torch.rand(50, 8, 8)
    indices, counts = sample_pixels(maps, 5, 0.5, SEED)
    drawn = normalize_cam(maps).flatten(1).gather(1, indices.long())
    assert (counts >= 5).all()
    assert (drawn > 0.5).all()
    assert all(len(set(row)) == 5 for row in indices.tolist())


def test_counts_are_the_pixels_above() -> None:
    maps = torch.rand(20, 7, 9)
    _, counts = sample_pixels(maps, 1, 0.7, SEED)
    assert torch.equal(counts.long(), (normalize_cam(maps) > 0.7).sum((1, 2)))


def test_fewer_pixels_than_seeds_repeat_in_draw_order() -> None:
    indices, counts = sample_pixels(flat(0, 9, 10, 1, 9.5), 8, 0.7, SEED)
    row = indices[0].tolist()
    assert counts.tolist() == [3]
    assert sorted(row[:3]) == [1, 2, 4]
    assert row == (row[:3] * 3)[:8]


def test_fewer_seeds_are_the_start_of_more() -> None:
    maps = torch.rand(6, 5, 5)
    many, _ = sample_pixels(maps, 7, 0.2, SEED)
    few, _ = sample_pixels(maps, 2, 0.2, SEED)
    assert torch.equal(few, many[:, :2])


def test_more_seeds_than_pixels() -> None:
    indices, counts = sample_pixels(torch.tensor([[[0.0, 1.0], [1.0, 1.0]]]), 10, 0.5, SEED)
    row = indices[0].tolist()
    assert counts.tolist() == [3]
    assert sorted(row[:3]) == [1, 2, 3]
    assert row == (row[:3] * 4)[:10]


@pytest.mark.parametrize("choice", ["random", "first"])
@pytest.mark.parametrize("value", [0.0, -2.5, 1e30])
@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
def test_constant_map_gives_its_first_pixel_and_count_zero(choice: Any, value: float, size: tuple[int, int]) -> None:
    indices, counts = sample_pixels(torch.full((1, *size), value), 3, 0.7, SEED, choice=choice)
    assert indices.tolist() == [[0, 0, 0]]
    assert counts.tolist() == [0]


def test_threshold_rounded_up_to_the_maximum_gives_the_first_brightest_pixel() -> None:
    # One fp32 step above 1 the range is 2⁻²³; .9 of it, added to 1, rounds to the maximum, which is not above itself.
    top = 1 + 2**-23
    indices, counts = sample_pixels(flat(1, top, 1, top), 3, 0.9, SEED)
    assert indices.tolist() == [[1, 1, 1]]
    assert counts.tolist() == [0]


@pytest.mark.parametrize(("values", "brightest"), [((0, math.inf, 1, math.inf), 1), ((3, -math.inf, 5, 1), 2)])
def test_infinite_range_gives_the_first_brightest_pixel(values: tuple[float, ...], brightest: int) -> None:
    indices, counts = sample_pixels(flat(*values), 2, 0.7, SEED)
    assert indices.tolist() == [[brightest, brightest]]
    assert counts.tolist() == [0]


def test_a_map_with_nan_gives_pixel_zero_and_leaves_the_others_alone() -> None:
    maps = torch.rand(3, 4, 4)
    expected, expected_counts = sample_pixels(maps, 3, 0.5, SEED)
    maps[1, 3, 3] = math.nan
    indices, counts = sample_pixels(maps, 3, 0.5, SEED)
    assert indices[1].tolist() == [0, 0, 0]
    assert counts[1] == 0
    assert torch.equal(indices[[0, 2]], expected[[0, 2]])
    assert torch.equal(counts[[0, 2]], expected_counts[[0, 2]])


@pytest.mark.parametrize("values", [(0, 1), (1, 0)])
def test_two_pixels_give_the_brighter_one(values: tuple[float, ...]) -> None:
    indices, counts = sample_pixels(flat(*values), 3, 0.7, SEED)
    assert indices.tolist() == [[values.index(1)] * 3]
    assert counts.tolist() == [1]


def test_first_takes_row_major_order_and_wraps() -> None:
    maps = torch.tensor([[[0.0, 9.0], [8.0, 10.0]]])
    assert sample_pixels(maps, 2, 0.5, SEED, choice="first")[0].tolist() == [[1, 2]]
    assert sample_pixels(maps, 7, 0.5, SEED, choice="first")[0].tolist() == [[1, 2, 3, 1, 2, 3, 1]]


def test_draws_are_uniform() -> None:
    maps = torch.cat([torch.zeros(20_000, 1, 2), torch.ones(20_000, 1, 10)], 2)
    indices, _ = sample_pixels(maps, 3, 0.5, SEED)
    for i in range(3):  # each seed by itself: 9 degrees of freedom, χ² < 33.7 with probability .9999
        observed = torch.bincount(indices[:, i].long(), minlength=12)[2:].double()
        assert float((observed - 2000).square().sum() / 2000) < 33.7
    # Which pixel follows which: 90 ordered pairs, χ² with 89 degrees of freedom < 143.
    ordered = torch.bincount(indices[:, 0].long() * 12 + indices[:, 1].long(), minlength=144).double()
    expected = 20_000 / 90
    assert float((ordered[ordered > 0] - expected).square().sum() / expected) < 143


def test_draws_of_successive_steps_are_uniform() -> None:
    maps = torch.ones(1, 1, 5)
    maps[0, 0, 0] = 0
    drawn = [int(sample_pixels(maps, 1, 0.5, torch.tensor([1, step]))[0]) for step in range(1000)]
    observed = torch.bincount(torch.tensor(drawn), minlength=5)[1:].double()
    assert float((observed - 250).square().sum() / 250) < 21.1  # 3 degrees of freedom, probability .9999


def test_a_draw_is_a_function_of_seed_and_step() -> None:
    maps = torch.rand(8, 9, 9)
    draw = sample_pixels(maps, 3, 0.2, SEED)[0]
    assert torch.equal(draw, sample_pixels(maps, 3, 0.2, SEED.clone())[0])
    assert not torch.equal(draw, sample_pixels(maps, 3, 0.2, torch.tensor([7, 4]))[0])
    assert not torch.equal(draw, sample_pixels(maps, 3, 0.2, torch.tensor([8, 3]))[0])


def test_equal_maps_draw_differently() -> None:
    indices, _ = sample_pixels(torch.rand(9, 9).expand(8, 9, 9), 3, 0.2, SEED)
    assert len({tuple(row) for row in indices.tolist()}) == 8


def test_int32_seed_draws_as_an_int64_one() -> None:
    maps = torch.rand(4, 6, 6)
    assert torch.equal(sample_pixels(maps, 3, 0.2, SEED.int())[0], sample_pixels(maps, 3, 0.2, SEED)[0])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_image_ids_make_a_slice_draw_as_the_whole_batch(dtype: torch.dtype) -> None:
    maps = torch.rand(6, 7, 7)
    whole, whole_counts = sample_pixels(maps, 3, 0.3, SEED)
    chosen = torch.tensor([4, 1, 5])
    part, counts = sample_pixels(maps[chosen], 3, 0.3, SEED, image_ids=chosen.to(dtype))
    assert torch.equal(part, whole[chosen])
    assert torch.equal(counts, whole_counts[chosen])


def test_raw_and_normalized_maps_draw_the_same() -> None:
    # Multiples of 1/64 with a range of 4: normalization, δ·range and the sum are all exact in fp32.
    maps = torch.randint(1, 256, (20, 8, 8)) / 64
    maps[:, 0, 0], maps[:, 7, 7] = 0, 4
    raw = sample_pixels(maps - 1, 4, 0.75, SEED)
    normalized = sample_pixels(normalize_cam(maps - 1), 4, 0.75, SEED)
    assert torch.equal(raw[0], normalized[0])
    assert torch.equal(raw[1], normalized[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_draws_as_its_fp32_value(dtype: torch.dtype) -> None:
    maps = torch.randn(6, 5, 5).to(dtype)
    indices, counts = sample_pixels(maps, 3, 0.5, SEED)
    expected, expected_counts = sample_pixels(maps.float(), 3, 0.5, SEED)
    assert torch.equal(indices, expected)
    assert torch.equal(counts, expected_counts)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_threshold_is_not_rounded_to_half_precision(dtype: torch.dtype) -> None:
    # Half precision rounds .3 up: in fp32 that pixel is above .3, in half precision it would equal the threshold.
    assert sample_pixels(flat(0, 0.3, 1).to(dtype), 1, 0.3, SEED)[1].tolist() == [2]


def test_fp64_maps_are_compared_in_fp32() -> None:
    maps = flat(0, 0, 1).double()
    maps[0, 0, 1] = float(torch.tensor(0.3)) + 1e-12  # above fp32's .3, and equal to it in fp32
    assert sample_pixels(maps, 1, 0.3, SEED)[1].tolist() == [1]


def test_strides_do_not_matter() -> None:
    maps = torch.randn(4, 6, 8)
    for view in (maps.transpose(1, 2), maps[:, ::2, 1:], maps[:1].expand(3, -1, -1)):
        draw, counts = sample_pixels(view, 3, 0.3, SEED)
        expected, expected_counts = sample_pixels(view.contiguous(), 3, 0.3, SEED)
        assert torch.equal(draw, expected)
        assert torch.equal(counts, expected_counts)


def test_maps_are_taken_as_constants() -> None:
    indices, _ = sample_pixels(torch.rand(2, 3, 3, requires_grad=True), 2, 0.5, SEED)
    assert not indices.requires_grad


def test_threshold_zero_leaves_out_the_minimum_alone() -> None:
    assert sample_pixels(flat(1, 2, 1, 3), 1, 0.0, SEED)[1].tolist() == [2]


def test_an_empty_batch_has_no_draw() -> None:
    indices, counts = sample_pixels(torch.zeros(0, 2, 2), 3, 0.5, SEED)
    assert indices.shape == (0, 3)
    assert counts.shape == (0,)


@given(
    values=st.lists(st.integers(-8, 8), min_size=6, max_size=6),
    k=st.integers(1, 8),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 0.7, 0.99]),
    run=st.integers(-(2**63), 2**63 - 1),
    step=st.integers(0, 2**63 - 1),
    first=st.booleans(),
)
@settings(max_examples=60)
def test_any_map_equals_the_loop(values: list[int], k: int, threshold: float, run: int, step: int, first: bool) -> None:
    maps = torch.tensor(values).float().view(1, 2, 3)
    choice: Any = "first" if first else "random"
    indices, counts = sample_pixels(maps, k, threshold, torch.tensor([run, step]), choice=choice)
    assert (indices.tolist(), counts.tolist()) == oracles.seeds(maps, k, threshold, run, step, first=first)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"maps": torch.zeros(2, 2)}, r"maps must be floating-point with 3 dimensions, got shape \[2, 2\]"),
        ({"maps": torch.zeros(1, 2, 2, dtype=torch.int64)}, r"maps must be floating-point .* torch\.int64"),
        ({"maps": torch.zeros(1, 0, 2)}, r"at least one pixel, got \[1, 0, 2\]"),
        ({"k": 0}, r"k must be at least 1 .* k=0"),
        ({"threshold": 1.0}, r"threshold in \[0, 1\), .* threshold=1\.0"),
        ({"threshold": -0.1}, r"threshold=-0\.1"),
        ({"threshold": math.nan}, r"threshold=nan"),
        ({"choice": "last"}, r"choice must be one of random, first, got 'last'"),
        ({"seed": torch.tensor([1, 2, 3])}, r"len\(seed\) is 3"),
        ({"seed": torch.tensor([1.0, 2.0])}, r"seed must be int32 or int64"),
        ({"image_ids": torch.tensor([1])}, r"len\(image_ids\) is 1 but len\(maps\) is 2"),
        ({"image_ids": torch.tensor([0.0, 1.0])}, r"image_ids must be int32 or int64"),
        ({"seed": torch.zeros(2, dtype=torch.int64, device="meta")}, r"seed on meta"),
    ],
)
def test_refusals_name_what_does_not_fit(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"maps": torch.zeros(2, 3, 3), "k": 2, "threshold": 0.5, "seed": SEED}
    with pytest.raises(ValueError, match=message):
        sample_pixels(**(arguments | changed))
