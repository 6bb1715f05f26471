"""Quantise and dequantise NumPy arrays, byte for byte as mx.quantize and mx.dequantize do.

Whole matrices pass through in blocks of groups that fit in the processor's cache, so memory stays near that of input
plus output.
"""

import numpy as np

from coterie.arrays import FLOAT_DTYPES, bfloat16
from coterie.errors import ArgumentError, NumericError
from coterie.formats import affine, microscaling, packing
from coterie.formats.spec import Format

_DTYPE_NAMES = frozenset(dtype.name for dtype in FLOAT_DTYPES)
_BLOCK = 1 << 17
"""Weights handled at a time: 512 KiB of f32."""


def quantize(w: np.ndarray, fmt: Format) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """w [..., N, K] in f32, f16 or bf16 to (codes, scales, biases or None), shaped as in `Packed`.

    Affine scales and biases have the dtype of w. K must be a multiple of the group size. NaN, infinity and what
    overflows the dtype of the scales are a `NumericError`.
    """
    check_matrix(w.shape, w.dtype.name, fmt)
    n_groups = fmt.n_groups(w.shape[-1])
    n_rows = w.size // w.shape[-1] if w.size else 0
    codes = np.empty((n_rows, fmt.words(w.shape[-1])), np.uint32)
    affine_mode = fmt.mode == "affine"
    scales = np.empty((n_rows, n_groups), w.dtype if affine_mode else np.uint8)
    biases = np.empty_like(scales) if affine_mode else None
    flat = np.ascontiguousarray(w).reshape(n_rows, w.shape[-1])
    step = max(1, _BLOCK // max(1, w.shape[-1]))
    for start in range(0, n_rows, step):
        rows = slice(start, start + step)
        groups = flat[rows].reshape(-1, fmt.group_size)
        if biases is not None:
            block, scale, bias = affine.quantize_groups(groups.astype(np.float32), fmt.bits)
            _store_rounded(scales[rows], scale, "scales")
            _store_rounded(biases[rows], bias, "biases")
        else:
            block, scale = microscaling.quantize_groups(groups, fmt)
            scales[rows] = scale.reshape(-1, n_groups)
        codes[rows] = packing.pack(block.reshape(-1, w.shape[-1]), fmt.bits)
    leading = w.shape[:-1]
    return (
        codes.reshape(*leading, codes.shape[-1]),
        scales.reshape(*leading, n_groups),
        None if biases is None else biases.reshape(*leading, n_groups),
    )


def dequantize(
    codes: np.ndarray,
    scales: np.ndarray,
    biases: np.ndarray | None,
    fmt: Format,
    dtype: np.dtype | type | None = None,
) -> np.ndarray:
    """Codes, scales and biases as in `Packed` to values [..., N, K].

    `dtype` of None is MLX's default: the dtype of the scales for affine, else bf16. The arithmetic is MLX's: affine
    computes in the dtype of the scales and converts the result; the others compute in `dtype`, where large scales
    overflow float16.
    """
    grouped = _grouped_codes(codes, scales, fmt)
    if fmt.mode == "affine":
        if biases is None:
            raise ArgumentError("biases are missing; affine needs one for each scale", code="packed_biases")
        values = affine.dequantize_groups(grouped, scales, biases)
        with np.errstate(over="ignore"):
            values = values.astype(scales.dtype if dtype is None else dtype, copy=False)
    else:
        values = microscaling.dequantize_groups(grouped, scales, fmt, np.dtype(bfloat16 if dtype is None else dtype))
    return values.reshape(*scales.shape[:-1], scales.shape[-1] * fmt.group_size)


def dequantize_f64(codes: np.ndarray, scales: np.ndarray, biases: np.ndarray | None, fmt: Format) -> np.ndarray:
    """The exact values [..., N, K] that the format defines, in float64, without any rounding on the way."""
    grouped = _grouped_codes(codes, scales, fmt)
    if biases is not None:
        values = grouped * scales.astype(np.float64)[..., None] + biases.astype(np.float64)[..., None]
    else:
        table, steps = microscaling.code_values(fmt), microscaling.scale_values(scales, fmt)
        values = table.astype(np.float64)[grouped] * steps.astype(np.float64)[..., None]
    return values.reshape(*scales.shape[:-1], scales.shape[-1] * fmt.group_size)


def check_matrix(shape: tuple[int, ...], dtype: str, fmt: Format) -> None:
    """Refuse a matrix that cannot be quantised to `fmt`: its dtype by plain name, its axes, its row length."""
    if dtype not in _DTYPE_NAMES:
        raise ArgumentError(f"w is {dtype}, expected float32, float16 or bfloat16", code="quantize_dtype")
    if len(shape) < 2:
        raise ArgumentError(f"w has shape {list(shape)}, expected two axes or more", code="quantize_shape")
    if shape[-1] == 0 or shape[-1] % fmt.group_size:
        raise ArgumentError(
            f"rows of w have {shape[-1]} values, expected a positive multiple of {fmt.group_size}, the group size",
            code="quantize_shape",
        )


def _store_rounded(target: np.ndarray, values: np.ndarray, name: str) -> None:
    with np.errstate(over="ignore"):
        target[...] = values.reshape(target.shape)
    if not np.isfinite(target).all():
        raise NumericError(f"{name} overflow {target.dtype}; quantise from float32 or bfloat16 instead")


def _grouped_codes(codes: np.ndarray, scales: np.ndarray, fmt: Format) -> np.ndarray:
    return packing.unpack(codes, fmt.bits).reshape(*scales.shape, fmt.group_size)
