"""Panels of small integers: packed codes of `lanes` weight rows turned so that a vector holds four codes of each row.

A panel is a sequence of records, one for each group of the rows' length:

    g / 4 vectors    lane r, byte i: code i of a quad of row r, unsigned
    1 vector         f32 scales, lane r: row r
    1 vector         f32 biases, in affine formats

The packed words are turned before they are unpacked: sixteen rows times sixteen words cost as many shuffles whether a
word holds eight codes or one. A word's quads are what a shift and a mask leave of its bytes: at 4 bits the low nibbles
are codes 0 2 4 6 and the high ones 1 3 5 7, so the activations of a group are stored in that order, too (`quad_order`).

E2M1 numbers v are held as 2 v + 12, from 0 to 24, with half the scale; that 12 too much is made up for by the sums of
the activations.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from coterie.backends.cpu.kernels.decode import SCALE_BYTES, load_floats
from coterie.backends.cpu.kernels.vector import I8, I32, Vectors
from coterie.backends.cpu.layout import Layout, from_key

E2M1_OFFSET = 12
"""What is added to twice an E2M1 number so that none is negative."""
_E2M1_TWICE = (0, 1, 2, 3, 4, 6, 8, 12)
_E2M1_TABLE = [E2M1_OFFSET + sign * twice for sign in (1, -1) for twice in _E2M1_TWICE]


def quads_a_word(layout: Layout) -> int:
    """Vectors that a vector of words is unpacked to."""
    return 8 // layout.bits


def quad_order(layout: Layout) -> list[int]:
    """Place -> code, for the codes of one word in the order of their quads."""
    quads = quads_a_word(layout)
    return [byte * quads + quad for quad in range(quads) for byte in range(4)]


def record_bytes(layout: Layout) -> int:
    """Bytes of one group of a panel."""
    vectors = layout.group // 4 + (2 if layout.kind == "affine" else 1)
    return 4 * layout.lanes * vectors


@intrinsic(prefer_literal=True)
def fill_panel(
    _context: Any, key: Any, codes: Any, codes_stride: Any, scales: Any, scales_stride: Any, biases: Any, n_rows: Any,
    codes_ahead: Any, scales_ahead: Any, biases_ahead: Any, first: Any, count: Any, panel: Any,
) -> Any:  # fmt: skip
    """Write groups first .. first + count - 1 of `lanes` weight rows to `panel`, which has room for whole blocks.

    codes, scales, biases: addresses of the first row; strides in bytes. Rows from n_rows on are those of the last one.
    `first` is a multiple of the groups in a block. codes_ahead, scales_ahead, biases_ahead: bytes from each of these
    to those that are wanted next and are brought near.
    """
    layout = from_key(key.literal_value)

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        rows = PackedRows(builder, layout, dict(zip(ROW_ARGUMENTS, args[1:], strict=True)))
        rows.fill_scales()
        rows.for_blocks(lambda block, words: _fill_block(rows, block, words))
        return context.get_dummy_value()

    return types.void(key, *[types.int64] * 12), codegen


ROW_ARGUMENTS = (
    "codes", "codes_stride", "scales", "scales_stride", "biases", "n_rows", "codes_ahead",
    "scales_ahead", "biases_ahead", "first", "count", "panel",
)  # fmt: skip


class PackedRows:
    """A stretch of `lanes` packed rows: `args` are the arguments of `fill_panel` by name."""

    def __init__(self, builder: Any, layout: Layout, args: dict[str, Any]) -> None:
        self.v = Vectors(builder, layout.isa)
        self.builder, self.layout, self.args = builder, layout, args
        self.width, self.record = 4 * layout.lanes, record_bytes(layout)

    def for_blocks(self, emit: Callable[[Any, list[Any]], None]) -> None:
        """Run emit(block, words) for each block of `lanes` words a row: `words` is a vector for each row, with zeros
        behind the stretch's last words, where nothing is read.
        """
        b, v = self.builder, self.v
        words_a_group = self.layout.group * self.layout.bits // 32
        first = b.mul(self.args["first"], v.integer(4 * words_a_group))
        n_words = b.mul(self.args["count"], v.integer(words_a_group))
        rows = self._rows(b.add(self.args["codes"], first), self.args["codes_stride"])
        n_blocks = b.sdiv(b.add(n_words, v.integer(v.lanes - 1)), v.integer(v.lanes))
        with v.loop(n_blocks) as block:
            offset = b.mul(block, v.integer(self.width))
            left = b.sub(n_words, b.mul(block, v.integer(v.lanes)))
            places = [b.add(row, offset) for row in rows]
            for place in places:
                v.prefetch(b.add(place, self.args["codes_ahead"]))
            emit(block, [v.load_masked(v.ints, place, left) for place in places])

    def _rows(self, base: Any, stride: Any) -> list[Any]:
        """Addresses of the rows; those that do not exist are replaced by the last one that does."""
        b, v = self.builder, self.v
        last = b.sub(self.args["n_rows"], v.integer(1))
        rows = []
        for lane in range(v.lanes):
            row = b.select(b.icmp_signed("<", v.integer(lane), last), v.integer(lane), last)
            rows.append(b.add(base, b.mul(row, stride)))
        return rows

    def quads(self, words: Any) -> list[Any]:
        """The quads of a vector that holds one word of each row."""
        return byte_fields(self.v, self.layout, words)

    def fill_scales(self) -> None:
        """Write the scales, and biases, to the panel: behind the codes of their groups."""
        behind = self.layout.group // 4
        self._scales("scales", behind, 0.5 if self.layout.kind == "e2m1" else 1.0)
        if self.layout.kind == "affine":
            self._scales("biases", behind + 1, 1.0)

    def _scales(self, name: str, vector: int, factor: float) -> None:
        b, v, layout = self.builder, self.v, self.layout
        width = SCALE_BYTES[layout.scale]
        rows = self._rows(
            b.add(self.args[name], b.mul(self.args["first"], v.integer(width))), self.args["scales_stride"]
        )
        panel = v.at(self.args["panel"], vector * self.width)

        def block(first: Any, n_valid: Any | None) -> None:
            offset = b.mul(first, v.integer(width))
            places = [b.add(row, offset) for row in rows]
            for place in places:
                v.prefetch(b.add(place, self.args[f"{name}_ahead"]))
            floats = [load_floats(v, layout.scale, place, n_valid) for place in places]
            place = b.add(panel, b.mul(first, v.integer(self.record)))
            for group, turned in enumerate(transpose(v, [b.bitcast(values, v.ints) for values in floats])):
                values = b.bitcast(turned, v.floats)
                v.store(
                    b.fmul(values, v.floats_of(factor)) if factor != 1 else values, v.at(place, group * self.record)
                )

        n_whole = b.sdiv(self.args["count"], v.integer(v.lanes))
        with v.loop(n_whole) as step:
            block(b.mul(step, v.integer(v.lanes)), None)
        rest = b.srem(self.args["count"], v.integer(v.lanes))
        with b.if_then(b.icmp_signed(">", rest, v.integer(0))):
            block(b.mul(n_whole, v.integer(v.lanes)), rest)


def byte_fields(v: Vectors, layout: Layout, words: Any) -> list[Any]:
    """The codes of a vector of words as vectors of unsigned bytes: field j is what a shift by j codes leaves of each
    byte.
    """
    b, bits = v.builder, layout.bits
    if bits == 8:
        return [words]
    mask = v.ints_of(((1 << bits) - 1) * 0x01010101)
    shifted = [words, *(b.lshr(words, v.ints_of(bits * field)) for field in range(1, 8 // bits))]
    fields = [b.and_(part, mask) for part in shifted]
    return [byte_table(v, _E2M1_TABLE, codes) for codes in fields] if layout.kind == "e2m1" else fields


def _fill_block(rows: PackedRows, block: Any, words: list[Any]) -> None:
    quads = quads_a_word(rows.layout)
    for place, turned in enumerate(transpose(rows.v, words)):
        for quad, codes in enumerate(rows.quads(turned)):
            rows.v.store(codes, _place_of(rows, block, place * quads + quad))


def _place_of(rows: PackedRows, block: Any, vector: int) -> Any:
    """The address in the panel of a vector of codes, counted from the block's first."""
    b, v, group_vectors = rows.builder, rows.v, rows.layout.group // 4
    block_vectors = v.lanes * quads_a_word(rows.layout)
    if block_vectors >= group_vectors:
        start = b.mul(block, v.integer(block_vectors // group_vectors * rows.record))
        fixed = vector // group_vectors * rows.record + vector % group_vectors * rows.width
    else:
        parts = v.integer(group_vectors // block_vectors)
        inside = b.mul(b.srem(block, parts), v.integer(block_vectors * rows.width))
        start = b.add(b.mul(b.sdiv(block, parts), v.integer(rows.record)), inside)
        fixed = vector * rows.width
    return v.at(b.add(rows.args["panel"], start), fixed)


def byte_table(v: Vectors, table: list[int], words: Any) -> Any:
    """Each byte 0..15 of a vector of words replaced by an entry of a table of sixteen bytes."""
    b = v.builder
    octets = ir.VectorType(I8, 4 * v.lanes)
    name = {16: "llvm.x86.avx512.pshuf.b.512", 8: "llvm.x86.avx2.pshuf.b"}[v.lanes]
    entries = ir.Constant(octets, table * (4 * v.lanes // 16))
    return b.bitcast(v.call(name, octets, [entries, b.bitcast(words, octets)]), v.ints)


def transpose(v: Vectors, rows: list[Any]) -> list[Any]:
    """The columns of `lanes` vectors of 32-bit words: first inside of 128-bit parts, then whole parts."""
    n = v.lanes
    parts = range(0, n, 4)

    def pick(a: Any, b: Any, pattern: list[int]) -> Any:
        return v.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, n), pattern))

    def interleave(a: Any, b: Any, order: tuple[int, ...]) -> Any:
        return pick(a, b, [part + place if place < 4 else n + part + place - 4 for part in parts for place in order])

    # columns[c][q]: part m is word 4 m + c of rows 4 q .. 4 q + 3
    columns: list[list[Any]] = [[], [], [], []]
    for q in parts:
        pairs = [
            [interleave(rows[q + i], rows[q + i + 1], order) for i in (0, 2)] for order in ((0, 4, 1, 5), (2, 6, 3, 7))
        ]
        for c in range(4):
            low, high = pairs[c // 2]
            columns[c].append(interleave(low, high, (0, 1, 4, 5) if c % 2 == 0 else (2, 3, 6, 7)))
    turned = [_transpose_parts(pick, column, n) for column in columns]
    return [turned[word % 4][word // 4] for word in range(n)]


def _transpose_parts(pick: Any, vectors: list[Any], n: int) -> list[Any]:
    """The same for 128-bit parts: n / 4 vectors of n / 4 parts."""

    def parts(*chosen: int) -> list[int]:
        return [4 * part + place for part in chosen for place in range(4)]

    if n == 8:
        return [pick(*vectors, parts(0, 2)), pick(*vectors, parts(1, 3))]
    even = [pick(vectors[i], vectors[i + 1], parts(0, 2, 4, 6)) for i in (0, 2)]
    odd = [pick(vectors[i], vectors[i + 1], parts(1, 3, 5, 7)) for i in (0, 2)]
    low_high = [(pick(*half, parts(0, 2, 4, 6)), pick(*half, parts(1, 3, 5, 7))) for half in (even, odd)]
    return [low_high[0][0], low_high[1][0], low_high[0][1], low_high[1][1]]
