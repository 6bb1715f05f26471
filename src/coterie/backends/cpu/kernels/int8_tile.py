"""Products of a panel of small integers with activations of 8 bits, in register tiles: rows in lanes, tokens side by
side.

Four activations of a token are one 32-bit word; spread over all lanes, it meets four codes of every row in one dot
product of bytes. The int32 sums of a group become f32 once, at the group's end, where they meet the row's scale and the
token's.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from coterie.backends.cpu.kernels.int8_panel import record_bytes
from coterie.backends.cpu.kernels.int8_round import FACTOR_BYTES
from coterie.backends.cpu.kernels.vector import F32, I8, I16, I32, I64, Vectors
from coterie.backends.cpu.layout import Layout, from_key

ROW_VECTORS = 2
"""Vectors of weight rows in a tile."""
_UNROLLED = 16
"""Quads that are written out; longer groups loop."""


@intrinsic(prefer_literal=True)
def multiply_int8_tile(
    _context: Any, key: Any, n_tokens: Any, n_groups: Any, panel: Any, panel_stride: Any, inputs: Any, offset: Any,
    out: Any, out_stride: Any, fresh: Any,
) -> Any:  # fmt: skip
    """out[token][row] += panel row . activations of the token over `n_groups` groups, for the rows of a tile.

    n_tokens: 1 up to the instruction set's `integer_tokens`. inputs: address of int64 addresses, one a token; the
    groups begin `offset` bytes behind each. out: address of f32, the stride in elements; taken as zero where `fresh` is
    not 0.
    """
    layout = from_key(key.literal_value)

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        names = ("n_groups", "panel", "panel_stride", "inputs", "offset", "out", "out_stride", "fresh")
        named = dict(zip(names, args[2:], strict=True))
        v = Vectors(builder, layout.isa)
        v.for_count(args[1], layout.isa.integer_tokens, lambda count: Tile(v, layout, count, named).emit())
        return context.get_dummy_value()

    return types.void(key, *[types.int64] * 9), codegen


class Tile:
    """The kernel for one number of tokens; a subclass may have other activations."""

    def __init__(self, v: Vectors, layout: Layout, n_tokens: int, args: dict[str, Any]) -> None:
        self.v, self.builder, self.layout, self.args = v, v.builder, layout, args
        self.n_tokens, self.width = n_tokens, 4 * v.lanes
        self.panels = [
            v.builder.add(args["panel"], v.builder.mul(args["panel_stride"], v.integer(row)))
            for row in range(ROW_VECTORS)
        ]
        self.inputs = [
            v.builder.add(v.load(I64, v.at(args["inputs"], 8 * token)), args["offset"]) for token in range(n_tokens)
        ]
        self.cells = [(row, token) for token in range(n_tokens) for row in range(ROW_VECTORS)]
        self.totals = {cell: v.variable(v.zero()) for cell in self.cells}
        self.sums = {cell: v.variable(ir.Constant(v.ints, None)) for cell in self.cells}

    def emit(self) -> None:
        b, v = self.builder, self.v
        with b.if_then(b.icmp_signed("==", self.args["fresh"], v.integer(0))):
            for cell in self.cells:
                b.store(v.load(v.floats, self._result(cell)), self.totals[cell])
        with v.loop(self.args["n_groups"]) as group:
            self.group(group)
        for cell in self.cells:
            v.store(b.load(self.totals[cell]), self._result(cell))

    def _result(self, cell: tuple[int, int]) -> Any:
        row, token = cell
        line = self.builder.mul(self.args["out_stride"], self.v.integer(4 * token))
        return self.v.at(self.builder.add(self.args["out"], line), self.width * row)

    def group(self, group: Any) -> None:
        """Add the products of a group of every row and token."""
        b, v, layout = self.builder, self.v, self.layout
        at = b.mul(group, v.integer(record_bytes(layout)))
        panels = [b.add(base, at) for base in self.panels]
        at = b.mul(group, v.integer(layout.group + FACTOR_BYTES))
        inputs = [b.add(base, at) for base in self.inputs]
        for row, token in self.cells:
            b.store(first_sums(v, layout, v.at(inputs[token], layout.group + 4)), self.sums[row, token])
        n_quads = layout.group // 4
        if n_quads <= _UNROLLED:
            self._quads(panels, inputs, n_quads)
        else:
            with v.loop(v.integer(n_quads // _UNROLLED)) as part:
                ahead = b.mul(part, v.integer(_UNROLLED * self.width))
                ahead_inputs = b.mul(part, v.integer(_UNROLLED * 4))
                self._quads(
                    [b.add(base, ahead) for base in panels], [b.add(base, ahead_inputs) for base in inputs], _UNROLLED
                )
        self._scale(panels, inputs)

    def _quads(self, panels: list[Any], inputs: list[Any], n_quads: int) -> None:
        b, v = self.builder, self.v
        for quad in range(n_quads):
            codes = [v.load(v.ints, v.at(panel, quad * self.width)) for panel in panels]
            for token, base in enumerate(inputs):
                spread = v.splat(v.load(I32, v.at(base, 4 * quad)))
                for row in range(ROW_VECTORS):
                    total = self.sums[row, token]
                    b.store(dot_bytes(v, self.layout, b.load(total), codes[row], spread), total)

    def _scale(self, panels: list[Any], inputs: list[Any]) -> None:
        behind = self.layout.group // 4 * self.width
        for row, token in self.cells:
            add_group(
                self.v, self.layout, self.totals[row, token], self.builder.load(self.sums[row, token]),
                self.v.at(panels[row], behind), self.v.at(inputs[token], self.layout.group),
                self.v.at(inputs[token], self.layout.group + 4),
            )  # fmt: skip


def add_group(v: Vectors, layout: Layout, total: Any, sums: Any, scales: Any, step: Any, offset: Any) -> None:
    """Add the int32 sums of a group to a variable of f32 sums.

    Addresses: `scales` of the rows' scales in a panel, `step` of the activations' scale, `offset` of what stands in for
    the weights' offset.
    """
    b = v.builder
    products = b.fmul(b.sitofp(sums, v.floats), v.splat(v.load(F32, step)))
    result = v.fma(products, v.load(v.floats, scales), b.load(total))
    if layout.kind == "affine":
        biases = v.load(v.floats, v.at(scales, 4 * v.lanes))
        result = v.fma(biases, v.splat(v.load(F32, offset)), result)
    b.store(result, total)


def first_sums(v: Vectors, layout: Layout, offset: Any) -> Any:
    """What the int32 sums of a group begin with; `offset`: the address of what stands in for the weights' offset."""
    return v.splat(v.load(I32, offset)) if layout.kind == "e2m1" else ir.Constant(v.ints, None)


