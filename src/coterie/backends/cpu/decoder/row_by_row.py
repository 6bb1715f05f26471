"""Rows in parts that all take the kernel of a single row.

A kernel is chosen by the number of rows that meet a matrix, and kernels sum in different orders. Few rows all take the
kernel of a single row, so more of them go through in parts that are small enough for it: then a row comes out with the
bits that it has in a call of its own.
"""

import numpy as np

from coterie.backends.cpu.product import DOT_TOKENS

_NEAR = 48 << 10
"""Bytes of activations that rows may have together: they meet every weight row, and have to stay in the nearest cache.

With 4,096 inputs in f32, four rows at a time took 2.8 times as long as three (docs/performance.md).
"""


def rows_at_a_time(n_inputs: int, precision: str) -> int:
    """How many rows of activations go through together."""
    return max(1, min(DOT_TOKENS, _NEAR // ((4 if precision == "exact" else 2) * n_inputs)))


def parts_of(ids: np.ndarray, n_experts: int, most: int) -> list[list[int]]:
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
