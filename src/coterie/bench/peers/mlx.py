"""MLX on the CPU: the chain of `gather_qmm` that a mixture layer is on MLX, in f32, on the same weights."""

from typing import Any

import mlx.core as mx
import numpy as np

from coterie.arrays import from_numpy
from coterie.bench.entrants import Case, Entrant, projections
from coterie.bench.weights import Call
from coterie.formats import Packed


def entrants(case: Case) -> list[Entrant]:
    """One entrant; it is slow by orders of magnitude, so it decodes only and takes few rounds."""
    return [_Chain(case)]


class _Chain(Entrant):
    note = "f32, on the CPU, the same weights"
    most_tokens, most_rounds = 1, 3

    def __init__(self, case: Case) -> None:
        self.label, self._case = "mlx", case
        packed = projections(case.layers[0])
        self._activation = case.shape.activation
        self._matrices = [_matrix(part) for part in packed]
        self.expert_bytes = sum(part.nbytes for part in packed) // case.shape.n_experts

    def prepare(self, call: Call) -> Any:
        return [mx.array(part) for part in (call.x, call.routing.ids, call.routing.weights)]

    def run(self, layer: int, prepared: Any) -> Any:
        del layer  # there is one
        x, ids, weights = prepared
        with mx.stream(mx.cpu):
            rows = mx.expand_dims(x, (-2, -3))
            gate, up = (_product(rows, matrix, ids) for matrix in self._matrices[:2])
            down = _product(_gated(gate, up, self._activation), self._matrices[2], ids).squeeze(-2)
            result = (down * weights[..., None]).sum(-2)
        mx.eval(result)
        return result

    def output(self, result: Any) -> np.ndarray:
        return np.array(result)

    def wanted(self) -> np.ndarray:
        return self._case.wanted


def _matrix(packed: Packed) -> tuple[Any, dict[str, Any]]:
    names = {"group_size": packed.group_size, "bits": packed.bits, "mode": packed.mode}
    parts = [None if part is None else from_numpy(part, "mlx") for part in (packed.codes, packed.scales, packed.biases)]
    mx.eval(*[part for part in parts if part is not None])
    return parts[0], {"scales": parts[1], "biases": parts[2], **names}


def _product(x: Any, matrix: tuple[Any, dict[str, Any]], ids: Any) -> Any:
    codes, rest = matrix
    return mx.gather_qmm(x, codes, **rest, rhs_indices=ids, transpose=True)


def _gated(gate: Any, up: Any, activation: str) -> Any:
    if activation == "swiglu_clamped":
        gate, up = mx.minimum(gate, 7.0), mx.clip(up, -7.0, 7.0)
        return gate * mx.sigmoid(1.702 * gate) * (up + 1)
    if activation == "gelu_tanh":
        return 0.5 * gate * (1 + mx.tanh(0.7978845608028654 * (gate + 0.044715 * gate**3))) * up
    return gate * mx.sigmoid(gate) * up
