"""Sums of slots: any number of them, around the edges of blocks, with what is skipped poisoned."""

import numpy as np
import pytest

from array_kinds import DTYPES, floats
from coterie.ops import accumulate_reference, weighted_sum_reference
from tensors import off, on
from tolerance import assert_close, bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 255), (2, 8, 257), (2, 17, 40), (1, 40, 512)], ids=str)
def test_weighted_sum_meets_its_reference(device: str, shape: tuple[int, ...], dtype: str, rng) -> None:
    from coterie.backends import cuda

    outputs, weights = floats(rng, shape, dtype), floats(rng, shape[:-1])
    weights[0, -1] = 9.9e-11 if shape[1] > 1 else 1.0
    expected = weighted_sum_reference(outputs, weights)
    if shape[1] > 1:
        outputs[0, -1] = np.nan
    found = off(cuda.weighted_sum(on(device, outputs), on(device, weights)))
    assert_close(found, expected, bound("float32", shape[1]))


def test_a_weight_of_any_dtype_counts_and_nan_is_not_hidden(device: str) -> None:
    from coterie.backends import cuda

    outputs, weights = np.ones((2, 2, 8), np.float32), np.array([[0.5, 0.25], [np.nan, 1.0]], np.float16)
    found = off(cuda.weighted_sum(on(device, outputs), on(device, weights)))
    np.testing.assert_array_equal(found[0], 0.75)
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_accumulate_adds_in_place_by_numbers_and_by_tensors(device: str, dtype: str, rng) -> None:
    from coterie.backends import cuda

    for size in (1, 1023, 1025):
        start, outputs = floats(rng, (size,)), floats(rng, (size,), dtype)
        accumulator = on(device, start)
        for weight in (0.25, on(device, np.array([-3.0], np.float32))):
            assert cuda.accumulate(accumulator, on(device, outputs), weight) is accumulator
        expected = accumulate_reference(accumulate_reference(start, outputs, 0.25), outputs, -3.0)
        assert_close(off(accumulator), expected, bound("float32", 2))


def test_what_is_skipped_is_not_even_read(device: str) -> None:
    from coterie.backends import cuda

    accumulator, poison = on(device, np.ones(40, np.float32)), on(device, np.full(40, np.nan, np.float32))
    for weight in (0.0, -9.9e-11, on(device, np.zeros(1, np.float32))):
        cuda.accumulate(accumulator, poison, weight)
    np.testing.assert_array_equal(off(accumulator), 1)
    cuda.accumulate(accumulator, poison, float("nan"))
    assert np.isnan(off(accumulator)).all()
