"""Dot products of weight rows with a few activations of 16 bits: the kernel of decoding where codes are small integers.

Codes and activations meet in instructions that multiply several small integers and add them up (`int16_pairs`,
`int16_planes`). The int32 sums of a block become f32 once, where they meet the scales of the weights and of the
activations.
"""

from collections.abc import Callable
from typing import Any

from numba import types
from numba.extending import intrinsic

from coterie.backends.cpu.kernels.decode import SCALE_BYTES, load_floats
from coterie.backends.cpu.kernels.int16_round import arrangement
from coterie.backends.cpu.kernels.vector import I32, I64, Vectors
from coterie.backends.cpu.layout import Layout, from_key


@intrinsic(prefer_literal=True)
def dot_rows_int16(
    _context: Any, key: Any, n_rows: Any, most_tokens: Any, n_tokens: Any, codes: Any, codes_stride: Any, scales: Any,
    scales_stride: Any, biases: Any, n_inputs: Any, codes_ahead: Any, scales_ahead: Any, inputs: Any, out: Any,
    out_stride: Any,
) -> Any:  # fmt: skip
    """out[token * out_stride + row] = weight row . activations of the token, for n_rows (literal, a power of two) rows
    and n_tokens = 1..most_tokens (literal).

    codes, scales, biases: addresses of the first row, strides in bytes; n_inputs: weights in it. inputs: address of
    int64 addresses, one a token, of activations that `round_to_int16` prepared. out: address of f32, the stride in
    elements. The bytes codes_ahead and scales_ahead behind those in hand are asked for.
    """
    layout, rows, most = from_key(key.literal_value), n_rows.literal_value, most_tokens.literal_value

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        named = dict(zip(_ARGUMENTS, args[4:], strict=True))
        Vectors(builder, layout.isa).for_count(
            args[3], most, lambda count: _DotRows(builder, layout, rows, count, named).emit()
        )
        return context.get_dummy_value()

    return types.void(key, n_rows, most_tokens, *[types.int64] * 12), codegen


_ARGUMENTS = (
    "codes", "codes_stride", "scales", "scales_stride", "biases", "n_inputs", "codes_ahead", "scales_ahead", "inputs",
    "out", "out_stride",
)  # fmt: skip


_UNROLLED = 16
"""Blocks of a stretch that are written out for one row and one token; more of anything loops."""


