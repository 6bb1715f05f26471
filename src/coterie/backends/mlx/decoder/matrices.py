"""Weights as MLX arrays, products with them, rows of an embedding, rows joined."""

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from coterie.arrays import from_numpy
from coterie.backends.mlx.matmul import quantized_matmul
from coterie.backends.mlx.quantize import dequantize
from coterie.formats import Packed
from coterie.ops import dispatch


def adopt(weights: Mapping[str, Any], _progress: Any = None) -> dict[str, Any]:
    """Weights of a checkpoint as MLX arrays. They are copied: MLX 0.32 takes no memory of others on a CPU."""
    return {path: _adopted(weight) for path, weight in weights.items()}


def _adopted(weight: Packed | np.ndarray) -> Packed | mx.array:
    if not isinstance(weight, Packed):
        plain: mx.array = from_numpy(weight, "mlx")
        return plain
    codes, scales, biases = (
        None if part is None else from_numpy(part, "mlx") for part in (weight.codes, weight.scales, weight.biases)
    )
    return dispatch.packed_like(weight, codes, scales, biases)


def linear(x: mx.array, weight: Packed | mx.array, *, exact: bool = False) -> mx.array:  # noqa: ARG001
    if isinstance(weight, Packed):
        return quantized_matmul(x, weight, True)
    return x @ weight.astype(mx.float32).T


def linears(
    x: mx.array, weights: Sequence[Packed | mx.array], biases: Sequence[mx.array | None], *, exact: bool = False
) -> list[mx.array]:
    return biased([linear(x, weight, exact=exact) for weight in weights], biases)


def biased(products: Sequence[mx.array], biases: Sequence[mx.array | None]) -> list[mx.array]:
    """Each of the products plus its bias, if it has one."""
    return [out if bias is None else out + bias for out, bias in zip(products, biases, strict=True)]


def embed(weight: Packed | mx.array, ids: Sequence[int], scale: float = 1.0) -> mx.array:
    return scale * _rows(weight, mx.array(list(ids)))


def _rows(weight: Packed | mx.array, rows: mx.array) -> mx.array:
    if not isinstance(weight, Packed):
        return weight[rows].astype(mx.float32)
    scales = weight.scales[rows]
    biases = None if weight.biases is None else weight.biases[rows].astype(mx.float32)
    if biases is not None:
        # MLX dequantises in the dtype of the scales; in f32 the stored numbers meet as they are.
        scales = scales.astype(mx.float32)
    return dequantize(dispatch.packed_like(weight, weight.codes[rows], scales, biases), "float32")


def join(parts: Sequence[mx.array]) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(list(parts))
