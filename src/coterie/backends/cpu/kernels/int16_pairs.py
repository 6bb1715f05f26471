"""Activations of 16 bits as pairs, beside codes that become integers of 16 bits: for machines that multiply bytes
slowly.

A block of codes is read as lanes of 16 bits, each with 16 / bits codes. Field j of all lanes is what a shift and a mask
leave, and the integers that it meets stand together. Two neighbouring lanes share a word of 32 bits, in which one
instruction multiplies both and adds the products.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from coterie.backends.cpu.kernels.vector import I8, I16, Vectors
from coterie.backends.cpu.layout import Layout

OFFSET = {"affine": 0, "e2m1": 0}
"""What is added to codes, by kind of layout; E2M1 numbers are doubled."""

_E2M1_TWICE = (0, 1, 2, 3, 4, 6, 8, 12)
_E2M1_TABLE = [sign * twice for sign in (1, -1) for twice in _E2M1_TWICE]


def store_integers(v: Vectors, layout: Layout, integers: Any, place: Any, n_words: int) -> None:
    """Store the integers of `n_words` words of codes, a vector of int32, in a block; `place` is where the first word's
    stand.
    """
    n_fields = 16 // layout.bits
    halves = v.builder.trunc(integers, ir.VectorType(I16, integers.type.count))
    for field in range(n_fields):
        run = v.shuffle(halves, [lane * n_fields + field for lane in range(2 * n_words)])
        v.store(run, v.at(place, 4 * v.lanes * field))


def decode(v: Vectors, layout: Layout, words: Any) -> list[Any]:
    """The fields of a block's words, each a vector of two integers of 16 bits a lane."""
    b = v.builder
    halves = ir.VectorType(I16, 2 * v.lanes)
    raw = b.bitcast(words, halves)
    mask = ir.Constant(halves, [(1 << layout.bits) - 1] * (2 * v.lanes))
    n_fields = 16 // layout.bits
    decoded = []
    for field in range(n_fields):
        shifted = b.lshr(raw, ir.Constant(halves, [layout.bits * field] * (2 * v.lanes))) if field else raw
        if layout.kind == "e2m1":
            decoded.append(b.bitcast(_e2m1(v, shifted, mask), v.ints))
        else:
            last = field == n_fields - 1
            decoded.append(b.bitcast(shifted if last else b.and_(shifted, mask), v.ints))
    return decoded


def _e2m1(v: Vectors, nibbles: Any, mask: Any) -> Any:
    """Twice the E2M1 numbers of the lowest four bits of 16-bit lanes."""
    b, halves = v.builder, nibbles.type
    if v.lanes == 16:
        # The table is there twice, because the look-up takes five bits.
        return v.call("llvm.x86.avx512.permvar.hi.512", halves, [ir.Constant(halves, _E2M1_TABLE * 2), nibbles])
    octets = ir.VectorType(I8, 2 * halves.count)
    entries = ir.Constant(octets, [entry & 0xFF for entry in _E2M1_TABLE] * (octets.count // 16))
    looked_up = v.call("llvm.x86.avx2.pshuf.b", octets, [entries, b.bitcast(b.and_(nibbles, mask), octets)])
    # The upper bytes looked up entry 0, which is 0; a number of eight bits becomes one of sixteen.
    eight = ir.Constant(halves, [8] * halves.count)
    return b.ashr(b.shl(b.bitcast(looked_up, halves), eight), eight)


def dot(v: Vectors, _layout: Layout, codes: Sequence[Any], activations: Sequence[Any]) -> Any:
    """The int32 sums, lane by lane, of a block's codes times the vectors of activations that stand beside it."""
    total = ir.Constant(v.ints, None)
    for pairs, others in zip(codes, activations, strict=True):
        total = add_pairs(v, total, pairs, others)
    return total


def add_pairs(v: Vectors, total: Any, a: Any, b: Any) -> Any:
    """total + a[0] * b[0] + a[1] * b[1] of the signed integers of 16 bits in each lane."""
    halves = ir.VectorType(I16, 2 * v.lanes)
    name = {16: "llvm.x86.avx512.pmaddw.d.512", 8: "llvm.x86.avx2.pmadd.wd"}[v.lanes]
    pairs = [v.builder.bitcast(a, halves), v.builder.bitcast(b, halves)]
    return v.builder.add(total, v.call(name, v.ints, pairs))