class _DotRows:
    """A row goes by stretches of `lanes` groups, whose scales meet the activations' in one product of vectors."""

    def __init__(self, builder: Any, layout: Layout, n_rows: int, n_tokens: int, args: dict[str, Any]) -> None:
        b = builder
        v = self.v = Vectors(builder, layout.isa)
        self.builder, self.layout, self.args, self.n_rows = b, layout, args, n_rows
        self.arrangement = arrangement(layout)
        self.codes = [b.add(args["codes"], b.mul(args["codes_stride"], v.integer(row))) for row in range(n_rows)]
        offsets = [b.mul(args["scales_stride"], v.integer(row)) for row in range(n_rows)]
        self.scales = [b.add(args["scales"], offset) for offset in offsets]
        self.biases = [b.add(args["biases"], offset) for offset in offsets] if layout.kind == "affine" else []
        self.inputs = [v.load(I64, v.at(args["inputs"], 8 * token)) for token in range(n_tokens)]
        self.n_groups = b.sdiv(args["n_inputs"], v.integer(layout.group))
        blocks = b.sdiv(b.add(args["n_inputs"], v.integer(layout.block - 1)), v.integer(layout.block))
        self.steps = [b.add(address, b.mul(blocks, v.integer(2 * layout.block))) for address in self.inputs]
        self.totals = [[v.variable(v.zero()) for _ in range(n_tokens)] for _ in range(n_rows)]

    def emit(self) -> None:
        b, v = self.builder, self.v
        whole = b.sdiv(self.n_groups, v.integer(v.lanes))
        with v.loop(whole) as step:
            self._stretch(b.mul(step, v.integer(v.lanes)), None)
        rest = b.srem(self.n_groups, v.integer(v.lanes))
        with b.if_then(b.icmp_signed(">", rest, v.integer(0))):
            self._stretch(b.mul(whole, v.integer(v.lanes)), rest)
        for token in range(len(self.inputs)):
            line = b.add(self.args["out"], b.mul(self.args["out_stride"], v.integer(4 * token)))
            for row, totals in enumerate(self.totals):
                v.store(v.sum(b.load(totals[token])), v.at(line, 4 * row))

    def _stretch(self, first: Any, n_valid: Any | None) -> None:
        """The groups from `first` on: `lanes` of them, or `n_valid`."""
        b, v, layout = self.builder, self.v, self.layout
        places = [b.add(steps, b.mul(first, v.integer(4))) for steps in self.steps]
        steps = [self._floats("f32", place, n_valid) for place in places]
        offset = b.mul(first, v.integer(SCALE_BYTES[layout.scale]))
        for address in (*self.scales, *self.biases):
            v.prefetch(b.add(b.add(address, offset), self.args["scales_ahead"]))
        factors = []
        for row in range(self.n_rows):
            scales = self._floats(layout.scale, b.add(self.scales[row], offset), n_valid)
            if layout.kind == "e2m1":
                scales = b.fmul(scales, v.floats_of(0.5))
            factors.append([b.fmul(scales, step) for step in steps])
        places = [b.add(place, b.mul(self.n_groups, v.integer(4))) for place in places]
        if layout.kind == "affine":
            sums = [self._floats("f32", place, n_valid) for place in places]
            for row in range(self.n_rows):
                biases = self._floats(layout.scale, b.add(self.biases[row], offset), n_valid)
                for token, values in enumerate(sums):
                    self._accumulate(row, token, biases, values)
        elif self.arrangement.OFFSET[layout.kind]:
            for token, place in enumerate(places):
                offsets = b.sitofp(b.bitcast(self._floats("f32", place, n_valid), v.ints), v.floats)
                for row in range(self.n_rows):
                    self._accumulate(row, token, factors[row][token], offsets)
        groups = v.integer(v.lanes) if n_valid is None else n_valid
        n_inputs = b.mul(groups, v.integer(layout.group))
        n_blocks = b.sdiv(n_inputs, v.integer(layout.block))
        emit = self._blocks(b.sdiv(b.mul(first, v.integer(layout.group)), v.integer(layout.block)), factors)
        most = v.lanes * layout.group // layout.block
        if self.n_rows * len(self.inputs) == 1 and most <= _UNROLLED:
            self._written_out(emit, n_blocks, range(most))
        else:
            with v.loop(n_blocks) as block:
                emit(block, None)
        if n_valid is not None and layout.block > layout.group:
            rest = b.srem(n_inputs, v.integer(layout.block))
            with b.if_then(b.icmp_signed(">", rest, v.integer(0))):
                emit(n_blocks, rest)

    def _written_out(self, emit: Callable[[Any, Any | None], None], n_blocks: Any, numbers: range) -> None:
        """Blocks 0 to n_blocks - 1, none behind `numbers`, one after the other."""
        if not numbers:
            return
        b, v = self.builder, self.v
        with b.if_then(b.icmp_signed("<", v.integer(numbers[0]), n_blocks)):
            emit(v.integer(numbers[0]), None)
            self._written_out(emit, n_blocks, numbers[1:])

    def _floats(self, kind: str, address: Any, n_valid: Any | None) -> Any:
        return load_floats(self.v, kind, address, n_valid)

    def _blocks(self, first: Any, factors: list[list[Any]]) -> Callable[[Any, Any | None], None]:
        """emit(block, n_valid) adds the products of a block, counted from the stretch's first, which is the row's
        `first`.
        """
        b, v, layout = self.builder, self.v, self.layout
        starts = [b.add(address, b.mul(first, v.integer(layout.block_bytes))) for address in self.codes]
        inputs = [b.add(address, b.mul(first, v.integer(2 * layout.block))) for address in self.inputs]
        width, n_vectors = 4 * v.lanes, 16 // layout.bits

        def emit(block: Any, n_valid: Any | None) -> None:
            bases = [b.add(address, b.mul(block, v.integer(2 * layout.block))) for address in inputs]
            xs = [[v.load(v.ints, v.at(base, width * place)) for place in range(n_vectors)] for base in bases]
            group = self._groups(block)
            for row, start in enumerate(starts):
                place = b.add(start, b.mul(block, v.integer(layout.block_bytes)))
                # The first level has few places to remember what it waits for: asking it took 28 of 34 GB/s, not 33.
                v.prefetch(b.add(place, self.args["codes_ahead"]), level=2)
                if n_valid is None:
                    words = v.load(v.ints, place)
                else:
                    words = v.load_masked(v.ints, place, b.sdiv(n_valid, v.integer(layout.fields)))
                decoded = self.arrangement.decode(v, layout, words)
                for token, x in enumerate(xs):
                    total = b.sitofp(self.arrangement.dot(v, layout, decoded, x), v.floats)
                    self._accumulate(row, token, total, v.permute(factors[row][token], group))

        return emit

    def _groups(self, block: Any) -> Any:
        """The group of each lane, counted from the stretch's first."""
        b, v, layout = self.builder, self.v, self.layout
        inside = v.ints_of([layout.fields * lane // layout.group for lane in range(v.lanes)])
        if layout.block < layout.group:
            first = b.sdiv(block, v.integer(layout.group // layout.block))
        else:
            first = b.mul(block, v.integer(layout.block // layout.group))
        return b.add(inside, v.splat(b.trunc(first, I32)))

    def _accumulate(self, row: int, token: int, a: Any, b: Any) -> None:
        total = self.totals[row][token]
        self.builder.store(self.v.fma(a, b, self.builder.load(total)), total)
