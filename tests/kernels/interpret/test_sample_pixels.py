"""The kernel of sample_pixels draws exactly what its reference draws."""

import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from i2c_fast.kernels import sample_pixels, sample_pixels_reference
from i2c_fast.kernels.sample_pixels import SeedChoice

MODULE = sys.modules["i2c_fast.kernels.sample_pixels"]  # the package's attribute of that name is the function
SEED = torch.tensor([(11 << 40) + 7, (5 << 33) + 3])  # both words of the seed and of the step count


def random_maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_equal(
    maps: Tensor, k: int, threshold: float = 0.5, seed: Tensor = SEED, **options: Any
) -> tuple[Tensor, Tensor]:
    drawn = sample_pixels(maps, k, threshold, seed, **options)
    expected = sample_pixels_reference(maps, k, threshold, seed, **options)
    for got, wanted in zip(drawn, expected, strict=True):
        assert got.dtype == torch.int32
        assert torch.equal(got, wanted)
    return drawn


@pytest.mark.parametrize("choice", ["random", "first"])
@pytest.mark.parametrize(
    ("height", "width", "k"),
    [(1, 1, 3), (7, 7, 1), (7, 7, 100), (7, 7, 16), (7, 7, 17), (13, 17, 4), (28, 28, 3), (32, 32, 7)],
)
def test_draws_equal_the_reference(height: int, width: int, k: int, choice: SeedChoice) -> None:
    assert_equal(random_maps(1 if height > 13 else 3, height, width), k, choice=choice)


def test_draws_from_more_than_one_block_equal_the_reference() -> None:
    assert_equal(random_maps(1, 46, 47), 3)


@pytest.mark.parametrize("choice", ["random", "first"])
@pytest.mark.parametrize("k", [1, 5, 32])
def test_best_seeds_of_many_blocks_are_kept(monkeypatch: pytest.MonkeyPatch, k: int, choice: SeedChoice) -> None:
    monkeypatch.setattr(MODULE, "MAX_BLOCK", 32)
    assert_equal(random_maps(1, 11, 13), k, choice=choice)


def test_more_seeds_than_a_block_holds_are_drawn_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "MAX_BLOCK", 32)
    indices, counts = assert_equal(random_maps(2, 13, 17), 60, threshold=0.0)
    assert len(set(indices[0].tolist())) == 60 < int(counts[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_dtype_and_strides_are_read_in_place(dtype: torch.dtype) -> None:
    maps = random_maps(2, 7, 9).to(dtype)
    assert_equal(maps.transpose(1, 2), 4)
    assert_equal(maps[:, 1:6, 2:8:2], 4)
    assert_equal(maps[0].expand(2, 7, 9), 4)
    assert_equal(maps[:, :, :1], 4)


def test_seeds_are_distinct_pixels_above_the_threshold() -> None:
    maps = random_maps(4, 7, 9)
    indices, counts = sample_pixels(maps, 5, 0.6, SEED)
    flat = maps.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    assert bool((flat.gather(1, indices.long()) > low + 0.6 * (high - low)).all())
    assert all(len(set(row.tolist())) == min(5, int(count)) for row, count in zip(indices, counts, strict=True))


@pytest.mark.parametrize("k", [11, 20])
@pytest.mark.parametrize("above", [1, 2, 3, 5])
def test_fewer_than_k_are_repeated_in_draw_order(above: int, k: int) -> None:
    maps = torch.zeros(2, 6, 6)
    maps.flatten(1)[:, 7 : 7 + above] = 1
    indices, counts = assert_equal(maps, k)
    assert counts.tolist() == [above, above]
    assert len(set(indices[0, :above].tolist())) == above
    assert torch.equal(indices, indices[:, torch.arange(k) % above])


@pytest.mark.parametrize("k", [1, 3, 100])
def test_constant_map_gives_its_first_pixel(k: int) -> None:
    indices, counts = assert_equal(torch.full((2, 3, 5), 4.0), k)
    assert not indices.any()
    assert not counts.any()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("row", [1, 9])
@pytest.mark.parametrize("block", [32, 256])
def test_no_pixel_above_gives_the_first_brightest(monkeypatch: pytest.MonkeyPatch, block: int, row: int) -> None:
    monkeypatch.setattr(MODULE, "MAX_BLOCK", block)
    maps = torch.full((1, 12, 12), float("-inf"))  # the range is infinite, and so the threshold undefined
    maps[0, row, 2] = maps[0, row, 4] = maps[0, 11, 0] = 1.0
    indices, counts = assert_equal(maps, 3)
    assert indices.tolist() == [[12 * row + 2] * 3]
    assert counts.tolist() == [0]


@pytest.mark.parametrize(("pixel", "k"), [(0, 3), (24, 3), (48, 3), (24, 17)])
def test_map_with_a_nan_gives_pixel_zero(pixel: int, k: int) -> None:
    maps = random_maps(2, 7, 7)
    maps[1].view(-1)[pixel] = torch.nan
    indices, counts = assert_equal(maps, k)
    assert indices[1].tolist() == [0] * k
    assert counts[1] == 0 < counts[0]


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.7, 1 - 2**-24])
def test_threshold_is_rounded_as_the_reference_rounds_it(threshold: float) -> None:
    maps = random_maps(2, 10, 10)
    for image in maps.flatten(1):
        low, high = image.min(), image.max()
        level = low + torch.tensor(threshold, dtype=torch.float32) * (high - low)
        # The threshold itself is not above it, the next number is.
        image[3], image[4] = level, torch.nextafter(level, torch.tensor(torch.inf))
    assert_equal(maps, 4, threshold)


