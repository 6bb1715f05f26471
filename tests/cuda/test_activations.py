"""Gated activations: around the edges of blocks, over rows of halves, at the ends of the range."""

import numpy as np
import pytest

from array_kinds import DTYPES, floats
from coterie.ops import ACTIVATIONS, glu_fused_reference, glu_reference
from coterie.ops.dispatch import numpy_dtype
from tensors import off, on
from tolerance import EPS, assert_close

BOUND = {"float32": 16 * EPS["float32"], "float16": EPS["float16"], "bfloat16": EPS["bfloat16"]}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_they_meet_their_reference(device: str, activation: str, dtype: str, rng: np.random.Generator) -> None:
    from coterie.backends import cuda

    for shape in ((16,), (1023,), (1025,), (3, 341), (2, 2, 33)):
        gate, up = floats(rng, shape, dtype, 3), floats(rng, shape, dtype, 3)
        found = off(cuda.glu(on(device, gate), on(device, up), activation))
        assert found.dtype.name == dtype
        assert_close(found, glu_reference(gate, up, activation), BOUND[dtype])
    for shape in ((1, 32), (5, 66), (2, 2, 2050), (3, 2046)):
        both = floats(rng, shape, dtype, 3)
        found = off(cuda.glu_fused(on(device, both), activation))
        assert_close(found, glu_fused_reference(both, activation), BOUND[dtype])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_finite_gate_gives_nan_and_nan_stays(device: str, activation: str) -> None:
    from coterie.backends import cuda

    for dtype in DTYPES:
        largest = {"float32": 3.4e38, "float16": 65504, "bfloat16": 3.38e38}[dtype]
        gate = np.array([largest, 1e4, 100, 9, 1e-7, 0, -0.0, -9, -100, -1e4, -largest, np.nan]).astype(
            numpy_dtype(dtype)
        )
        found = off(cuda.glu(on(device, gate), on(device, np.ones_like(gate)), activation)).astype(float)
        assert np.isfinite(found[:-1]).all()
        assert np.isnan(found[-1])
        if activation != "swiglu_clamped":
            np.testing.assert_array_equal(found[[0, 2, 8, 10]], [gate[0], gate[2], 0, 0])
