"""Gated activations in f32."""

import math

import mlx.core as mx

from coterie.backends.mlx.metal import activations as metal
from coterie.backends.mlx.metal import launch
from coterie.ops.activations import CLAMP, SIGMOID_SLOPE


def glu(gate: mx.array, up: mx.array, activation: str) -> mx.array:
    if launch.usable():
        return metal.glu(gate, up, activation)
    return _gated(gate.astype(mx.float32), up.astype(mx.float32), activation).astype(gate.dtype)


def glu_fused(gate_up: mx.array, activation: str) -> mx.array:
    if launch.usable():
        return metal.glu_fused(gate_up, activation)
    gate, up = mx.split(gate_up, 2, axis=-1)
    return glu(gate, up, activation)


def _gated(gate: mx.array, up: mx.array, activation: str) -> mx.array:
    if activation == "silu":
        return gate * mx.sigmoid(gate) * up
    if activation == "gelu_tanh":
        inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate * gate * gate)
        return 0.5 * gate * (1 + mx.tanh(inner)) * up
    if activation == "gelu":
        return 0.5 * gate * (1 + mx.erf(gate / math.sqrt(2))) * up
    if activation == "relu":
        return mx.maximum(gate, 0) * up
    gate, up = mx.minimum(gate, CLAMP), mx.clip(up, -CLAMP, CLAMP)
    return gate * mx.sigmoid(SIGMOID_SLOPE * gate) * (up + 1)
