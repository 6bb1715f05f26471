"""The experts of a few tokens in two launches, straight from packed weights: gate, up and activation, then down and the
weighted sum.
"""

from typing import Any

import mlx.core as mx

from coterie.backends.mlx.metal import launch, rows
from coterie.backends.mlx.metal.activations import number
from coterie.formats import Format, Packed
from coterie.ops.routing import Routing

GATE_UP = launch.Kernel(
    "experts_gate_up",
    (
        *("x", "ids", "gate_codes", "gate_scales", "gate_biases", "gate_offset"),
        *("up_codes", "up_scales", "up_biases", "up_offset"),
    ),
    shared=("quantized", "activation"),
)
DOWN = launch.Kernel(
    "experts_down",
    ("hidden", "ids", "weights", "codes", "scales", "biases", "offset"),
    shared=("quantized", "skipped"),
)


def fit(experts: Any) -> bool:
    """True for formats that the kernels read: affine with 4 or 8 bits and mxfp4, gate and up alike."""
    gate, up, down = experts.gate, experts.up, experts.down
    if not (_readable(gate) and _readable(down)):
        return False
    return up is None or (_readable(up) and up.format == gate.format and up.scales.dtype == gate.scales.dtype)


def moe(x: mx.array, routing: Routing, experts: Any) -> mx.array:
    """x [..., H] in any float dtype; the result in the same."""
    k = routing.ids.shape[-1]
    tokens, ids = rows.flat(x), routing.ids.reshape(-1, k)
    hidden = _gate_up(tokens, ids, experts)
    return _down(hidden, ids, routing.weights.reshape(-1, k), experts, x.dtype).reshape(x.shape)


def _readable(weight: Any) -> bool:
    if not isinstance(weight, Packed):
        return False
    fmt = weight.format
    return fmt.mode == "mxfp4" or (fmt.mode == "affine" and fmt.bits in (4, 8))


def _gate_up(tokens: mx.array, ids: mx.array, experts: Any) -> mx.array:
    """activation(gate x, up x) in f32 [T * k, I]."""
    fused = experts.up is None
    up = experts.gate if fused else experts.up
    up_offset = experts.gate_bias if fused else experts.up_bias
    grid, threadgroup = rows.simdgroup_rows(experts.intermediate, ids.size)
    template = {
        **_format(experts.gate.format),
        "FUSED": fused,
        "HAS_GATE_OFFSET": experts.gate_bias is not None,
        "HAS_UP_OFFSET": up_offset is not None,
        "ACTIVATION": number(experts.activation),
    }
    (hidden,) = launch.run(
        GATE_UP,
        [
            tokens,
            ids,
            *_parts(experts.gate),
            launch.optional(experts.gate_bias),
            *_parts(up),
            launch.optional(up_offset),
        ],
        template,
        grid=grid,
        threadgroup=threadgroup,
        shapes=[(ids.size, experts.intermediate)],
        dtypes=[mx.float32],
    )
    return hidden


def _down(hidden: mx.array, ids: mx.array, weights: mx.array, experts: Any, dtype: mx.Dtype) -> mx.array:
    grid, threadgroup = rows.simdgroup_rows(experts.hidden, ids.shape[0])
    (out,) = launch.run(
        DOWN,
        [hidden, ids, weights, *_parts(experts.down), launch.optional(experts.down_bias)],
        {**_format(experts.down.format), "HAS_OFFSET": experts.down_bias is not None, "T": dtype},
        grid=grid,
        threadgroup=threadgroup,
        shapes=[(ids.shape[0], experts.hidden)],
        dtypes=[dtype],
    )
    return out


def _format(fmt: Format) -> launch.Template:
    return {
        "BITS": fmt.bits,
        "GROUP": fmt.group_size,
        "MICROSCALED": fmt.mode != "affine",
        "ROWS": rows.ROWS,
        "SIMDGROUPS": rows.SIMDGROUPS,
    }


def _parts(packed: Packed) -> tuple[mx.array, mx.array, mx.array]:
    return packed.codes, packed.scales, launch.optional(packed.biases)
