"""Gated activations of expert MLPs: activation(gate) * up, computed in f32, returned in the input's dtype.

    silu             gate * sigmoid(gate) * up                                SwiGLU (Shazeer, 2020)
    gelu_tanh        0.5 gate (1 + tanh(sqrt(2/pi) (gate + 0.044715 gate^3))) * up     GEGLU with the tanh form
    gelu             0.5 gate (1 + erf(gate / sqrt(2))) * up
    relu             max(gate, 0) * up
    swiglu_clamped   g sigmoid(1.702 g) * (u + 1),  g = min(gate, 7),  u = clip(up, -7, 7)      gpt-oss

Every activation is finite for every finite gate.
"""

import math
from typing import Literal, get_args

import numpy as np

from coterie.arrays import Array, as_numpy, kind_of
from coterie.errors import ArgumentError
from coterie.ops import checks, dispatch
from coterie.ops.forms import FORMS

Activation = Literal["silu", "gelu_tanh", "gelu", "relu", "swiglu_clamped"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

CLAMP = 7.0
"""swiglu_clamped: the gate is cut above, the up half on both sides."""

SIGMOID_SLOPE = 1.702
"""swiglu_clamped: the factor inside its sigmoid."""


def check_activation(activation: str) -> None:
    """Refuse an activation that is not known, by name."""
    if activation not in ACTIVATIONS:
        raise ArgumentError(
            f"activation {activation!r} is not known; expected one of {', '.join(ACTIVATIONS)}", code="activation"
        )


def glu(gate: Array, up: Array, activation: str = "silu") -> Array:
    """activation(gate) * up, element by element.

    gate, up: [...] of one shape, one kind and one dtype (f32, f16 or bf16). Returns the same. Strided views work.
    """
    form = FORMS[dispatch.kind_of_both(gate, up, ("gate", "up"))]
    check_activation(activation)
    dtype = checks.float_dtype(gate, "gate")
    if checks.float_dtype(up, "up") != dtype:
        raise ArgumentError(
            f"gate is {dtype} and up is {checks.float_dtype(up, 'up')}, expected one dtype", code="dtype"
        )
    shape = tuple(gate.shape)
    if tuple(up.shape) != shape:
        raise checks.shape_error(f"gate is {list(shape)} and up is {list(up.shape)}, expected one shape")
    if 0 in shape:
        return form.zeros(shape, dtype, gate)
    return form.back(form.verb("glu")(form.dense(gate), form.dense(up), activation), shape)


def glu_fused(gate_up: Array, activation: str = "silu") -> Array:
    """`glu` of one array whose last axis holds the gate half first and then the up half: [..., 2n] to [..., n]."""
    form = FORMS[kind_of(gate_up)]
    check_activation(activation)
    dtype = checks.float_dtype(gate_up, "gate_up")
    shape = tuple(gate_up.shape)
    if not shape or shape[-1] % 2:
        raise checks.shape_error(f"gate_up is {list(shape)}, expected an even last axis: a gate half and an up half")
    out_shape = (*shape[:-1], shape[-1] // 2)
    if 0 in out_shape:
        return form.zeros(out_shape, dtype, gate_up)
    return form.back(form.verb("glu_fused")(form.dense(gate_up), activation), out_shape)


def glu_reference(gate: Array, up: Array, activation: str) -> np.ndarray:
    """`glu` in float64."""
    g: np.ndarray = as_numpy(gate).astype(np.float64)
    u: np.ndarray = as_numpy(up).astype(np.float64)
    if activation == "swiglu_clamped":
        g, u = np.minimum(g, CLAMP), np.clip(u, -CLAMP, CLAMP) + 1
        share = _sigmoid(SIGMOID_SLOPE * g)
    elif activation == "silu":
        share = _sigmoid(g)
    elif activation == "gelu_tanh":
        share = 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))
    elif activation == "gelu":
        share = 0.5 * np.vectorize(math.erfc, otypes=[float])(-g / math.sqrt(2))
    else:
        share = np.heaviside(g, 0.0)
    product: np.ndarray = g * share * u
    return product


def glu_fused_reference(gate_up: Array, activation: str) -> np.ndarray:
    """`glu_fused` in float64."""
    values = as_numpy(gate_up)
    half = values.shape[-1] // 2
    return glu_reference(values[..., :half], values[..., half:], activation)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    sigmoid: np.ndarray = 1 / (1 + np.exp(-np.maximum(x, -700.0)))
    return sigmoid
