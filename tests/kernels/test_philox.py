import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from i2c_fast.kernels._philox import philox

from . import oracles

WORD = st.integers(0, 2**32 - 1)


def words(*values: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(value) for value in values)


def draw(key: tuple[int, ...], counter: tuple[int, ...]) -> tuple[int, ...]:
    k0, k1 = words(*key)
    c0, c1, c2, c3 = words(*counter)
    return tuple(int(word) for word in philox((k0, k1), (c0, c1, c2, c3)))


# The known-answer vectors of Random123, the generator's own implementation.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert draw(key, counter) == expected


@given(st.tuples(WORD, WORD), st.tuples(WORD, WORD, WORD, WORD))
@settings(max_examples=30)
def test_equals_unbounded_integer_arithmetic(key: tuple[int, int], counter: tuple[int, int, int, int]) -> None:
    assert draw(key, counter) == oracles.philox(key, counter)


def test_only_the_low_32_bits_of_key_and_counter_count() -> None:
    rng = random.Random(0)
    key, counter = tuple(rng.getrandbits(32) for _ in range(2)), tuple(rng.getrandbits(32) for _ in range(4))
    above = 5 << 32
    assert draw(tuple(k | above for k in key), tuple(c - (1 << 40) for c in counter)) == draw(key, counter)


def test_counters_broadcast() -> None:
    pixels, images = torch.arange(5), torch.arange(3)[:, None]
    zero = torch.zeros((), dtype=torch.int64)
    table = philox((zero, zero), (pixels, images, zero, zero))[0]
    assert table.shape == (3, 5)
    assert int(table[2, 4]) == oracles.philox((0, 0), (4, 2, 0, 0))[0]


def test_words_lie_in_32_bits() -> None:
    zero = torch.zeros((), dtype=torch.int64)
    for word in philox((zero, zero), (torch.arange(1000), zero, zero, zero)):
        assert int(word.min()) >= 0
        assert int(word.max()) < 2**32
