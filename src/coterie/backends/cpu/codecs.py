"""Quantise and dequantise with the codec of `coterie.formats`, rows divided among threads.

The codec is NumPy, which lets other threads run while it computes; using it here, too, keeps one definition of every
byte.
"""

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from coterie.backends.cpu.pool import get_pool
from coterie.formats import Format, Packed, codec

T = TypeVar("T")

_ROWS_WORTH_A_THREAD = 1 << 18
"""Weights below which another thread costs more than it saves."""


def quantize(w: np.ndarray, fmt: Format) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(codes, scales, biases or None) of w [..., N, K], as `mx.quantize` makes them."""
    leading, n_inputs = w.shape[:-1], w.shape[-1]
    rows = w.reshape(-1, n_inputs)
    parts = _in_parts(len(rows), n_inputs, lambda part: codec.quantize(rows[part], fmt))
    joined = [
        None if any(piece is None for piece in pieces) else np.concatenate(pieces)
        for pieces in zip(*parts, strict=True)
    ]
    codes, scales, biases = (None if piece is None else piece.reshape(*leading, -1) for piece in joined)
    return codes, scales, biases  # type: ignore[return-value]


def dequantize(packed: Packed, dtype: np.dtype) -> np.ndarray:
    """The values [..., N, K] in `dtype`, as `mx.dequantize` makes them."""
    codes, scales = (part.reshape(-1, part.shape[-1]) for part in (packed.codes, packed.scales))
    biases = None if packed.biases is None else packed.biases.reshape(scales.shape)

    def part_of(part: slice) -> np.ndarray:
        return codec.dequantize(
            codes[part], scales[part], None if biases is None else biases[part], packed.format, dtype
        )

    return np.concatenate(_in_parts(len(codes), packed.shape[-1], part_of)).reshape(packed.shape)


def _in_parts(n_rows: int, n_inputs: int, work: Callable[[slice], T]) -> list[T]:
    """`work` on consecutive slices of the rows, in threads where there is enough of it; results in the rows' order."""
    n_parts = max(1, min(get_pool().n_threads, n_rows, n_rows * n_inputs // _ROWS_WORTH_A_THREAD))
    borders = [n_rows * part // n_parts for part in range(n_parts + 1)]
    slices = [slice(begin, end) for begin, end in itertools.pairwise(borders)]
    if n_parts == 1:
        return [work(slices[0])]
    with ThreadPoolExecutor(n_parts) as threads:
        return list(threads.map(work, slices))
