"""Products with weights as they are stored, packed or plain f32, f16 or bf16; rows of an embedding, rows joined."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from coterie.arrays import bfloat16
from coterie.backends.cpu.linear import linear as product
from coterie.backends.cpu.matrix import matrix_for
from coterie.formats import Packed
from coterie.formats.codec import dequantize


def linear(x: np.ndarray, weight: Packed | np.ndarray) -> np.ndarray:
    # The kernels read weights by their address, so a file's arrays may be unaligned and are never copied.
    return product(x, matrix_for(weight))


def embed(weight: Packed | np.ndarray, ids: Sequence[int]) -> np.ndarray:
    rows = np.asarray(ids, np.intp)
    return dense_part(weight, rows)


def dense_part(weight: Packed | np.ndarray, index: Any) -> np.ndarray:
    """weight[index], an index of leading axes, as f32 without further rounding."""
    if not isinstance(weight, Packed):
        return _widened(weight[index])
    scales = weight.scales[index]
    biases = None if weight.biases is None else weight.biases[index]
    if biases is not None:
        # The codec computes in the dtype of the scales; in f32 the stored numbers meet as they are.
        scales, biases = _widened(scales), _widened(biases)
    return dequantize(weight.codes[index], scales, biases, weight.format, np.float32)


def join(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _widened(values: np.ndarray) -> np.ndarray:
    """A copy in f32. A bf16 number is the upper half of the f32 number of the same value."""
    if values.dtype == bfloat16:
        return (values.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)
