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


def linear(x: np.ndarray, weight: Packed | np.ndarray) -> np.ndarray:
    begins = range(0, len(x), DOT_TOKENS)
    return decoder.join([decoder.linear(x[begin : begin + DOT_TOKENS], weight) for begin in begins])


def moe(x: np.ndarray, routing: Routing, experts: Any) -> np.ndarray:
    parts = _parts(routing.ids, experts.n_experts)
    if len(parts) == 1:
        return decoder.moe(x, routing, experts)
    out = np.empty_like(x)
    for rows in parts:
        part = Routing(routing.ids[rows], routing.weights[rows], routing.n_experts)
        out[rows] = decoder.moe(x[rows], part, experts)
    return out


def _parts(ids: np.ndarray, n_experts: int) -> list[list[int]]:
    """The rows of ids [T, k] in parts in which no expert has more than DOT_TOKENS rows, each in the first with room."""
    parts: list[tuple[list[int], np.ndarray]] = []
    for row, chosen in enumerate(ids):
        rows, load = next((part for part in parts if (part[1][chosen] < DOT_TOKENS).all()), ([], None))
        if load is None:
            load = np.zeros(n_experts, np.int64)
            parts.append((rows, load))
        rows.append(row)
        load[chosen] += 1
    return [rows for rows, _ in parts]
