"""The two ways of a product: both forced, both right, and timed."""

import numpy as np
import pytest

from coterie.backends.cpu import int16_product
from coterie.backends.cpu import product as p
from coterie.backends.cpu.gathered import gathered
from coterie.backends.cpu.matrix import matrix_of
from coterie.bench import switch
from coterie.bench.shapes import FORMATS, Shape
from coterie.bench.weights import generator, random_packed
from coterie.formats import codec

TINY = Shape("tiny", "Tiny", 128, 64, 4, 2, "silu")


@pytest.mark.slow
def test_both_ways_are_timed_and_the_limit_is_put_back() -> None:
    limits = p.DOT_TOKENS, int16_product.DOT_TOKENS
    rows = switch.run(TINY, ["4bit"], [1, 6], 2, 0.0)
    assert [row.tokens for row in rows] == [1, 6, 1, 6]
    assert all(row.ratio.n == 2 and row.ratio.median > 0 for row in rows)
    assert limits == (p.DOT_TOKENS, int16_product.DOT_TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "limit"), [("exact", 4 * 2.0**-23 * 128**0.5), ("default", 1e-4)])
def test_both_ways_compute_the_product(precision: str, limit: float) -> None:
    packed = random_packed(generator(1), 2, 16, 128, FORMATS["4bit"])
    weights = codec.dequantize_f64(packed.codes, packed.scales, packed.biases, packed.format)
    x = generator(2).standard_normal((6, 128), np.float32)
    experts = np.array([0, 1, 0, 0, 1, 0])
    expected = np.stack([row @ weights[e].T for row, e in zip(x.astype(np.float64), experts, strict=True)])
    kept: list = []
    results = []
    for tokens in switch._PATHS.values():
        forced = switch._forced(matrix_of(packed, precision=precision), tokens, kept)
        results.append(gathered(x, forced, np.arange(6), experts))
        np.testing.assert_allclose(results[-1], expected, atol=limit)
    assert not np.array_equal(*results)
