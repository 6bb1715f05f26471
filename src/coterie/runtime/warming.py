"""Compile ahead: what a first call on the CPU would otherwise wait for."""

import numpy as np

from coterie.formats import Format, Packed
from coterie.moe import Experts, moe
from coterie.ops import accumulate, group, matvec, quantize, quantized_matmul, route, weighted_sum
from coterie.ops.dispatch import numpy_dtype

COMMON_FORMATS = (("affine", 4, 64), ("affine", 4, 32), ("affine", 8, 64), ("affine", 8, 32), ("mxfp4", 4, 32))
"""(mode, bits, group size) of most published checkpoints."""

_SIZE = 128


def warmup(
    formats: tuple[tuple[str, int, int], ...] = COMMON_FORMATS, scale_dtypes: tuple[str, ...] = ("bfloat16", "float16")
) -> None:
    """Compile the CPU kernels for these formats, and affine scales of these dtypes, into the cache on disk.

    Kernels that are there already are only loaded. Without arguments: the formats of most published checkpoints, which
    takes some ten seconds once. Unknown formats are an `ArgumentError`.
    """
    resolved = [Format.resolve(*spec) for spec in formats]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, _SIZE), np.float32)
    routing = route(rng.standard_normal((2, 2), np.float32), 1)
    group(routing.ids, 2)
    weighted_sum(x[:, None], routing.weights)
    accumulate(x.copy(), x, 1.0)
    matvec(x, x[0])
    for fmt in resolved:
        for dtype in scale_dtypes if fmt.mode == "affine" else ("float32",):
            matrix = rng.standard_normal((2, _SIZE, _SIZE)).astype(numpy_dtype(dtype))
            stack, single = _packed(matrix, fmt), _packed(matrix[0], fmt)
            quantized_matmul(x, single)
            moe(x, routing, Experts(stack, stack, stack, "silu"))


def _packed(matrix: np.ndarray, fmt: Format) -> Packed:
    codes, scales, *biases = quantize(matrix, fmt.group_size, fmt.bits, fmt.mode)
    return Packed(codes, scales, biases[0] if biases else None, fmt.bits, fmt.group_size, fmt.mode)
