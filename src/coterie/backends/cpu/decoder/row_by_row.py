"""The decoder's verbs with a promise: a row comes out with the bits that it has in a call of its own.

A kernel is chosen by the number of rows that meet a matrix, and kernels sum in different orders. Few rows all take the
kernel of a single row, so more of them go through in parts that are small enough for it.
"""

from typing import Any

import numpy as np

from coterie.backends.cpu import decoder
from coterie.backends.cpu.product import DOT_TOKENS
from coterie.formats import Packed
from coterie.ops import Routing


def __getattr__(name: str) -> Any:
    """Every other verb treats rows one by one in any case."""
    return getattr(decoder, name)


_NEAR = 12 << 10
"""Activations (f32) that rows may have together: they meet every weight row, and have to stay in the first-level cache.

With 4,096 inputs, four rows at a time took 2.8 times as long as three (docs/performance.md).
"""


def linear(x: np.ndarray, weight: Packed | np.ndarray) -> np.ndarray:
    step = _rows_at_a_time(x.shape[-1])
    return decoder.join([decoder.linear(x[begin : begin + step], weight) for begin in range(0, len(x), step)])


def moe(x: np.ndarray, routing: Routing, experts: Any) -> np.ndarray:
    parts = _parts(routing.ids, experts.n_experts, _rows_at_a_time(x.shape[-1]))
    if len(parts) == 1:
        return decoder.moe(x, routing, experts)
    out = np.empty_like(x)
    for rows in parts:
        part = Routing(routing.ids[rows], routing.weights[rows], routing.n_experts)
        out[rows] = decoder.moe(x[rows], part, experts)
    return out


def _rows_at_a_time(n_inputs: int) -> int:
    return max(1, min(DOT_TOKENS, _NEAR // n_inputs))


def _parts(ids: np.ndarray, n_experts: int, most: int) -> list[list[int]]:
    """The rows of ids [T, k] in parts in which no expert has more than `most` rows, each in the first with room."""
    parts: list[tuple[list[int], np.ndarray]] = []
    for row, chosen in enumerate(ids):
        rows, load = next((part for part in parts if (part[1][chosen] < most).all()), ([], None))
        if load is None:
            load = np.zeros(n_experts, np.int64)
            parts.append((rows, load))
        rows.append(row)
        load[chosen] += 1
    return [rows for rows, _ in parts]
