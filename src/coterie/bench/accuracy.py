"""The error of a layer against float64: the worst of a few rows, each relative to its own root mean square."""

from collections.abc import Callable

import numpy as np

from coterie.bench.weights import Call, checked_places
from coterie.formats import Packed, codec
from coterie.moe import Experts
from coterie.ops.activations import glu_reference

Decode = Callable[[str, int, slice], np.ndarray]
"""(projection "gate", "up" or "down"; expert; rows) -> the exact weights of those rows, float64 [rows, K]."""

_ROWS = 1024
"""Weight rows decoded at a time: a whole expert in float64 may take more than a gigabyte."""


def reference(checked: Call, intermediate: int, activation: str, decode: Decode) -> np.ndarray:
    """The layer's output for the checked tokens, float64 [C, H]."""
    tokens = checked.x.astype(np.float64)
    out = np.zeros_like(tokens)
    ids, weights = checked.routing.ids, checked.routing.weights.astype(np.float64)
    for expert in np.unique(ids):
        rows, slots = np.nonzero(ids == expert)
        gate, up = (_project(tokens[rows], name, int(expert), intermediate, decode) for name in ("gate", "up"))
        down = _project(glu_reference(gate, up, activation), "down", int(expert), tokens.shape[1], decode)
        out[rows] += weights[rows, slots][:, None] * down
    return out


def _project(x: np.ndarray, name: str, expert: int, n_rows: int, decode: Decode) -> np.ndarray:
    parts = [x @ decode(name, expert, slice(row, min(row + _ROWS, n_rows))).T for row in range(0, n_rows, _ROWS)]
    return np.concatenate(parts, -1)


def decode_experts(experts: Experts) -> Decode:
    """The exact weights of an `Experts` record of packed matrices."""

    def decode(name: str, expert: int, rows: slice) -> np.ndarray:
        packed: Packed = getattr(experts, name)
        biases = None if packed.biases is None else packed.biases[expert, rows]
        return codec.dequantize_f64(packed.codes[expert, rows], packed.scales[expert, rows], biases, packed.format)

    return decode


def worst_row(output: np.ndarray, wanted: np.ndarray) -> float:
    """The largest root mean square error of a checked row of `output` [T, H], relative to that of the row."""
    worst = 0.0
    for place, token in checked_places(len(output)):
        difference = output[place].astype(np.float64) - wanted[token]
        error = float(np.sqrt(np.mean(difference**2) / np.mean(wanted[token] ** 2)))
        worst = error if np.isnan(error) else max(worst, error)
    return worst
