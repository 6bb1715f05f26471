"""Products of a panel of small integers with activations of 16 bits: the tiles of `int8_tile` with other activations.

The four codes in a lane of the panel meet the activations of their word in a prepared row. Where those are planes of
bytes, each plane has a sum of its own. Where they are pairs of 16 bits, the codes become pairs by a mask and a shift:
bytes 0 and 2, bytes 1 and 3.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from coterie.backends.cpu.kernels.int8_panel import quads_a_word, record_bytes
from coterie.backends.cpu.kernels.int8_tile import ROW_VECTORS, Tile, add_group, first_sums
from coterie.backends.cpu.kernels.int16_pairs import add_pairs
from coterie.backends.cpu.kernels.int16_planes import add_quads, join
from coterie.backends.cpu.kernels.vector import I32, I64, Vectors
from coterie.backends.cpu.layout import Layout, from_key

_UNROLLED = 16
"""Quads that are written out; longer groups loop."""


@intrinsic(prefer_literal=True)
def multiply_int16_tile(
    _context: Any, key: Any, n_tokens: Any, first: Any, n_groups: Any, panel: Any, panel_stride: Any, inputs: Any,
    steps: Any, sums: Any, out: Any, out_stride: Any,
) -> Any:  # fmt: skip
    """out[token][row] += panel row . activations of the token over groups first .. first + n_groups - 1 of a row's, for
    the rows of a tile; the panel begins with group `first`.

    n_tokens: 1 up to the instruction set's `integer_tokens`. inputs: address of int64 addresses, one a token, of
    prepared rows, in which scales stand `steps` and sums `sums` bytes behind. out: address of f32, the stride in
    elements; taken as zero where `first` is 0.
    """
    layout = from_key(key.literal_value)

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        names = ("first", "n_groups", "panel", "panel_stride", "inputs", "steps", "sums", "out", "out_stride")
        named = dict(zip(names, args[2:], strict=True))
        v = Vectors(builder, layout.isa)
        named["fresh"] = builder.zext(builder.icmp_signed("==", named["first"], v.integer(0)), I64)
        named["offset"] = v.integer(0)
        tile = _PlanesTile if layout.isa.vnni else _PairsTile
        v.for_count(args[1], layout.isa.integer_tokens, lambda count: tile(v, layout, count, named).emit())
        return context.get_dummy_value()

    return types.void(key, *[types.int64] * 10), codegen


class _Int16Tile(Tile):
    """What both kinds of activations have in common."""

    def group(self, group: Any) -> None:
        b, v, layout, args = self.builder, self.v, self.layout, self.args
        at = b.mul(group, v.integer(record_bytes(layout)))
        panels = [b.add(base, at) for base in self.panels]
        index = b.add(args["first"], group)
        steps = [b.add(b.add(base, args["steps"]), b.mul(index, v.integer(4))) for base in self.inputs]
        sums = [b.add(b.add(base, args["sums"]), b.mul(index, v.integer(4))) for base in self.inputs]
        for row, token in self.cells:
            b.store(first_sums(v, layout, sums[token]), self.sums[row, token])
        self._all_quads(panels, index)
        for row, token in self.cells:
            scales = v.at(panels[row], layout.group // 4 * self.width)
            add_group(
                v, layout, self.totals[row, token], self._sum((row, token)), scales, steps[token], sums[token]
            )  # fmt: skip

    def _all_quads(self, panels: list[Any], group: Any) -> None:
        b, v, layout = self.builder, self.v, self.layout
        n_quads, quads = layout.group // 4, quads_a_word(layout)
        unrolled = min(n_quads, _UNROLLED)
        with v.loop(v.integer(n_quads // unrolled)) as part:
            word = b.add(b.mul(group, v.integer(n_quads // quads)), b.mul(part, v.integer(unrolled // quads)))
            block = b.mul(b.sdiv(word, v.integer(v.lanes)), v.integer(2 * layout.block))
            place = b.add(block, b.mul(b.srem(word, v.integer(v.lanes)), v.integer(4)))
            inputs = [b.add(base, place) for base in self.inputs]
            ahead = b.mul(part, v.integer(unrolled * self.width))
            for quad in range(unrolled):
                codes = [v.load(v.ints, v.at(b.add(panel, ahead), quad * self.width)) for panel in panels]
                self._quad(codes, inputs, quad // quads, quad % quads)

    def _sum(self, cell: tuple[int, int]) -> Any:
        return self.builder.load(self.sums[cell])

    def _quad(self, codes: list[Any], inputs: list[Any], word: int, quad: int) -> None:
        raise NotImplementedError


class _PairsTile(_Int16Tile):
    def _quad(self, codes: list[Any], inputs: list[Any], word: int, quad: int) -> None:
        b, v = self.builder, self.v
        mask, eight = v.ints_of(0x00FF00FF), v.ints_of(8)
        halves = ([b.and_(row, mask) for row in codes], [b.and_(b.lshr(row, eight), mask) for row in codes])
        for half, pairs in enumerate(halves):
            offset = _offset(self.layout, word, quad + half * quads_a_word(self.layout))
            for token, base in enumerate(inputs):
                spread = v.splat(v.load(I32, v.at(base, offset)))
                for row in range(ROW_VECTORS):
                    total = self.sums[row, token]
                    b.store(add_pairs(v, b.load(total), pairs[row], spread), total)


class _PlanesTile(_Int16Tile):
    def __init__(self, v: Vectors, layout: Layout, n_tokens: int, args: dict[str, Any]) -> None:
        super().__init__(v, layout, n_tokens, args)
        self.high_sums = {cell: v.variable(ir.Constant(v.ints, None)) for cell in self.cells}

    def _sum(self, cell: tuple[int, int]) -> Any:
        high = self.builder.load(self.high_sums[cell])
        self.builder.store(ir.Constant(self.v.ints, None), self.high_sums[cell])
        return join(self.v, high, super()._sum(cell))

    def _quad(self, codes: list[Any], inputs: list[Any], word: int, quad: int) -> None:
        b, v = self.builder, self.v
        offset = _offset(self.layout, word, quad)
        for token, base in enumerate(inputs):
            for sums, plane in ((self.high_sums, offset), (self.sums, offset + self.layout.block)):
                spread = v.splat(v.load(I32, v.at(base, plane)))
                for row in range(ROW_VECTORS):
                    total = sums[row, token]
                    b.store(add_quads(v, b.load(total), codes[row], spread), total)


def _offset(layout: Layout, word: int, field: int) -> int:
    """Bytes to the word of activations that a field of a word meets, from a word that begins a block or a run of words
    in one.
    """
    block, lane = divmod(word, layout.lanes)
    return 2 * block * layout.block + 4 * (field * layout.lanes + lane)
