"""Activations of 16 bits: each group of a row is rounded to integers from -32639 to 32639 times one f32 scale.

A prepared row is three arrays one behind the other: the integers beside the weights' blocks, in one of two arrangements
(`int16_pairs`, `int16_planes`), padded to whole blocks; the scales of the groups, f32; and what stands in for the
weights' offset, as with activations of 8 bits: scale times the integers' sum in affine formats, whose biases meet it,
and an int32 for E2M1. So the products are those of the exact weights with the rounded activations, whose errors are at
most 1.6e-5 of the largest magnitude of their group.
"""

from types import ModuleType
from typing import Any

from llvmlite import ir

from coterie.backends.cpu.kernels import int16_pairs, int16_planes
from coterie.backends.cpu.kernels.int8_panel import E2M1_OFFSET
from coterie.backends.cpu.kernels.vector import F32, I16, I32, Vectors
from coterie.backends.cpu.layout import Layout

LARGEST = 32639
"""127 * 256 + 127, so that an integer is two signed bytes."""
SMALLEST_SCALED = 2.0**-100
"""A group without a larger magnitude counts as zeros: the reciprocal of its scale would leave f32's range."""
_ROUNDING = 1.5 * 2.0**23
"""Added to a small f32 it rounds it to an integer (ties to even), whose two's complement is then in the lowest bits."""


def arrangement(layout: Layout) -> ModuleType:
    """How integers stand beside codes: the module that stores, decodes and multiplies them."""
    return int16_planes if layout.isa.vnni else int16_pairs


def scales_offset(layout: Layout, n_inputs: int) -> int:
    """Bytes from the beginning of a prepared row to its scales."""
    return 2 * layout.padded(n_inputs)


def prepared_bytes(layout: Layout, n_inputs: int) -> int:
    """Bytes of a prepared row, whole cache lines."""
    return -(-(scales_offset(layout, n_inputs) + 8 * (n_inputs // layout.group)) // 64) * 64


def emit_groups(v: Vectors, layout: Layout, x: Any, prepared: Any, n_inputs: Any, first: Any, n_groups: Any) -> None:
    """Emit the rounding to 16 bits that `round_activations` describes."""
    b = v.builder
    blocks = b.sdiv(b.add(n_inputs, v.integer(layout.block - 1)), v.integer(layout.block))
    scales = b.add(prepared, b.mul(blocks, v.integer(2 * layout.block)))
    sums = b.add(scales, b.mul(b.sdiv(n_inputs, v.integer(layout.group)), v.integer(4)))
    with v.loop(n_groups) as index:
        group = b.add(first, index)
        integers, scale = _rounded(v, layout, b.add(x, b.mul(index, v.integer(4 * layout.group))))
        _store_integers(v, layout, integers, prepared, group)
        offset = b.mul(group, v.integer(4))
        v.store(scale, b.add(scales, offset))
        total = v.call(f"llvm.vector.reduce.add.v{layout.group}i32", I32, [integers])
        if layout.kind == "affine":
            total = b.fmul(b.sitofp(total, F32), scale)
        else:
            total = b.mul(total, ir.Constant(I32, -E2M1_OFFSET))
        v.store(total, b.add(sums, offset))


def _rounded(v: Vectors, layout: Layout, source: Any) -> tuple[Any, Any]:
    """The integers of a group, as a vector of 32 bits, and its scale."""
    b, n = v.builder, layout.group
    floats, words = ir.VectorType(F32, n), ir.VectorType(I32, n)
    x = v.load(floats, source)
    # Magnitudes compare like their bits, where infinity and NaN are the largest: neither is lost.
    bits = b.and_(b.bitcast(x, words), ir.Constant(words, [0x7FFFFFFF] * n))
    largest = b.bitcast(v.call(f"llvm.vector.reduce.umax.v{n}i32", I32, [bits]), F32)
    zeros = b.fcmp_ordered("<=", largest, ir.Constant(F32, SMALLEST_SCALED))
    step = b.fmul(largest, ir.Constant(F32, 1 / LARGEST))
    scale = b.select(zeros, ir.Constant(F32, 0.0), step)
    inverse = b.select(zeros, ir.Constant(F32, 0.0), b.fdiv(ir.Constant(F32, float(LARGEST)), largest))
    shifted = b.fadd(b.fmul(x, v.splat(inverse, n)), ir.Constant(floats, [_ROUNDING] * n))
    half = ir.VectorType(I16, n)
    return b.sext(b.trunc(b.bitcast(shifted, words), half), words), scale


def _store_integers(v: Vectors, layout: Layout, integers: Any, prepared: Any, group: Any) -> None:
    """Store a group's integers in the block, or blocks, that it is in."""
    b = v.builder
    groups_a_block, blocks_a_group = max(1, layout.block // layout.group), max(1, layout.group // layout.block)
    count = layout.group // blocks_a_group
    n_words = count // layout.fields
    block = b.mul(b.sdiv(group, v.integer(groups_a_block)), v.integer(2 * layout.block * blocks_a_group))
    place = b.add(b.add(prepared, block), b.mul(b.srem(group, v.integer(groups_a_block)), v.integer(4 * n_words)))
    for part in range(blocks_a_group):
        run = v.shuffle(integers, range(part * count, (part + 1) * count))
        arrangement(layout).store_integers(v, layout, run, v.at(place, 2 * layout.block * part), n_words)
