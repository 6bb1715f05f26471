"""Weighted sums, accumulation and the plain matrix-vector product as Metal kernels."""

from typing import Any

import numpy as np
import pytest

import coterie
from array_kinds import floats, give, take
from coterie.ops.combine import accumulate_reference, weighted_sum_reference
from tolerance import EPS, assert_close, bound

pytestmark = pytest.mark.usefixtures("engine")

SHAPES = [(1, 1, 1), (1, 2, 3), (2, 8, 5), (3, 17, 257), (2, 8, 2816), (1, 40, 1023), (70_000, 2, 1)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weighted_sum_of_every_size(dtype: str, rng: Any) -> None:
    for shape in SHAPES:
        outputs, weights = floats(rng, shape, dtype), np.abs(floats(rng, shape[:-1])) + np.float32(0.1)
        found = take(coterie.weighted_sum(give(outputs, "mlx"), give(weights, "mlx")), "mlx", "float32")
        terms = np.abs(weights[..., None] * outputs.astype(np.float64)).sum(-2)
        reference = weighted_sum_reference(outputs, weights)
        assert found.shape == reference.shape
        assert (np.abs(found - reference) <= bound("float32", shape[1]) * terms).all()


def test_what_a_skipped_slot_holds_does_not_reach_the_sum(rng: Any) -> None:
    outputs, weights = floats(rng, (3, 4, 37)), np.ones((3, 4), np.float32)
    outputs[:, 1], weights[:, 1] = np.nan, 9.9e-11
    outputs[:, 2], weights[:, 2] = np.inf, -0.0
    found = take(coterie.weighted_sum(give(outputs, "mlx"), give(weights, "mlx")), "mlx", "float32")
    assert_close(found, weighted_sum_reference(outputs[:, [0, 3]], weights[:, [0, 3]]), bound("float32", 4))
    weights[:, 1] = 1e-9
    assert np.isnan(take(coterie.weighted_sum(give(outputs, "mlx"), give(weights, "mlx")), "mlx", "float32")).all()


def test_a_weight_of_nan_is_seen(rng: Any) -> None:
    weights = np.array([[1.0, np.nan]], np.float32)
    found = coterie.weighted_sum(give(floats(rng, (1, 2, 5)), "mlx"), give(weights, "mlx"))
    assert np.isnan(take(found, "mlx", "float32")).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_accumulate_of_every_size(dtype: str, rng: Any) -> None:
    for shape in [(1,), (7,), (3, 257), (2, 3, 704), (70_000, 1)]:
        start, output = floats(rng, shape), floats(rng, shape, dtype)
        for weight in (0.3, -2.0, 9e-11, 0.0):
            found = coterie.accumulate(give(start, "mlx"), give(output, "mlx"), weight)
            reference = accumulate_reference(start, output, float(np.float32(weight)))
            allowed = 2 * EPS["float32"] * (np.abs(start) + np.abs(weight * output.astype(np.float64)))
            assert (np.abs(take(found, "mlx", "float32") - reference) <= allowed).all()


def test_accumulate_leaves_out_what_is_skipped() -> None:
    """Zeros that stay zeros, infinity or not: what stands in for a buffer that is zeroed first."""
    start, infinite = np.zeros(2816, np.float32), np.full(2816, np.inf, np.float32)
    kept = take(coterie.accumulate(give(start, "mlx"), give(infinite, "mlx"), 1e-11), "mlx", "float32")
    np.testing.assert_array_equal(kept, start)
    added = take(coterie.accumulate(give(start, "mlx"), give(infinite, "mlx"), 1.0), "mlx", "float32")
    np.testing.assert_array_equal(added, infinite)


@pytest.mark.parametrize(("matrix_dtype", "dtype"), [("float32", "float32"), ("bfloat16", "bfloat16")])
def test_matvec_of_every_size(matrix_dtype: str, dtype: str, rng: Any) -> None:
    for n, k in [(1, 8), (2, 31), (7, 32), (8, 33), (9, 64), (15, 704), (17, 2816), (70_000, 8)]:
        matrix, x = floats(rng, (n, k), matrix_dtype), floats(rng, (k,), dtype)
        found = take(coterie.matvec(give(matrix, "mlx"), give(x, "mlx")), "mlx", dtype).astype(np.float64)
        wide = matrix.astype(np.float64), x.astype(np.float64)
        terms = np.abs(wide[0]) @ np.abs(wide[1])
        rounding = 0.0 if dtype == "float32" else EPS[dtype] / 2 * np.abs(wide[0] @ wide[1])
        assert (np.abs(found - wide[0] @ wide[1]) <= bound("float32", k) * terms + rounding).all()


def test_matvec_with_two_dtypes_gives_f32(rng: Any) -> None:
    matrix, x = floats(rng, (40, 96), "bfloat16"), floats(rng, (96,))
    found = take(coterie.matvec(give(matrix, "mlx"), give(x, "mlx")), "mlx", "float32")
    assert_close(found, matrix.astype(np.float64) @ x, bound("float32", 96))
