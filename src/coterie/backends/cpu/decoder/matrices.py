"""Products with weights as they are stored: packed, or plain f32, f16 or bf16; and rows of an embedding."""

from collections.abc import Sequence

import numpy as np

from coterie.arrays import bfloat16
from coterie.backends import cpu
from coterie.formats import Packed
from coterie.formats.codec import dequantize

_TILE = 1 << 18
"""Weights widened to f32 at a time: 1 MiB, which stays in the second-level cache until the product has read it."""


def linear(x: np.ndarray, weight: Packed | np.ndarray) -> np.ndarray:
    if isinstance(weight, Packed):
        return cpu.quantized_matmul(x, weight, True)
    if weight.dtype == np.float32 and weight.flags.aligned:
        return x @ weight.T
    out = np.empty((len(x), len(weight)), np.float32)
    step = max(1, _TILE // weight.shape[1])
    for begin in range(0, len(weight), step):
        np.matmul(x, _widened(weight[begin : begin + step]).T, out=out[:, begin : begin + step])
    return out


def _widened(weight: np.ndarray) -> np.ndarray:
    """A copy in f32. A bf16 number is the upper half of the f32 number of the same value."""
    if weight.dtype == bfloat16:
        return (weight.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return weight.astype(np.float32)


def embed(weight: Packed | np.ndarray, ids: Sequence[int]) -> np.ndarray:
    rows = np.asarray(ids, np.intp)
    if not isinstance(weight, Packed):
        return _widened(np.ascontiguousarray(weight[rows]))
    scales = weight.scales[rows]
    biases = None if weight.biases is None else weight.biases[rows]
    if biases is not None:
        # The codec computes in the dtype of the scales; in f32 the stored numbers meet without further rounding.
        scales, biases = _widened(scales), _widened(biases)
    return dequantize(weight.codes[rows], scales, biases, weight.format, np.float32)
