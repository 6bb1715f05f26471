"""Gated activations in f32: `coterie.ops.activations` has the formulas. A NaN stays one, and nothing else makes one."""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import let_next_begin, wait_for_previous
from coterie.ops.activations import CLAMP, SIGMOID_SLOPE

_CLAMP = tl.constexpr(CLAMP)
_SIGMOID_SLOPE = tl.constexpr(SIGMOID_SLOPE)


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def normal_tail(z):
    """The share of a normal distribution beyond z >= 0, f32, to 3e-7 of itself however small: 0.5 erfc(z / sqrt(2)).

    erfc(y) exp(y^2) is a polynomial in t = 1 / (1 + y / 2) to 5e-8, fitted over all y >= 0.
    """
    y = z * 0.7071067811865476
    t = 1.0 / (1.0 + 0.5 * y)
    scaled = 0.28484585881233215 + t * -0.059124354273080826
    scaled = -0.4877622425556183 + t * scaled
    scaled = 0.27871227264404297 + t * scaled
    scaled = -0.027071431279182434 + t * scaled
    scaled = 0.20287610590457916 + t * scaled
    scaled = 0.24305576086044312 + t * scaled
    scaled = 0.28238192200660706 + t * scaled
    scaled = 0.282086044549942 + t * scaled
    return 0.5 * tl.exp(-y * y) * scaled * t


@triton.jit
def gated(gate, up, ACTIVATION: tl.constexpr):
    """activation(gate) * up for f32 tiles of one shape."""
    if ACTIVATION == "silu":
        return gate * sigmoid(gate) * up
    if ACTIVATION == "gelu_tanh":
        # 0.5 (1 + tanh(z)) is sigmoid(2 z), which is 0 or 1 where z overflows.
        return gate * sigmoid(1.5957691216057308 * gate * (1.0 + 0.044715 * gate * gate)) * up
    if ACTIVATION == "gelu":
        tail = normal_tail(tl.abs(gate))
        return gate * tl.where(gate < 0.0, tail, 1.0 - tail) * up
    if ACTIVATION == "relu":
        return tl.where(gate < 0.0, 0.0, gate) * up
    gate = tl.where(gate > _CLAMP, _CLAMP, gate)
    up = tl.where(up > _CLAMP, _CLAMP, tl.where(up < -_CLAMP, -_CLAMP, up))
    return gate * sigmoid(gate * _SIGMOID_SLOPE) * (up + 1.0)


@triton.jit
def glu_kernel(
    gate, up, out, n_columns, row_stride, n_blocks, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):
    """A block of BLOCK columns of a row; rows of gate and up are row_stride apart, those of out n_columns."""
    row = tl.program_id(0).to(tl.int64) // n_blocks
    first = (tl.program_id(0).to(tl.int64) - row * n_blocks) * BLOCK
    columns = tl.arange(0, BLOCK)
    inside = columns < n_columns - first
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    start = row * row_stride + first
    gates = tl.load(gate + start + columns, mask=inside, other=0.0).to(tl.float32)
    ups = tl.load(up + start + columns, mask=inside, other=0.0).to(tl.float32)
    values = gated(gates, ups, ACTIVATION)
    tl.store(out + row * n_columns + first + columns, values.to(out.dtype.element_ty), mask=inside)
