"""Products with weights as they are stored, packed or plain f32, f16 or bf16; rows of an embedding, rows joined."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from coterie.arrays import bfloat16
from coterie.backends.cpu import isa
from coterie.backends.cpu.decoder.recorded_step import recorded_step
from coterie.backends.cpu.jit import njit
from coterie.backends.cpu.linear import Matrices
from coterie.backends.cpu.linear import linears as products
from coterie.backends.cpu.matrix import matrix_for
from coterie.formats import Packed
from coterie.formats.codec import dequantize

Weight = Packed | np.ndarray
Record = TypeVar("Record")

_MOST_REMEMBERED = 16
"""Sets of matrices that begin with the same one; a decoder has one or two."""


def adopt(weights: Mapping[str, Any], _progress: Any = None) -> Mapping[str, Any]:
    """Weights of a checkpoint as the decoder takes them: where they lie."""
    return weights


def linear(x: np.ndarray, weight: Weight, precision: str) -> np.ndarray:
    return linears(x, (weight,), (None,), precision)[0]


def linears(
    x: np.ndarray, weights: Sequence[Weight], biases: Sequence[np.ndarray | None], precision: str
) -> list[np.ndarray]:
    # The kernels read weights by their address, so a file's arrays may be unaligned and are never copied.
    return products(x, matrices_for(weights, biases, precision))


def matrices_for(weights: Sequence[Weight], biases: Sequence[np.ndarray | None], precision: str) -> Matrices:
    """The record of matrices that are multiplied together."""

    def make() -> Matrices:
        added = tuple(None if bias is None else np.ascontiguousarray(bias, np.float32) for bias in biases)
        return Matrices(tuple(matrix_for(weight, precision) for weight in weights), added)

    return remembered(f"cpu.matrices.{precision}", (*weights, *biases), make)


def remembered(name: str, arrays: Sequence[Weight | None], make: Callable[[], Record]) -> Record:
    """What is made of some weights and vectors, remembered by the first that is a Packed; made anew if there is none.

    With the record it keeps all of them, so that none can take the identity of one that is gone.
    """
    keeper = next((array for array in arrays if isinstance(array, Packed)), None)
    if keeper is None:
        return make()
    held = keeper.derived.setdefault(f"{name}.{isa.current().name}", {})
    key = tuple(map(id, arrays))
    found = held.get(key)
    if found is None:
        if len(held) >= _MOST_REMEMBERED:
            held.clear()
        found = held[key] = (make(), tuple(arrays))
    record: Record = found[0]
    return record


def embed(weight: Weight, ids: Sequence[int], scale: float = 1.0) -> np.ndarray:
    rows = dense_part(weight, np.asarray(ids, np.intp))
    rows *= np.float32(scale)
    step = recorded_step()
    if step is not None:
        step.embedded(weight, scale, rows)
    return rows


def dense_part(weight: Weight, index: Any) -> np.ndarray:
    """weight[index], an index of leading axes, as f32 without further rounding."""
    if not isinstance(weight, Packed):
        return _widened(weight[index])
    # A copy: parts of a file may be unaligned.
    codes, scales = np.array(weight.codes[index]), weight.scales[index]
    if weight.biases is None:
        return dequantize(codes, scales, None, weight.format, np.float32)
    # The codec computes in the dtype of the scales; in f32 the stored numbers meet as they are.
    scales, biases = _widened(scales), _widened(weight.biases[index])
    out = np.empty((*codes.shape[:-1], weight.shape[-1]), np.float32)
    flat = (part.reshape(-1, part.shape[-1]) for part in (codes, scales, biases, out))
    _decode_affine(*flat, weight.bits, weight.group_size)
    return out


@njit
def _decode_affine(codes, scales, biases, out, bits, group_size):
    """out [R, K] = scale * code + bias, rounded after each of the two; codes u32 [R, words]."""
    mask = np.uint32((1 << bits) - 1)
    words = group_size * bits // 32
    for row in range(out.shape[0]):
        for group in range(scales.shape[1]):
            scale, bias = scales[row, group], biases[row, group]
            part = out[row, group * group_size : (group + 1) * group_size]
            stream = codes[row, group * words : (group + 1) * words]
            for index in range(group_size):
                word, shift = (index * bits) >> 5, (index * bits) & 31
                value = stream[word] >> np.uint32(shift)
                if shift + bits > 32:
                    value |= stream[word + 1] << np.uint32(32 - shift)
                part[index] = scale * np.float32(value & mask) + bias


def join(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _widened(values: np.ndarray) -> np.ndarray:
    """A copy in f32. A bf16 number is the upper half of the f32 number of the same value."""
    if values.dtype == bfloat16:
        return (values.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)
