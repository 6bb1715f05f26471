"""The gated activations over vectors: f32, finite for every finite gate, one exponential each.

gelu_tanh(x) = x * sigmoid(2 * 0.7978845608028654 * (x + 0.044715 x^3)), which equals 0.5 x (1 + tanh(...)) and does not
overflow: where the exponential is infinite the sigmoid is exactly 0, and where the cube overflows it is exactly 0 or 1.
"""

import math
from typing import Any

from numba import types
from numba.extending import intrinsic

from coterie.backends.cpu.isa import ISAS
from coterie.backends.cpu.kernels.vector import Vectors

VECTOR_ACTIVATIONS = ("silu", "gelu_tanh", "relu", "swiglu_clamped")
"""Activations that `glu_vectors` knows, by index; `gelu` needs the error function and goes number by number."""

_GELU_SLOPE, _GELU_CUBE = 2 * math.sqrt(2 / math.pi), 0.044715
_CLAMP_LIMIT, _CLAMP_SLOPE = 7.0, 1.702
_EXP_COEFFICIENTS = tuple(1.0 / math.factorial(power) for power in range(7, -1, -1))
_TANH_SMALL = 0.4
_TANH_COEFFICIENTS = (-1382 / 155925, 62 / 2835, -17 / 315, 2 / 15, -1 / 3, 1.0)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4


@intrinsic(prefer_literal=True)
def glu_vectors(_context: Any, isa: Any, activation: Any, gate: Any, up: Any, out: Any, count: Any) -> Any:
    """out[i] = activation(gate[i]) * up[i] at three addresses of f32, for `count` numbers rounded up to whole vectors.

    `isa` indexes `ISAS` and is literal; `activation` indexes `VECTOR_ACTIVATIONS`.
    """
    chosen = ISAS[isa.literal_value]

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        v = Vectors(builder, chosen)
        activation, gate, up, out, count = args[1:]
        n_vectors = builder.sdiv(builder.add(count, v.integer(v.lanes - 1)), v.integer(v.lanes))
        for index, name in enumerate(VECTOR_ACTIVATIONS):
            with builder.if_then(builder.icmp_signed("==", activation, v.integer(index))), v.loop(n_vectors) as step:
                offset = builder.mul(step, v.integer(4 * v.lanes))
                gates, ups = (v.load(v.floats, builder.add(base, offset)) for base in (gate, up))
                v.store(_glu(v, name, gates, ups), builder.add(out, offset))
        return context.get_dummy_value()

    return types.void(isa, *[types.int64] * 5), codegen


def _glu(v: Vectors, name: str, gate: Any, up: Any) -> Any:
    b = v.builder
    if name == "relu":
        # "unordered or greater" keeps a NaN gate visible.
        return b.fmul(b.select(b.fcmp_unordered(">", gate, v.zero()), gate, v.zero()), up)
    if name == "silu":
        return b.fmul(b.fmul(gate, _sigmoid(v, gate)), up)
    if name == "swiglu_clamped":
        limit = v.floats_of(_CLAMP_LIMIT)
        gate = _below(v, gate, limit)
        up = b.fneg(_below(v, b.fneg(_below(v, up, limit)), limit))
        gated = b.fmul(gate, _sigmoid(v, b.fmul(gate, v.floats_of(_CLAMP_SLOPE))))
        return b.fmul(gated, b.fadd(up, v.floats_of(1.0)))
    cubic = b.fmul(b.fmul(gate, gate), v.floats_of(_GELU_CUBE))
    inner = b.fmul(b.fmul(gate, v.floats_of(_GELU_SLOPE)), b.fadd(cubic, v.floats_of(1.0)))
    return b.fmul(b.fmul(gate, _sigmoid(v, inner)), up)


def _below(v: Vectors, value: Any, limit: Any) -> Any:
    """min(value, limit); NaN stays NaN."""
    return v.builder.select(v.builder.fcmp_ordered(">", value, limit), limit, value)


def _sigmoid(v: Vectors, value: Any) -> Any:
    b = v.builder
    one = v.floats_of(1.0)
    return b.fdiv(one, b.fadd(one, exponential(v, b.fneg(value))))


@intrinsic(prefer_literal=True)
def softcap_vectors(_context: Any, isa: Any, x: Any, cap: Any, out: Any, count: Any) -> Any:
    """out[i] = cap * tanh(x[i] / cap) at addresses of f32, for `count` numbers, whole vectors of them; `isa` indexes
    `ISAS` and is literal.
    """
    chosen = ISAS[isa.literal_value]

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        v = Vectors(builder, chosen)
        _, x, cap, out, count = args
        caps = v.splat(cap)
        with v.loop(builder.sdiv(count, v.integer(v.lanes))) as step:
            offset = builder.mul(step, v.integer(4 * v.lanes))
            value = builder.fdiv(v.load(v.floats, builder.add(x, offset)), caps)
            v.store(builder.fmul(caps, _tanh(v, value)), builder.add(out, offset))
        return context.get_dummy_value()

    return types.void(isa, types.int64, types.float32, types.int64, types.int64), codegen


def _tanh(v: Vectors, value: Any) -> Any:
    """(1 - e^-2x) / (1 + e^-2x) for x >= 0, a power series for small x, where that difference would lose digits."""
    b = v.builder
    sign = b.and_(b.bitcast(value, v.ints), v.ints_of(-(1 << 31)))
    magnitude = b.bitcast(b.xor(b.bitcast(value, v.ints), sign), v.floats)
    power = exponential(v, b.fmul(magnitude, v.floats_of(-2.0)))
    one = v.floats_of(1.0)
    large = b.bitcast(b.or_(b.bitcast(b.fdiv(b.fsub(one, power), b.fadd(one, power)), v.ints), sign), v.floats)
    square = b.fmul(value, value)
    series = v.floats_of(_TANH_COEFFICIENTS[0])
    for coefficient in _TANH_COEFFICIENTS[1:]:
        series = v.fma(series, square, v.floats_of(coefficient))
    is_small = b.fcmp_ordered("<", magnitude, v.floats_of(_TANH_SMALL))
    return b.select(is_small, b.fmul(series, value), large)


def exponential(v: Vectors, value: Any) -> Any:
    """e^value to about 2 units in the last place; infinity above 88.73, zero below -104, NaN for NaN."""
    b = v.builder
    clamped = _below(
        v, b.select(b.fcmp_ordered("<", value, v.floats_of(-104.0)), v.floats_of(-104.0), value), v.floats_of(89.0)
    )
    scaled = b.fmul(clamped, v.floats_of(math.log2(math.e)))
    whole = v.call(f"llvm.rint.v{v.lanes}f32", v.floats, [scaled])
    rest = v.fma(whole, v.floats_of(-_LN2_HIGH), clamped)
    rest = v.fma(whole, v.floats_of(-_LN2_LOW), rest)
    result = v.floats_of(_EXP_COEFFICIENTS[0])
    for coefficient in _EXP_COEFFICIENTS[1:]:
        result = v.fma(result, rest, v.floats_of(coefficient))
    # 2^whole in two factors, so that neither overflows while the product may still be finite or subnormal. A NaN has no
    # integer: converting it is undefined, so it is replaced first and comes back through the polynomial.
    ordered = b.select(b.fcmp_ordered("ord", whole, whole), whole, v.zero())
    power = b.fptosi(ordered, v.ints)
    half = b.ashr(power, v.ints_of(1))
    for exponent in (half, b.sub(power, half)):
        factor = b.bitcast(b.shl(b.add(exponent, v.ints_of(127)), v.ints_of(23)), v.floats)
        result = b.fmul(result, factor)
    return result
