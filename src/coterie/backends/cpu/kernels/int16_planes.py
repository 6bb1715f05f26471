"""Activations of 16 bits as two planes of bytes, beside codes that stay bytes: for machines that multiply bytes fast.

An integer is 256 * high + low, both signed bytes. A block of codes is read as bytes, each with 8 / bits codes. Field j
of all bytes is what a shift and a mask leave, and the high bytes that it meets stand together, and so do the low ones:
first the high bytes of all fields, then the low ones. One instruction multiplies the four bytes of a lane and adds the
products, so codes are taken apart half as far as in pairs of 16 bits.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from coterie.backends.cpu.kernels.int8_panel import E2M1_OFFSET, byte_fields
from coterie.backends.cpu.kernels.vector import I8, Vectors
from coterie.backends.cpu.layout import Layout

OFFSET = {"affine": 0, "e2m1": E2M1_OFFSET}
"""What is added to codes, by kind of layout: bytes of codes are unsigned."""


def store_integers(v: Vectors, layout: Layout, integers: Any, place: Any, n_words: int) -> None:
    """Store the integers of `n_words` words of codes, a vector of int32, in a block; `place` is where the first word's
    stand.
    """
    b, n_fields, count = v.builder, 8 // layout.bits, integers.type.count
    octets = ir.VectorType(I8, count)
    rounded = b.add(integers, ir.Constant(integers.type, [128] * count))
    high = b.ashr(rounded, ir.Constant(integers.type, [8] * count))
    for plane, part in enumerate((high, integers)):
        for field in range(n_fields):
            run = v.shuffle(b.trunc(part, octets), [byte * n_fields + field for byte in range(4 * n_words)])
            v.store(run, v.at(place, plane * layout.block + 4 * v.lanes * field))


def decode(v: Vectors, layout: Layout, words: Any) -> list[Any]:
    """The fields of a block's words, each a vector of four unsigned bytes a lane."""
    return byte_fields(v, layout, words)


def dot(v: Vectors, layout: Layout, codes: Sequence[Any], activations: Sequence[Any]) -> Any:
    """The int32 sums, lane by lane, of a block's codes times the vectors of activations that stand beside it."""
    total = ir.Constant(v.ints, None)
    for field, octets in enumerate(codes):
        total = add_quads(v, total, octets, activations[field])
    total = join(v, total, ir.Constant(v.ints, None))
    for field, octets in enumerate(codes):
        total = add_quads(v, total, octets, activations[8 // layout.bits + field])
    return total


def add_quads(v: Vectors, total: Any, codes: Any, activations: Any) -> Any:
    """total + four unsigned bytes of `codes` times four signed ones of `activations`, in each lane."""
    return v.call(f"llvm.x86.avx512.vpdpbusd.{32 * v.lanes}", v.ints, [total, codes, activations])


def join(v: Vectors, high: Any, low: Any) -> Any:
    """256 * high + low."""
    return v.builder.add(v.builder.shl(high, v.ints_of(8)), low)
