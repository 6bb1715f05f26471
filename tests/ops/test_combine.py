"""Weighted sums and accumulation."""

import numpy as np
import pytest

import coterie
from array_kinds import DTYPES, KINDS, ON_A_GPU, floats, give, ready, take
from coterie.arrays import as_numpy
from coterie.errors import ArgumentError
from coterie.ops import accumulate_reference, weighted_sum_reference
from tolerance import assert_close, bound

SHAPES = [(1, 64), (8, 2816), (3, 2, 704), (2, 5, 17, 33), (4, 40, 96)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weighted_sum_meets_its_reference_in_f32(kind: str, dtype: str, shape: tuple[int, ...], rng) -> None:
    ready(kind, "weighted_sum")
    outputs, weights = floats(rng, shape, dtype), np.abs(floats(rng, shape[:-1]))
    found = take(coterie.weighted_sum(give(outputs, kind), give(weights, kind)), kind, "float32")
    reference = weighted_sum_reference(outputs, weights)
    np.testing.assert_allclose(reference, np.einsum("...kh,...k->...h", outputs.astype(float), weights), rtol=1e-9)
    assert_close(found, reference, bound("float32", shape[-2]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_skipped_slot_reaches_nothing_and_its_weight_goes_to_nobody(kind: str, poison: float, rng) -> None:
    ready(kind, "weighted_sum", "accumulate")
    outputs, weights = floats(rng, (4, 3, 33)), np.abs(floats(rng, (4, 3))) + 0.1
    weights[1, 2], weights[2, 0], weights[3, 1] = 0.0, 9.9e-11, -9.9e-11
    clean = weighted_sum_reference(np.where(weights[..., None] < 1e-9, 0, outputs), weights)
    outputs[1, 2] = outputs[2, 0] = outputs[3, 1] = poison
    found = take(coterie.weighted_sum(give(outputs, kind), give(weights, kind)), kind, "float32")
    assert_close(found, clean, bound("float32", 3))
    np.testing.assert_allclose(weighted_sum_reference(outputs, weights), clean)
    start = floats(rng, (33,))
    for weight in (0.0, 9.9e-11, -9.9e-11):
        result = coterie.accumulate(give(start, kind), give(outputs[1, 2], kind), weight)
        np.testing.assert_array_equal(take(result, kind, "float32"), start)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_that_is_small_but_not_skipped_counts(kind: str) -> None:
    ready(kind, "weighted_sum", "accumulate")
    outputs = np.full((1, 2, 8), 1e12, np.float32)
    weights = np.array([[1.1e-10, 0]], np.float32)
    found = take(coterie.weighted_sum(give(outputs, kind), give(weights, kind)), kind, "float32")
    np.testing.assert_allclose(found, 110, rtol=1e-6)
    start = give(np.zeros(8, np.float32), kind)
    np.testing.assert_allclose(as_numpy(coterie.accumulate(start, give(outputs[0, 0], kind), 1.1e-10)), 110, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_infinity_and_nan_of_a_slot_that_counts_are_not_hidden(kind: str) -> None:
    ready(kind, "weighted_sum")
    outputs = np.ones((3, 2, 8), np.float32)
    outputs[0, 0, 0], outputs[1, 1, 3] = np.inf, np.nan
    weights = np.ones((3, 2), np.float32)
    weights[2, 0] = np.nan
    found = take(coterie.weighted_sum(give(outputs, kind), give(weights, kind)), kind, "float32")
    assert np.isinf(found[0, 0])
    assert np.isnan(found[1, 3])
    assert np.isnan(found[2]).all()
    assert (~np.isfinite(found[:2])).sum() == 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_accumulate_adds_in_place_where_arrays_can_change(kind: str, dtype: str, rng) -> None:
    ready(kind, "accumulate")
    start, first, second = floats(rng, (3, 704)), floats(rng, (3, 704), dtype), floats(rng, (3, 704), dtype)
    accumulator = give(start, kind)
    result = coterie.accumulate(accumulator, give(first, kind), 0.25)
    result = coterie.accumulate(result, give(second, kind), give(np.array(-3.0, np.float32), kind))
    expected = accumulate_reference(accumulate_reference(start, first, 0.25), second, -3.0)
    assert_close(take(result, kind, "float32"), expected, bound("float32", 2))
    if kind == "mlx":
        np.testing.assert_array_equal(as_numpy(accumulator), start)
    else:
        assert result is accumulator


@pytest.mark.parametrize("kind", ["numpy", "torch", ON_A_GPU])
def test_accumulate_into_a_strided_view_changes_the_view_alone(kind: str, rng) -> None:
    ready(kind, "accumulate")
    base = give(np.zeros((6, 10), np.float32), kind)
    outputs = floats(rng, (3, 5))
    coterie.accumulate(base[::2, 1::2], give(outputs, kind), 2.0)
    expected = np.zeros((6, 10))
    expected[::2, 1::2] = 2.0 * outputs
    np.testing.assert_array_equal(as_numpy(base), expected.astype(np.float32))


@pytest.mark.parametrize("kind", ["numpy", "torch", ON_A_GPU])
def test_accumulate_refuses_shared_memory_and_allows_neighbours(kind: str) -> None:
    ready(kind, "accumulate")
    base = give(np.ones(20, np.float32), kind)
    for other in (base[:10], base[5:15]):
        with pytest.raises(ArgumentError, match="share memory"):
            coterie.accumulate(base[:10], other, 1.0)
    coterie.accumulate(base[:10], base[10:], 1.0)
    coterie.accumulate(base[::2], base[1::2], 1.0)
    assert as_numpy(base)[:10].tolist() == [4, 2] * 5


def test_accumulate_refuses_what_it_cannot_change_or_add() -> None:
    ready("numpy", "accumulate")
    ones = np.ones(4, np.float32)
    frozen = ones.copy()
    frozen.flags.writeable = False
    with pytest.raises(ArgumentError, match="read-only"):
        coterie.accumulate(frozen, ones, 1.0)
    with pytest.raises(ArgumentError, match="expected float32"):
        coterie.accumulate(ones.astype(np.float16), ones, 1.0)
    with pytest.raises(ArgumentError, match="expected one shape"):
        coterie.accumulate(ones, np.ones(5, np.float32), 1.0)
    with pytest.raises(ArgumentError, match="expected one number"):
        coterie.accumulate(ones, ones.copy(), np.ones(2, np.float32))
    with pytest.raises(ArgumentError, match="expected a NumPy array"):
        coterie.accumulate(ones, ones.copy(), "half")  # type: ignore[arg-type]
