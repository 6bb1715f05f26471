"""Activations of 8 bits: each group of a row is rounded to integers from -127 to 127 times one f32 scale.

A prepared row is a sequence of records, one for each group: its integers in the order of the weights' quads, their
scale d, and what stands in for the weights' offset: d times the integers' sum for affine formats, whose biases meet it,
and an int32 for E2M1, which the sums begin with. So the products are those of the exact weights with the rounded
activations: nothing else is rounded to 8 bits.
"""

from typing import Any

from llvmlite import ir

from coterie.backends.cpu.kernels.int8_panel import E2M1_OFFSET, quad_order
from coterie.backends.cpu.kernels.vector import F32, I8, I32, Vectors
from coterie.backends.cpu.layout import Layout

LARGEST = 127
FACTOR_BYTES = 8
"""Behind the integers of a group: its scale, and the stand-in for the offset."""
SMALLEST_SCALED = 2.0**-100
"""A group without a larger magnitude counts as zeros: the reciprocal of its scale would leave f32's range."""
_ROUNDING = 1.5 * 2.0**23
"""Added to a small f32 it rounds it to an integer (ties to even), whose two's complement is then in the lowest bits."""


def prepared_bytes(layout: Layout, n_inputs: int) -> int:
    """Bytes of a prepared row, whole cache lines."""
    return -(-(n_inputs // layout.group * (layout.group + FACTOR_BYTES)) // 64) * 64


def emit_groups(v: Vectors, layout: Layout, x: Any, prepared: Any, _n_inputs: Any, first: Any, n_groups: Any) -> None:
    """Emit the rounding to 8 bits that `round_activations` describes."""
    b, record = v.builder, layout.group + FACTOR_BYTES
    with v.loop(n_groups) as index:
        source = b.add(x, b.mul(index, v.integer(4 * layout.group)))
        _round_group(v, layout, source, b.add(prepared, b.mul(b.add(first, index), v.integer(record))))


def _round_group(v: Vectors, layout: Layout, source: Any, place: Any) -> None:
    b, n = v.builder, layout.group
    floats, words = ir.VectorType(F32, n), ir.VectorType(I32, n)
    x = v.load(floats, source)
    # Magnitudes compare like their bits, where infinity and NaN are the largest: neither is lost.
    bits = b.and_(b.bitcast(x, words), ir.Constant(words, [0x7FFFFFFF] * n))
    largest = b.bitcast(v.call(f"llvm.vector.reduce.umax.v{n}i32", I32, [bits]), F32)
    zeros = b.fcmp_ordered("<=", largest, ir.Constant(F32, SMALLEST_SCALED))
    scale = b.select(zeros, ir.Constant(F32, 0.0), b.fdiv(largest, ir.Constant(F32, float(LARGEST))))
    inverse = b.select(zeros, ir.Constant(F32, 0.0), b.fdiv(ir.Constant(F32, float(LARGEST)), largest))
    scaled = b.fmul(x, v.splat(inverse, n))
    rounded = b.bitcast(b.fadd(scaled, ir.Constant(floats, [_ROUNDING] * n)), words)
    octets = b.trunc(rounded, ir.VectorType(I8, n))
    v.store(v.shuffle(octets, _order(layout)), place)
    v.store(scale, v.at(place, n))
    total = v.call(f"llvm.vector.reduce.add.v{n}i32", I32, [b.sext(octets, words)])
    if layout.kind == "e2m1":
        v.store(b.mul(total, ir.Constant(I32, -E2M1_OFFSET)), v.at(place, n + 4))
    else:
        v.store(b.fmul(b.sitofp(total, F32), scale), v.at(place, n + 4))


def _order(layout: Layout) -> list[int]:
    """Place -> activation of a group."""
    order = quad_order(layout)
    return [word + place for word in range(0, layout.group, len(order)) for place in order]
