"""A dense matrix times a vector."""

import numpy as np

from coterie.arrays import Array, as_numpy, from_numpy
from coterie.ops import checks, dispatch


def matvec(weight: Array, x: Array) -> Array:
    """weight [N, K] @ x [K], both f32, f16 or bf16; sums in f32. Returns [N] in their dtype, f32 where they differ."""
    kind = dispatch.kind_of_both(weight, x, ("weight", "x"))
    dtype = checks.promoted(checks.float_dtype(weight, "weight"), checks.float_dtype(x, "x"))
    if len(weight.shape) != 2 or tuple(x.shape) != (weight.shape[1],):
        raise checks.shape_error(f"weight is {list(weight.shape)} and x {list(x.shape)}, expected [N, K] and [K]")
    if 0 in tuple(weight.shape):
        return dispatch.zeros((weight.shape[0],), dtype, kind)
    run = dispatch.verb("matvec", kind)
    result = run(dispatch.native_weight(weight, kind), checks.cast(dispatch.native(x, kind), dtype, kind))
    return result if kind != "torch" else from_numpy(result, kind)


def matvec_reference(weight: Array, x: Array) -> np.ndarray:
    """`matvec` in float64."""
    product: np.ndarray = as_numpy(weight).astype(np.float64) @ as_numpy(x).astype(np.float64)
    return product
