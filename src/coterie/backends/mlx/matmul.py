"""Matrix products. Activations are f32 throughout, so that sums are; results go back to the dtype of the contract."""

import mlx.core as mx

from coterie.backends.mlx.dtypes import promoted
from coterie.backends.mlx.metal import launch
from coterie.backends.mlx.metal import matvec as metal
from coterie.formats import Packed


def quantized_matmul(x: mx.array, packed: Packed, transpose: bool) -> mx.array:
    fmt = packed.format
    result = mx.quantized_matmul(
        x.astype(mx.float32),
        packed.codes,
        packed.scales,
        packed.biases,
        transpose=transpose,
        group_size=fmt.group_size,
        bits=fmt.bits,
        mode=fmt.mode,
    )
    return result.astype(_result_dtype(x, packed))


def gather_qmm(
    x: mx.array,
    packed: Packed,
    lhs_indices: mx.array | None,
    rhs_indices: mx.array | None,
    transpose: bool,
    sorted_indices: bool,
) -> mx.array:
    if lhs_indices is None and rhs_indices is None:
        # Without indices MLX does not broadcast every pair of leading shapes; counting through one stack does.
        lhs_indices = mx.arange(_n_matrices(x.shape), dtype=mx.uint32).reshape(x.shape[:-2])
    fmt = packed.format
    result = mx.gather_qmm(
        x.astype(mx.float32),
        packed.codes,
        packed.scales,
        packed.biases,
        lhs_indices=lhs_indices,
        rhs_indices=rhs_indices,
        transpose=transpose,
        group_size=fmt.group_size,
        bits=fmt.bits,
        mode=fmt.mode,
        sorted_indices=sorted_indices,
    )
    return result.astype(_result_dtype(x, packed))


def gather_mm(
    a: mx.array, b: mx.array, lhs_indices: mx.array | None, rhs_indices: mx.array | None, sorted_indices: bool
) -> mx.array:
    """MLX's CPU has `gather_mm` for f32 only: other dtypes are widened first, the whole stack b included."""
    result = mx.gather_mm(
        a.astype(mx.float32),
        b.astype(mx.float32),
        lhs_indices=lhs_indices,
        rhs_indices=rhs_indices,
        sorted_indices=sorted_indices,
    )
    return result.astype(promoted(a.dtype, b.dtype))


def matvec(weight: mx.array, x: mx.array) -> mx.array:
    if launch.usable():
        return metal.matvec(weight, x, promoted(weight.dtype, x.dtype))
    product = weight.astype(mx.float32) @ x.astype(mx.float32)
    return product.astype(promoted(weight.dtype, x.dtype))


def _result_dtype(x: mx.array, packed: Packed) -> mx.Dtype:
    return promoted(x.dtype, packed.scales.dtype) if packed.format.mode == "affine" else x.dtype


def _n_matrices(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape[:-2]:
        count *= length
    return count
