"""Dot products of weight rows with a few activations of 16 bits: the kernel of decoding where codes are small integers.

Codes become integers of 16 bits by a shift and a mask, and pairs of them meet pairs of activations in one instruction
that multiplies and adds: half the work of products in f32. The int32 sums of a block become f32 once, where they meet
the scales of the weights and of the activations.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from coterie.backends.cpu.kernels.decode import SCALE_BYTES, load_floats
from coterie.backends.cpu.kernels.gemm import store_sums
from coterie.backends.cpu.kernels.int16_round import fields
from coterie.backends.cpu.kernels.vector import I8, I16, I32, I64, Vectors
from coterie.backends.cpu.layout import Layout, from_key

_E2M1_TWICE = (0, 1, 2, 3, 4, 6, 8, 12)
_E2M1_TABLE = [sign * twice for sign in (1, -1) for twice in _E2M1_TWICE]


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


class _DotRows:
    """A row goes by stretches of `lanes` groups, whose scales meet the activations' in one product of vectors."""

    def __init__(self, builder: Any, layout: Layout, n_rows: int, n_tokens: int, args: dict[str, Any]) -> None:
        b = builder
        v = self.v = Vectors(builder, layout.isa)
        self.builder, self.layout, self.args, self.n_rows = b, layout, args, n_rows
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
            store_sums(v, [b.load(totals[token]) for totals in self.totals], line)

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
        if layout.kind == "affine":
            sums = [self._floats("f32", b.add(place, b.mul(self.n_groups, v.integer(4))), n_valid) for place in places]
            for row in range(self.n_rows):
                biases = self._floats(layout.scale, b.add(self.biases[row], offset), n_valid)
                for token, values in enumerate(sums):
                    self._accumulate(row, token, biases, values)
        groups = v.integer(v.lanes) if n_valid is None else n_valid
        n_inputs = b.mul(groups, v.integer(layout.group))
        first_block = b.sdiv(b.mul(first, v.integer(layout.group)), v.integer(layout.block))
        n_blocks = b.sdiv(n_inputs, v.integer(layout.block))
        with v.loop(n_blocks) as block:
            self._block(first_block, block, factors, None)
        if n_valid is not None and layout.block > layout.group:
            rest = b.srem(n_inputs, v.integer(layout.block))
            with b.if_then(b.icmp_signed(">", rest, v.integer(0))):
                self._block(first_block, n_blocks, factors, rest)

    def _floats(self, kind: str, address: Any, n_valid: Any | None) -> Any:
        return load_floats(self.v, kind, address, n_valid)

    def _block(self, first: Any, block: Any, factors: list[list[Any]], n_valid: Any | None) -> None:
        """Block number first + block of the rows; `block` counts from the stretch's first."""
        b, v, layout = self.builder, self.v, self.layout
        index = b.add(first, block)
        offset = b.mul(index, v.integer(layout.block_bytes))
        bases = [b.add(address, b.mul(index, v.integer(2 * layout.block))) for address in self.inputs]
        width, n_fields = 4 * v.lanes, fields(layout)
        xs = [[v.load(v.ints, v.at(base, width * field)) for field in range(n_fields)] for base in bases]
        group = self._groups(block)
        for row, codes in enumerate(self.codes):
            place = b.add(codes, offset)
            v.prefetch(b.add(place, self.args["codes_ahead"]))
            if n_valid is None:
                words = v.load(v.ints, place)
            else:
                words = v.load_masked(v.ints, place, b.sdiv(n_valid, v.integer(layout.fields)))
            decoded = code_fields(v, layout, words)
            for token, x in enumerate(xs):
                total = ir.Constant(v.ints, None)
                for integers, activations in zip(decoded, x, strict=True):
                    total = dot_pairs(v, total, integers, activations)
                self._accumulate(row, token, b.sitofp(total, v.floats), v.permute(factors[row][token], group))

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


def code_fields(v: Vectors, layout: Layout, words: Any) -> list[Any]:
    """The fields of a block's words, each a vector of two integers of 16 bits a lane; E2M1 numbers are doubled."""
    b = v.builder
    halves = ir.VectorType(I16, 2 * v.lanes)
    raw = b.bitcast(words, halves)
    mask = ir.Constant(halves, [(1 << layout.bits) - 1] * (2 * v.lanes))
    decoded = []
    for field in range(fields(layout)):
        shifted = b.lshr(raw, ir.Constant(halves, [layout.bits * field] * (2 * v.lanes))) if field else raw
        if layout.kind == "e2m1":
            decoded.append(b.bitcast(_e2m1(v, shifted, mask), v.ints))
        else:
            last = field == fields(layout) - 1
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


def dot_pairs(v: Vectors, total: Any, a: Any, b: Any) -> Any:
    """total + a[0] * b[0] + a[1] * b[1] of the signed integers of 16 bits in each lane."""
    bits, halves = 32 * v.lanes, ir.VectorType(I16, 2 * v.lanes)
    pairs = [v.builder.bitcast(a, halves), v.builder.bitcast(b, halves)]
    if v.isa.vnni:
        return v.call(f"llvm.x86.avx512.vpdpwssd.{bits}", v.ints, [total, *pairs])
    name = {512: "llvm.x86.avx512.pmaddw.d.512", 256: "llvm.x86.avx2.pmadd.wd"}[bits]
    return v.builder.add(total, v.call(name, v.ints, pairs))
