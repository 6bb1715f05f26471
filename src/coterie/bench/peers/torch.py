"""PyTorch: `_weight_int4pack_mm_for_cpu` for each expert in a loop, bf16 activations, group 64.

Codes are random bytes in PyTorch's own packing. The experts of the checked tokens are packed by PyTorch from codes that
are known, so that their exact weights are known, too: (code - 8) * scale + zero, scale and zero in bf16.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from coterie.arrays import bfloat16, from_numpy
from coterie.bench.entrants import Case, Entrant, RefusedError
from coterie.bench.weights import Call, affine_scale, bits_a_weight, generator, random_bytes, weight_bytes

_GROUP = 64


def entrants(case: Case) -> list[Entrant]:
    """One entrant, for 4-bit weights."""
    if case.format_name != "4bit":
        raise RefusedError("_weight_int4pack_mm_for_cpu has 4-bit weights with a scale and a zero only")
    return [_Int4(case)]


class _Int4(Entrant):
    note = "bf16 activations, a loop over experts, weights of its own"

    def __init__(self, case: Case) -> None:
        torch.set_num_threads(case.n_threads)
        self.label, self._case = "torch int4", case
        self.expert_bytes = weight_bytes(case.shape, bits_a_weight(case.fmt))
        self.n_layers = case.rotation(self.expert_bytes)
        self._layers = [self._layer(layer) for layer in range(self.n_layers)]
        for expert in np.unique(case.checked.routing.ids):
            for name in ("gate_up", "down"):
                codes = torch.from_numpy(self._codes(name, int(expert)).astype(np.int32))
                self._layers[0][name][0][int(expert)] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)

    def _size(self, name: str) -> tuple[int, int]:
        hidden, inner = self._case.shape.hidden, self._case.shape.intermediate
        return (2 * inner, hidden) if name == "gate_up" else (hidden, inner)

    def _layer(self, layer: int) -> dict[str, Any]:
        rng = generator(11, layer)
        parts = {}
        for name in ("gate_up", "down"):
            n_rows, n_inputs = self._size(name)
            n_experts, n_groups = self._case.shape.n_experts, n_inputs // _GROUP
            scales = affine_scale(rng, 4, n_inputs, n_experts * n_groups * n_rows)
            # The codes are centred by 8, half a step off: the zero point makes up for it.
            pairs = np.stack([scales, scales / 2], -1).astype(bfloat16).reshape(n_experts, n_groups, n_rows, 2)
            codes = torch.from_numpy(random_bytes(rng, n_experts, n_rows, n_inputs // 2))
            parts[name] = (codes, from_numpy(pairs, "torch"))
        return parts

    @lru_cache(maxsize=1)  # noqa: B019 - one matrix, and the entrant lives for one case
    def _codes(self, name: str, expert: int) -> np.ndarray:
        return generator(13, expert, len(name)).integers(0, 16, self._size(name), np.uint8)

    def prepare(self, call: Call) -> Any:
        x = torch.from_numpy(call.x).to(torch.bfloat16)
        ids = call.routing.ids.astype(np.int64)
        places = {int(expert): np.nonzero(ids == expert) for expert in np.unique(ids)}
        rows = {expert: torch.from_numpy(tokens) for expert, (tokens, _) in places.items()}
        weights = {e: torch.from_numpy(call.routing.weights[place])[:, None] for e, place in places.items()}
        return x, rows, weights

    def run(self, layer: int, prepared: Any) -> Any:
        x, rows, weights = prepared
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
        (gate_up, gate_up_scales), (down, down_scales) = (self._layers[layer][name] for name in ("gate_up", "down"))
        out = torch.zeros(x.shape, dtype=torch.float32)
        for expert, tokens in rows.items():
            hidden = multiply(x[tokens], gate_up[expert], _GROUP, gate_up_scales[expert])
            gate, up = hidden.chunk(2, -1)
            inner = gated(gate, up, self._case.shape.activation)
            result = multiply(inner, down[expert], _GROUP, down_scales[expert])
            out.index_add_(0, tokens, result.float() * weights[expert])
        return out

    def output(self, result: Any) -> np.ndarray:
        return np.asarray(result.numpy())

    def wanted(self) -> np.ndarray:
        return self._case.reference(self._decode)

    def _decode(self, name: str, expert: int, rows: slice) -> np.ndarray:
        matrix = "down" if name == "down" else "gate_up"
        start = self._case.shape.intermediate if name == "up" else 0
        chosen = slice(rows.start + start, rows.stop + start)
        codes = self._codes(matrix, expert)[chosen].astype(np.float64) - 8
        pairs = self._layers[0][matrix][1][expert].double().numpy()[:, chosen]
        scales, zeros = (np.repeat(pairs[..., part].T, _GROUP, -1) for part in range(2))
        return np.asarray(codes * scales + zeros)


def gated(gate: Any, up: Any, activation: str) -> Any:
    """activation(gate) * up by PyTorch's own operations, in the tensors' dtype."""
    if activation == "swiglu_clamped":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return gate * torch.sigmoid(1.702 * gate) * (up + 1)
    if activation == "gelu_tanh":
        return torch.nn.functional.gelu(gate, approximate="tanh") * up
    return torch.nn.functional.silu(gate) * up
