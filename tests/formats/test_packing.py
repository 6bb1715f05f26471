"""One bit stream for every width of code."""

import numpy as np
import pytest

from coterie.errors import ArgumentError
from coterie.formats import AFFINE_BITS, packing


def by_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """The definition, bit by bit."""
    row = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    return np.array([row >> (32 * i) & 0xFFFFFFFF for i in range(len(codes) * bits // 32)], np.uint32)


@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_packing_is_the_definition_and_unpacking_its_inverse(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 2, 96), dtype=np.uint8)
    words = packing.pack(codes, bits)
    assert words.dtype == np.uint32
    assert words.shape == (3, 2, 96 * bits // 32)
    np.testing.assert_array_equal(words[2, 1], by_bits(codes[2, 1], bits))
    np.testing.assert_array_equal(packing.unpack(words, bits), codes)


@pytest.mark.parametrize(
    ("bits", "words"),
    [(3, [0x88FAC688, 0xC688FAC6, 0xFAC688FA]), (6, [0x440C2040, 0xA2481C61, 0x3CE34C2C])],
)
def test_known_words(bits: int, words: list[int]) -> None:
    codes = (np.arange(64) % (1 << bits)).astype(np.uint8)
    assert packing.pack(codes, bits)[:3].tolist() == words


def test_views_at_an_offset_and_empty_rows() -> None:
    codes = np.random.default_rng(0).integers(0, 32, (4, 2, 64), dtype=np.uint8)
    words = packing.pack(codes, 5)
    np.testing.assert_array_equal(packing.unpack(words[1:, 1], 5), codes[1:, 1])
    np.testing.assert_array_equal(packing.unpack(words[:, :, 5:], 5), codes[:, :, 32:])
    assert packing.unpack(words[:0], 5).shape == (0, 2, 64)


def test_rows_that_end_inside_a_word_are_refused() -> None:
    with pytest.raises(ArgumentError, match="12 codes of 3 bits"):
        packing.pack(np.zeros((2, 12), np.uint8), 3)
    with pytest.raises(ArgumentError, match="2 words"):
        packing.unpack(np.zeros((1, 2), np.uint32), 3)
