"""Quantise and dequantise: `mx.quantize` and `mx.dequantize` for every kind of array, byte for byte.

Their reference is the codec in `coterie.formats.codec`, which is compared with MLX byte by byte.
"""

from typing import Any

import numpy as np

from coterie.arrays import Array, as_numpy, dtype_name, kind_of
from coterie.errors import ArgumentError, UnsupportedError
from coterie.formats import Format, Packed, codec
from coterie.ops import checks, dispatch
from coterie.ops.forms import FORMS


def quantize(
    w: Array,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    *,
    global_scale: Array | None = None,
) -> tuple[Array, ...]:
    """Quantise w [..., N, K] (f32, f16 or bf16) along its last axis, as `mx.quantize` does.

    Returns (codes, scales, biases) for affine, (codes, scales) for every other mode, shaped and typed as in `Packed`.
    K must be a multiple of the group size. NaN, infinity and ranges that overflow are a `NumericError`. nvfp4's
    `global_scale` is an `UnsupportedError`.
    """
    _refuse_global_scale(global_scale)
    fmt = Format.resolve(mode, bits, group_size)
    form, shape = FORMS[kind_of(w)], tuple(w.shape)
    codec.check_matrix(shape, checks.float_dtype(w, "w"), fmt)
    if 0 in shape:
        nothing = codec.quantize(np.zeros(shape, dispatch.numpy_dtype(dtype_name(w))), fmt)
        return tuple(form.zeros(part.shape, part.dtype.name, w) for part in nothing if part is not None)
    parts = form.verb("quantize")(form.dense(w), fmt)
    return tuple(form.back(part, tuple(part.shape)) for part in parts if part is not None)


def dequantize(
    w: Array,
    scales: Array,
    biases: Array | None = None,
    group_size: int | None = None,
    bits: int | None = None,
    mode: str = "affine",
    dtype: Any = None,
    *,
    global_scale: Array | None = None,
) -> Array:
    """The matrix [..., N, K] that codes `w`, scales and biases stand for, as `mx.dequantize` does.

    `dtype`: "float32", "float16", "bfloat16" or such a dtype object of the arrays' library; None is the dtype of the
    scales for affine, bf16 for every other mode. Rounding is MLX's: affine computes in the dtype of its scales.
    """
    _refuse_global_scale(global_scale)
    packed = Packed(w, scales, biases, bits, group_size, mode)
    name = _dtype_argument(dtype)
    if name is None:
        name = checks.float_dtype(scales, "scales") if packed.format.mode == "affine" else "bfloat16"
    form = FORMS[packed.kind]
    if 0 in packed.shape:
        return form.zeros(packed.shape, name, w)
    return form.back(form.verb("dequantize")(form.packed(packed), form.dtype(name)), packed.shape)


def dequantize_reference(packed: Packed) -> np.ndarray:
    """The exact values that the format defines, float64 [..., N, K]."""
    biases = None if packed.biases is None else as_numpy(packed.biases)
    return codec.dequantize_f64(as_numpy(packed.codes), as_numpy(packed.scales), biases, packed.format)


def _refuse_global_scale(global_scale: Array | None) -> None:
    if global_scale is not None:
        raise UnsupportedError(
            "global_scale of nvfp4 is not supported; fold it into the values, or use nvfp4 without it",
            code="global_scale",
        )


def _dtype_argument(dtype: Any) -> str | None:
    if dtype is None:
        return None
    name = np.dtype(dtype).name if isinstance(dtype, type) else str(dtype).rpartition(".")[2]
    if name not in checks.FLOATS:
        raise ArgumentError(f"dtype is {dtype!r}, expected float32, float16 or bfloat16", code="dtype")
    return name
