"""The experts layer, composed of MLX's gathered products; for few tokens on a GPU of Apple's two kernels of our own."""

from typing import Any

import mlx.core as mx

from coterie.backends.mlx.activations import glu, glu_fused
from coterie.backends.mlx.combine import weighted_sum
from coterie.backends.mlx.matmul import gather_mm, gather_qmm
from coterie.backends.mlx.metal import experts as metal
from coterie.backends.mlx.metal import launch
from coterie.backends.mlx.routing import group
from coterie.errors import UnsupportedError
from coterie.formats import Packed
from coterie.ops.routing import Routing

_GROUPED_FROM = 64
"""Routed rows from which sorting them by expert pays; mlx-lm sorts from there too."""


def moe(x: mx.array, routing: Routing, experts: Any, precision: str = "default") -> mx.array:
    if precision == "int8":
        raise UnsupportedError(
            'precision="int8" was asked for with MLX arrays, but only the CPU back end has it; use '
            'precision="default", or NumPy arrays',
            code="int8",
        )
    k = routing.ids.shape[-1]
    if routing.ids.size < _GROUPED_FROM and launch.usable() and metal.fit(experts):
        return metal.moe(x, routing, experts)
    tokens = x.reshape(-1, x.shape[-1]).astype(mx.float32)
    ids = routing.ids.reshape(-1)
    if ids.size < _GROUPED_FROM:
        outputs = _mlp(mx.repeat(tokens, k, axis=0), ids, experts, False)
    else:
        order, _, inverse = group(ids, experts.n_experts)
        outputs = _mlp(tokens[order // k], ids[order], experts, True)[inverse]
    weights = routing.weights.reshape(-1, k)
    return weighted_sum(outputs.reshape(-1, k, x.shape[-1]), weights).reshape(x.shape).astype(x.dtype)


def _mlp(rows: mx.array, ids: mx.array, experts: Any, ascending: bool) -> mx.array:
    """Each row [R, H] through the expert of its id."""
    gate = _project(rows, ids, experts.gate, experts.gate_bias, ascending)
    if experts.up is None:
        hidden = glu_fused(gate, experts.activation)
    else:
        hidden = glu(gate, _project(rows, ids, experts.up, experts.up_bias, ascending), experts.activation)
    return _project(hidden, ids, experts.down, experts.down_bias, ascending)


def _project(
    rows: mx.array, ids: mx.array, weight: Packed | mx.array, bias: mx.array | None, ascending: bool
) -> mx.array:
    if isinstance(weight, Packed):
        out = gather_qmm(rows[:, None], weight, None, ids, True, ascending)[:, 0]
    else:
        out = gather_mm(rows[:, None], weight.swapaxes(-1, -2), None, ids, ascending)[:, 0]
    return (out if bias is None else out + bias[ids]).astype(mx.float32)
