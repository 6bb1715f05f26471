"""Products for a few tokens with activations of 8 bits: codes meet the activations in registers as soon as they are
turned and unpacked, because a panel of them would be read once only. The scales do go through the panel.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from coterie.backends.cpu.kernels.int8_panel import ROW_ARGUMENTS, PackedRows, quads_a_word, transpose
from coterie.backends.cpu.kernels.int8_round import FACTOR_BYTES
from coterie.backends.cpu.kernels.int8_tile import add_group, dot_bytes, first_sums
from coterie.backends.cpu.kernels.vector import I32, I64
from coterie.backends.cpu.layout import from_key

FEW_TOKENS = 8
"""Up to so many tokens go without a panel of codes."""


@intrinsic(prefer_literal=True)
def multiply_int8_few(
    _context: Any, key: Any, n_tokens: Any, codes: Any, codes_stride: Any, scales: Any, scales_stride: Any, biases: Any,
    n_rows: Any, codes_ahead: Any, scales_ahead: Any, biases_ahead: Any, first: Any, count: Any, panel: Any,
    inputs: Any, offset: Any, out: Any, out_stride: Any,
) -> Any:  # fmt: skip
    """out[token][row] += weight row . activations of the token over groups first .. first + count - 1 of `lanes` rows.

    n_tokens: 1 up to FEW_TOKENS; codes to panel: as for `fill_panel`; inputs to out_stride: as for
    `multiply_int8_tile`. `out` is taken as zero where `first` is 0.
    """
    layout = from_key(key.literal_value)

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        names = (*ROW_ARGUMENTS, "inputs", "offset", "out", "out_stride")
        named = dict(zip(names, args[2:], strict=True))
        rows = PackedRows(builder, layout, named)
        rows.fill_scales()
        rows.v.for_count(args[1], FEW_TOKENS, lambda number: _Few(rows, number).emit())
        return context.get_dummy_value()

    return types.void(key, *[types.int64] * 17), codegen


class _Few:
    def __init__(self, rows: PackedRows, n_tokens: int) -> None:
        self.rows, self.v, self.builder, self.layout = rows, rows.v, rows.builder, rows.layout
        b, v, args = self.builder, self.v, rows.args
        lines = [b.add(args["out"], b.mul(args["out_stride"], v.integer(4 * token))) for token in range(n_tokens)]
        self.lines = lines
        self.inputs = [b.add(v.load(I64, v.at(args["inputs"], 8 * token)), args["offset"]) for token in range(n_tokens)]
        self.totals = [v.variable(v.zero()) for _ in lines]
        self.sums = [v.variable(ir.Constant(v.ints, None)) for _ in lines]

    def emit(self) -> None:
        b, v = self.builder, self.v
        with b.if_then(b.icmp_signed(">", self.rows.args["first"], v.integer(0))):
            for total, line in zip(self.totals, self.lines, strict=True):
                b.store(v.load(v.floats, line), total)
        self.rows.for_blocks(self._block)
        for total, line in zip(self.totals, self.lines, strict=True):
            v.store(b.load(total), line)

    def _block(self, block: Any, words: list[Any]) -> None:
        """The groups that a block holds, or the part of a group that it is."""
        b, v, layout = self.builder, self.v, self.layout
        turned = transpose(v, words)
        words_a_group = layout.group * layout.bits // 32
        if words_a_group > v.lanes:
            parts = v.integer(words_a_group // v.lanes)
            self._part(turned, b.sdiv(block, parts), b.srem(block, parts), words_a_group // v.lanes)
            return
        for number, begin in enumerate(range(0, v.lanes, words_a_group)):
            group = v.at(b.mul(block, v.integer(v.lanes // words_a_group)), number)
            # Groups that the row does not have would meet activations that nobody has written.
            with b.if_then(b.icmp_signed("<", group, self.rows.args["count"])):
                self._part(turned[begin : begin + words_a_group], group, v.integer(0), 1)

    def _part(self, words: list[Any], group: Any, part: Any, n_parts: int) -> None:
        """Part number `part` of a group; the sums of int32 pass from part to part."""
        b, v, layout = self.builder, self.v, self.layout
        at = b.mul(group, v.integer(layout.group + FACTOR_BYTES))
        inputs = [b.add(base, at) for base in self.inputs]
        factors = [v.at(base, layout.group) for base in inputs]
        with b.if_then(b.icmp_signed("==", part, v.integer(0))):
            for total, factor in zip(self.sums, factors, strict=True):
                b.store(first_sums(v, layout, v.at(factor, 4)), total)
        step = b.mul(part, v.integer(layout.group // n_parts))
        self._dots(words, [b.add(base, step) for base in inputs])
        with b.if_then(b.icmp_signed("==", part, v.integer(n_parts - 1))):
            record = b.add(self.rows.args["panel"], b.mul(group, v.integer(self.rows.record)))
            scales = v.at(record, layout.group * v.lanes)
            for token, factor in enumerate(factors):
                add_group(v, layout, self.totals[token], b.load(self.sums[token]), scales, factor, v.at(factor, 4))

    def _dots(self, words: list[Any], inputs: list[Any]) -> None:
        b, v, quads = self.builder, self.v, quads_a_word(self.layout)
        for place, vector in enumerate(words):
            for quad, codes in enumerate(self.rows.quads(vector)):
                for total, base in zip(self.sums, inputs, strict=True):
                    spread = v.splat(v.load(I32, v.at(base, 4 * (place * quads + quad))))
                    b.store(dot_bytes(v, self.layout, b.load(total), codes, spread), total)
