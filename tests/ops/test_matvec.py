"""A dense matrix times a vector."""

import numpy as np
import pytest

import coterie
from array_kinds import DTYPES, KINDS, floats, give, ready, take
from coterie.arrays import as_numpy
from coterie.errors import ArgumentError
from coterie.ops import matvec_reference
from tolerance import assert_close, bound, split


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (40, 704), (300, 2112), (257, 2816), (96, 33)], ids=str)
def test_matvec_meets_its_reference(kind: str, dtype: str, shape: tuple[int, int], rng) -> None:
    ready(kind, "matvec")
    weight, x = floats(rng, shape, dtype), floats(rng, shape[1:], dtype)
    found = take(coterie.matvec(give(weight, kind), give(x, kind)), kind, dtype)
    assert_close(found, matvec_reference(weight, x), bound(dtype, shape[1]) + split(kind, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_dtypes_give_f32_and_views_work(kind: str, rng) -> None:
    ready(kind, "matvec")
    weight, x = floats(rng, (80, 128), "bfloat16"), floats(rng, (64,))
    view = give(weight, kind)[1::2, ::2]
    found = take(coterie.matvec(view, give(x, kind)), kind, "float32")
    assert_close(found, matvec_reference(weight[1::2, ::2], x), bound("float32", 64) + split(kind, 2))
    assert as_numpy(coterie.matvec(view[:0], give(x, kind))).shape == (0,)
    np.testing.assert_array_equal(as_numpy(coterie.matvec(view[:, :0], give(x[:0], kind))), np.zeros(40, np.float32))


def test_shapes_that_do_not_meet_are_refused() -> None:
    for weight, x in (((3, 4), (3,)), ((3, 4), (4, 1)), ((2, 3, 4), (4,))):
        with pytest.raises(ArgumentError, match=r"expected \[N, K\] and \[K\]"):
            coterie.matvec(np.ones(weight, np.float32), np.ones(x, np.float32))
