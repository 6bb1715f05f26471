"""MLX arrays in the computer's memory as NumPy arrays, without a copy."""

from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np

_NUMPY_DTYPES = {
    mx.bfloat16: np.dtype(ml_dtypes.bfloat16),
    mx.float16: np.dtype(np.float16),
    mx.float32: np.dtype(np.float32),
    mx.uint8: np.dtype(np.uint8),
    mx.uint32: np.dtype(np.uint32),
    mx.int32: np.dtype(np.int32),
}
_TWINS = {1: mx.int8, 2: mx.int16, 4: mx.int32}


def computed(*arrays: mx.array) -> bool:
    """Wait for the arrays' values. False inside `mx.compile` and its like, where arrays have none."""
    try:
        mx.eval(*arrays)
    except ValueError:
        return False
    return True


def view(array: mx.array) -> np.ndarray:
    """The array's memory as a NumPy array of the same dtype, computed first where it was not.

    A strided array is copied. The view keeps the memory alive, unless the array is assigned to in place.
    """
    mx.eval(array)
    return _window(array, _NUMPY_DTYPES[array.dtype])


def weight_view(array: mx.array) -> np.ndarray:
    """A view of a weight's memory. It keeps the memory even where the weight is assigned to in place.

    Such an assignment gives the array other memory under the same name: hence a second MLX array over the first memory.
    """
    twin = array.view(_TWINS[array.dtype.size] if array.dtype != mx.int32 else mx.uint32)
    mx.eval(twin)
    return _window(twin, _NUMPY_DTYPES[array.dtype])


def lies_dense(array: mx.array) -> bool:
    """True where the values lie in memory in the order of the indices, so that a view needs no copy."""
    mx.eval(array)
    return _memory(array).c_contiguous


def _window(array: mx.array, dtype: np.dtype) -> np.ndarray:
    memory = _memory(array)
    if not memory.c_contiguous:
        array = mx.contiguous(array)
        mx.eval(array)
        memory = _memory(array)
    return np.frombuffer(memory, dtype).reshape(array.shape)


def _memory(array: Any) -> memoryview:
    return memoryview(array)