def test_every_word_of_seed_and_step_changes_the_draw() -> None:
    maps = random_maps(1, 7, 9)
    seeds = [SEED, *(SEED + torch.tensor(change) for change in ([1, 0], [1 << 32, 0], [0, 1], [0, 1 << 32]))]
    draws = [assert_equal(maps, 6, 0.2, seed)[0].tolist() for seed in (*seeds, -SEED, SEED.int())]
    assert len({str(draw) for draw in draws}) == len(draws)


def test_seed_is_read_from_its_memory_at_each_draw() -> None:
    maps, state = random_maps(1, 12, 12), torch.tensor([0, 4, 0, 9])
    before = assert_equal(maps, 6, 0.2, state[1::2])[0]
    state[3] += 1
    assert not torch.equal(assert_equal(maps, 6, 0.2, state[1::2])[0], before)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_slice_of_a_batch_draws_as_the_whole(dtype: torch.dtype) -> None:
    maps, ids = random_maps(5, 5, 6), torch.arange(5, dtype=dtype)
    whole = assert_equal(maps, 4, 0.3)[0]
    assert torch.equal(assert_equal(maps[1::2], 4, 0.3, image_ids=ids[1::2])[0], whole[1::2])
    assert torch.equal(assert_equal(maps.flip(0), 4, 0.3, image_ids=ids.flip(0))[0], whole.flip(0))


@pytest.mark.parametrize("k", [1, 3, 40])
def test_every_output_is_written(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: torch.full(shape, -7, **options))
    maps = random_maps(3, 5, 5)
    maps[1], maps[2, 0, 0] = 1.0, torch.nan
    assert_equal(maps, k)


def test_empty_batch_gives_empty_outputs() -> None:
    indices, counts = assert_equal(torch.zeros(0, 4, 4), 3)
    assert indices.shape == (0, 3)
    assert counts.shape == (0,)


def test_draws_are_uniform_over_the_region() -> None:
    maps = torch.zeros(4000, 3, 4)
    maps[:, 1:] = 1.0  # 8 pixels of 12
    indices, _ = sample_pixels_reference(maps, 3, 0.5, torch.tensor([5, 0]))
    assert torch.equal(sample_pixels(maps[:4], 3, 0.5, torch.tensor([5, 0]))[0], indices[:4])
    for i in range(3):
        observed = indices[:, i].bincount(minlength=12)
        assert not observed[:4].any()
        chi_square = float(((observed[4:] - 500) ** 2 / 500).sum())
        assert chi_square < 24.3  # the 0.1 % quantile of 7 degrees of freedom


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@settings(max_examples=20)
@given(
    height=st.integers(1, 6), width=st.integers(1, 6), k=st.integers(1, 19), threshold=st.floats(0, 0.99),
    seed=st.integers(-(2**63), 2**63 - 1), step=st.integers(-(2**63), 2**63 - 1), data=st.data(),
)  # fmt: skip
def test_draws_equal_the_reference_on_any_map(
    height: int, width: int, k: int, threshold: float, seed: int, step: int, data: st.DataObject
) -> None:
    values = st.floats(width=32) | st.sampled_from([0.0, 1.0])
    pixels = data.draw(st.lists(values, min_size=height * width, max_size=height * width))
    assert_equal(torch.tensor(pixels).view(1, height, width), k, threshold, torch.tensor([seed, step]))