def dot_bytes(v: Vectors, layout: Layout, total: Any, codes: Any, activations: Any) -> Any:
    """total + four unsigned bytes of `codes` times four signed ones of `activations`, in each lane."""
    if v.isa.vnni:
        return v.call(f"llvm.x86.avx512.vpdpbusd.{32 * v.lanes}", v.ints, [total, codes, activations])
    if layout.bits < 8:
        return _add_bytes(v, total, codes, activations, 1)
    # Two products of whole bytes may leave the 16 bits that their sum has: nibbles stay inside.
    b, mask = v.builder, v.ints_of(0x0F0F0F0F)
    total = _add_bytes(v, total, b.and_(codes, mask), activations, 1)
    return _add_bytes(v, total, b.and_(b.lshr(codes, v.ints_of(4)), mask), activations, 16)


def _add_bytes(v: Vectors, total: Any, codes: Any, activations: Any, weight: int) -> Any:
    """The same times a weight, for codes below 32 and without the instruction for it."""
    b, octets, halves = v.builder, ir.VectorType(I8, 4 * v.lanes), ir.VectorType(I16, 2 * v.lanes)
    multiply, add = _PAIRS[v.lanes]
    pairs = v.call(multiply, halves, [b.bitcast(codes, octets), b.bitcast(activations, octets)])
    return b.add(total, v.call(add, v.ints, [pairs, ir.Constant(halves, [weight] * halves.count)]))


_PAIRS = {
    16: ("llvm.x86.avx512.pmaddubs.w.512", "llvm.x86.avx512.pmaddw.d.512"),
    8: ("llvm.x86.avx2.pmadd.ub.sw", "llvm.x86.avx2.pmadd.wd"),
}
"""Bytes to sums of two products in 16 bits, and those to sums of two in 32 bits, by lanes."""
