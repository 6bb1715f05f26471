"""A dense matrix times a vector."""

import numpy as np

from coterie.arrays import Array, as_numpy
from coterie.ops import checks, dispatch
from coterie.ops.forms import FORMS


def matvec(weight: Array, x: Array) -> Array:
    """weight [N, K] @ x [K], both f32, f16 or bf16; sums in f32. Returns [N] in their dtype, f32 where they differ."""
    form = FORMS[dispatch.kind_of_both(weight, x, ("weight", "x"))]
    dtype = checks.promoted(checks.float_dtype(weight, "weight"), checks.float_dtype(x, "x"))
    if len(weight.shape) != 2 or tuple(x.shape) != (weight.shape[1],):
        raise checks.shape_error(f"weight is {list(weight.shape)} and x {list(x.shape)}, expected [N, K] and [K]")
    if 0 in tuple(weight.shape):
        return form.zeros((weight.shape[0],), dtype, x)
    product = form.verb("matvec")(form.weight(weight), form.cast(form.dense(x), dtype))
    return form.back(product, (weight.shape[0],))


def matvec_reference(weight: Array, x: Array) -> np.ndarray:
    """`matvec` in float64."""
    product: np.ndarray = as_numpy(weight).astype(np.float64) @ as_numpy(x).astype(np.float64)
    return product
