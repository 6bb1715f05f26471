"""The comparison itself must be able to fail."""

import numpy as np
import pytest

from tolerance import assert_close, bound, errors

REFERENCE = np.random.default_rng(0).standard_normal((1000, 64))
NEAR = REFERENCE * (1 + 1e-7)
LIMIT = bound("float32", 64)


def refused(found: np.ndarray, message: str, reference: np.ndarray = REFERENCE) -> None:
    with pytest.raises(pytest.fail.Exception, match=message):
        assert_close(found, reference, LIMIT)


def test_a_close_result_passes() -> None:
    assert_close(NEAR, REFERENCE, LIMIT)


def test_one_wrong_row_in_a_good_average_fails() -> None:
    dropped, swapped = NEAR.copy(), NEAR.copy()
    dropped[17] = 0
    swapped[[3, 4]] = swapped[[4, 3]]
    refused(dropped, "worst row 1")
    refused(swapped, "worst row")


def test_one_wrong_value_fails() -> None:
    wrong = NEAR.copy()
    wrong[5, 5] += 1e-3
    refused(wrong, "worst row")


def test_a_small_row_is_held_to_its_own_size() -> None:
    reference = REFERENCE.copy()
    reference[9] *= 1e-8
    found = reference + 1e-9
    assert errors(found, reference)[1] < 1e-8
    refused(found, "worst row", reference)


def test_a_row_of_zeros_must_be_zero() -> None:
    reference = REFERENCE.copy()
    reference[2] = 0
    found = NEAR.copy()
    found[2] = 0
    assert_close(found, reference, LIMIT)
    found[2, 0] = 1e-30
    refused(found, "worst row inf", reference)


def test_nan_infinity_shape_and_suspicious_equality_fail() -> None:
    for bad in (np.nan, np.inf):
        wrong = NEAR.copy()
        wrong[1, 2] = bad
        refused(wrong, r"not finite, the first at \[1, 2\]")
    refused(NEAR[:, :-1], "found shape")
    refused(REFERENCE.copy(), "compared with itself")
    assert_close(REFERENCE.copy(), REFERENCE, 0.0, may_be_exact=True)


def test_bounds_grow_with_the_root_of_the_depth_and_with_the_dtype() -> None:
    assert bound("float32", 2816) < 1e-4
    assert bound("float32", 400) == 2 * bound("float32", 100)
    assert bound("bfloat16", 1) > bound("float16", 1) > bound("float32", 1)
