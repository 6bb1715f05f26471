"""Products with quantised matrices: `mx.quantized_matmul` and `mx.gather_qmm` for every kind of array."""

import numpy as np

from coterie.arrays import Array, as_numpy
from coterie.formats import Packed
from coterie.ops import checks, dispatch
from coterie.ops.forms import FORMS
from coterie.ops.gather import pair_up, reference_pairs
from coterie.ops.operands import as_packed, inner_and_outer, kind_with, result_dtype
from coterie.ops.quantization import dequantize_reference


def quantized_matmul(
    x: Array,
    w: Array | Packed,
    scales: Array | None = None,
    biases: Array | None = None,
    transpose: bool = True,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
) -> Array:
    """x [..., M, K] @ w.T, with w quantised as [N, K]; `transpose=False` computes x [..., M, N] @ w.

    `w` is the codes, with `scales` and `biases`, or one `Packed` that holds all three. Leading axes of w broadcast
    with those of x, as in NumPy's matmul. x is f32, f16 or bf16; the result has x's dtype, and f32 where affine scales
    have another one. Sums are in f32.
    """
    packed = as_packed(w, scales, biases, group_size, bits, mode)
    form = FORMS[kind_with(x, packed)]
    inner, outer = inner_and_outer(x, packed, transpose)
    shape = tuple(x.shape)
    if len(packed.codes.shape) > 2:
        return gather_qmm(x, packed, transpose=transpose) if len(shape) > 1 else _vector(x, packed, transpose)
    dtype = result_dtype(x, packed)
    out_shape = (*shape[:-1], outer)
    if 0 in out_shape or inner == 0:
        return form.zeros(out_shape, dtype, x)
    rows = form.rows(form.cast(form.dense(x), dtype), inner)
    return form.back(form.verb("quantized_matmul")(rows, form.packed(packed), transpose), out_shape)


def gather_qmm(
    x: Array,
    w: Array | Packed,
    scales: Array | None = None,
    biases: Array | None = None,
    lhs_indices: Array | None = None,
    rhs_indices: Array | None = None,
    transpose: bool = True,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    *,
    sorted_indices: bool = False,
) -> Array:
    """x[lhs_indices] times the quantised w[rhs_indices], as `mx.gather_qmm` does.

    x: [..., M, K]; w: [..., N, K] quantised, as codes with `scales` and `biases`, or as one `Packed`; indices choose
    from the flattened leading axes, are checked to be in range, and broadcast. Returns [indices..., M, N], by the
    rules of `quantized_matmul`. `sorted_indices` promises that the only index array that is given ascends; a promise
    that is not kept is refused. For MLX and on a GPU the check of the indices waits for their values.
    """
    packed = as_packed(w, scales, biases, group_size, bits, mode)
    form = FORMS[kind_with(x, packed)]
    inner, outer = inner_and_outer(x, packed, transpose)
    dtype = result_dtype(x, packed)
    shape = tuple(x.shape)
    if len(shape) < 2:
        raise checks.shape_error(f"x is {list(shape)}, expected [..., M, {inner}]")
    pairs = pair_up(lhs_indices, rhs_indices, shape[:-2], tuple(packed.codes.shape[:-2]), form, sorted_indices, x)
    out_shape = (*pairs.batch, shape[-2], outer)
    if 0 in out_shape or inner == 0:
        return form.zeros(out_shape, dtype, x)
    matrices = form.rows(form.cast(form.dense(x), dtype), *shape[-2:])
    stack = form.packed(packed)
    if form.flattens:
        stack = _stacked(stack)
    result = form.verb("gather_qmm")(matrices, stack, pairs.lhs, pairs.rhs, transpose, pairs.sorted_indices)
    return form.back(result, out_shape)


def quantized_matmul_reference(x: Array, packed: Packed, transpose: bool = True) -> np.ndarray:
    """`quantized_matmul` in float64."""
    w = dequantize_reference(packed)
    product: np.ndarray = as_numpy(x).astype(np.float64) @ (w.swapaxes(-1, -2) if transpose else w)
    return product


def gather_qmm_reference(
    x: Array,
    packed: Packed,
    lhs_indices: Array | None = None,
    rhs_indices: Array | None = None,
    transpose: bool = True,
) -> np.ndarray:
    """`gather_qmm` in float64, pair by pair."""
    w = dequantize_reference(packed)
    matrices = as_numpy(x).astype(np.float64)
    lhs, rhs = reference_pairs(lhs_indices, rhs_indices, matrices.shape[:-2], w.shape[:-2])
    matrices, w = matrices.reshape(-1, *matrices.shape[-2:]), w.reshape(-1, *w.shape[-2:])
    out = np.zeros((*lhs.shape, matrices.shape[-2], w.shape[-2] if transpose else w.shape[-1]))
    for place in np.ndindex(*lhs.shape):
        chosen = w[rhs[place]]
        out[place] = matrices[lhs[place]] @ (chosen.T if transpose else chosen)
    return out


def _vector(x: Array, packed: Packed, transpose: bool) -> Array:
    return gather_qmm(x[None], packed, transpose=transpose)[..., 0, :]


def _stacked(packed: Packed) -> Packed:
    """The same matrices with exactly one leading axis."""
    if packed.codes.ndim == 3:
        return packed
    parts = [
        None if part is None else part.reshape(-1, *part.shape[-2:])
        for part in (packed.codes, packed.scales, packed.biases)
    ]
    return dispatch.packed_like(packed, *parts)
