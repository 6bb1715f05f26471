"""A stack of weight matrices as the kernels see it: addresses, strides and the layout that reads it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coterie.arrays import bfloat16
from coterie.backends.cpu import isa
from coterie.backends.cpu.arithmetic import Arithmetic, arithmetic_for
from coterie.backends.cpu.layout import Layout
from coterie.backends.cpu.pool import address_of
from coterie.backends.cpu.prepare import Preparation
from coterie.formats import Format, Packed

PRODUCT, CODES, CODES_STRIDE, CODES_EXPERT, SCALES, SCALES_STRIDE, SCALES_EXPERT, BIASES, N_INPUTS = range(9)
ADDED, ADDED_EXPERT = 9, 10  # f32 values that are added to each row's result, or address 0

_KINDS = {"affine": "affine", "mxfp4": "e2m1", "nvfp4": "e2m1", "mxfp8": "e4m3"}
_FIXED_SCALES = {"mxfp4": "e8m0", "mxfp8": "e8m0", "nvfp4": "e4m3"}
_FLOATS = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16", bfloat16: "bf16"}


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """`words` is what jobs read (the places above), at address `at`; `owners` keep alive what addresses point to.

    frames: what `linear` remembers of its calls, by the number of rows.
    """

    layout: Layout
    words: np.ndarray
    n_rows: int
    n_inputs: int
    owners: tuple[Any, ...]
    arithmetic: Arithmetic
    preparation: Preparation
    at: int
    frames: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict, init=False)


def layout_of(fmt: Format, scale_dtype: np.dtype) -> Layout:
    """The layout of a packed row with scales of this dtype."""
    scale = _FIXED_SCALES.get(fmt.mode) or _FLOATS[scale_dtype]
    return Layout(_KINDS[fmt.mode], fmt.bits, fmt.group_size, scale, isa.current())


def matrix_of(
    weight: Packed | np.ndarray, added: np.ndarray | None = None, precision: str = "exact", name: str = "weight"
) -> Matrix:
    """The record of a packed stack or matrix, or of a plain array, [E, N, K] or [N, K]; rows must be contiguous.

    `added`: f32 [E, N], a bias for each row's result. precision: "exact", "default" or "int8"; where there is no kernel
    for "int8", `UnsupportedError` calls the matrix by its `name`.
    """
    if isinstance(weight, Packed):
        layout = layout_of(weight.format, weight.scales.dtype)
        codes, scales, biases = weight.codes, weight.scales, weight.biases
        owners: tuple[Any, ...] = (codes, scales, biases, added)
        scale_words = [address_of(scales), scales.strides[-2], scales.strides[0] if scales.ndim > 2 else 0]
        scale_words.append(0 if biases is None else address_of(biases))
    else:
        kind = _FLOATS[weight.dtype]
        layout = Layout(kind, 8 * weight.dtype.itemsize, 0, "none", isa.current())
        codes, owners, scale_words = weight, (weight, added), [0, 0, 0, 0]
    n_rows, n_inputs = weight.shape[-2:]
    found = weight.format if isinstance(weight, Packed) else f"a plain array of {weight.dtype}"
    arithmetic = arithmetic_for(precision, layout, f"{name} is {found}")
    words = np.array(
        [
            arithmetic.product(layout.key).address,
            address_of(codes),
            codes.strides[-2],
            codes.strides[0] if codes.ndim > 2 else 0,
            *scale_words,
            n_inputs,
            0 if added is None else address_of(added),
            0 if added is None else added.strides[0],
        ],
        np.int64,
    )
    preparation = arithmetic.prepare(layout, n_inputs)
    return Matrix(layout, words, int(n_rows), int(n_inputs), owners, arithmetic, preparation, address_of(words))


def matrix_for(weight: Packed | np.ndarray, precision: str = "exact") -> Matrix:
    """`matrix_of`, remembered by a Packed for the next call."""
    if not isinstance(weight, Packed):
        return matrix_of(weight, precision=precision)
    name = f"cpu.matrix.{precision}.{isa.current().name}"
    matrix = weight.derived.get(name)
    if matrix is None:
        matrix = weight.derived.setdefault(name, matrix_of(weight, precision=precision))
    return matrix
