"""Matrix products for many rows of activations: weights are unpacked once into a small panel, then multiplied in
register tiles.

A panel holds `rows` weight rows times a stretch of their length as f32, small enough for the first-level cache; every
token that needs these rows meets the panel before the next is unpacked. Accumulators live in registers within a panel
and in a small array of vectors between panels.
"""

from typing import Any

from numba import types
from numba.extending import intrinsic

from coterie.backends.cpu.kernels.decode import decode_fields, group_patterns, load_scales
from coterie.backends.cpu.kernels.vector import I64, Vectors
from coterie.backends.cpu.layout import Layout, from_key


@intrinsic(prefer_literal=True)
def unpack_blocks(
    _context: Any, key: Any, codes: Any, scales: Any, biases: Any, n_inputs: Any, first: Any, count: Any, panel: Any,
    codes_ahead: Any, scales_ahead: Any,
) -> Any:  # fmt: skip
    """Unpack `count` blocks of one weight row, from block `first` on, to f32 at `panel` in the order of prepared
    activations.

    codes, scales, biases: addresses of the row. A block that the row ends in is filled up with finite numbers. The same
    stretch of the row that lies codes_ahead and scales_ahead bytes further on is asked for, which need not exist.
    """
    layout = from_key(key.literal_value)

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        codes, scales, biases, n_inputs, first, count, panel, codes_ahead, scales_ahead = args[1:]
        v = Vectors(builder, layout.isa)
        whole = builder.sub(builder.sdiv(n_inputs, v.integer(layout.block)), first)
        n_whole = builder.select(builder.icmp_signed("<", whole, count), whole, count)
        row = (codes, scales, biases)
        for part in (scales, biases) if layout.scale != "none" else ():
            v.prefetch(builder.add(part, scales_ahead))
        with v.loop(n_whole) as step:
            offset = builder.mul(builder.add(first, step), v.integer(layout.block_bytes))
            v.prefetch(builder.add(builder.add(codes, offset), codes_ahead))
            _unpack_block(v, layout, row, builder.add(first, step), _block_of(v, layout, panel, step), None, n_inputs)
        with builder.if_then(builder.icmp_signed("<", n_whole, count), likely=False):
            rest = builder.srem(n_inputs, v.integer(layout.block))
            place = _block_of(v, layout, panel, n_whole)
            _unpack_block(v, layout, row, builder.add(first, n_whole), place, rest, n_inputs)
        return context.get_dummy_value()

    return types.void(key, *[types.int64] * 9), codegen


def _block_of(v: Vectors, layout: Layout, panel: Any, index: Any) -> Any:
    return v.builder.add(panel, v.builder.mul(index, v.integer(4 * layout.block)))


def _unpack_block(
    v: Vectors, layout: Layout, row: Any, block: Any, place: Any, n_valid: Any | None, n_inputs: Any
) -> None:
    b = v.builder
    codes, scales, biases = row
    fields = decode_fields(v, layout, b.add(codes, b.mul(block, v.integer(layout.block_bytes))), n_valid)
    if layout.scale == "none":
        v.store(fields[0], place)
        return
    n_groups = b.sdiv(n_inputs, v.integer(layout.group)) if n_valid is not None else None
    scale = load_scales(v, layout, scales, block, n_groups)
    bias = load_scales(v, layout, biases, block, n_groups) if layout.kind == "affine" else None
    for pattern, members in group_patterns(layout).items():
        scale_lanes = v.shuffle(scale, pattern)
        bias_lanes = v.shuffle(bias, pattern) if bias is not None else None
        for field in members:
            if bias_lanes is None:
                weight = b.fmul(fields[field], scale_lanes)
            else:
                # A field stands for code / field_scale, so the bias is divided by it too: a power of two, exact.
                offset = b.fmul(bias_lanes, v.floats_of(1.0 / layout.field_scale(field)))
                weight = v.fma(fields[field], scale_lanes, offset)
            v.store(weight, v.at(place, 4 * v.lanes * field))


@intrinsic(prefer_literal=True)
def multiply_tile(
    _context: Any, key: Any, n_tokens: Any, n_vectors: Any, panel: Any, panel_stride: Any, inputs: Any, offset: Any,
    sums: Any, fresh: Any,
) -> Any:  # fmt: skip
    """sums[row][token] += panel row * activations over `n_vectors` vectors, lane by lane, for the rows of a tile.

    n_tokens: 1 up to the tokens of a tile.

    panel: f32 rows, `panel_stride` bytes apart. inputs: address of int64 addresses, one a token; the stretch begins
    `offset` bytes behind each. sums: address of rows * tokens vectors; taken as zero where `fresh` is not 0.
    """
    isa = from_key(key.literal_value).isa

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        v = Vectors(builder, isa)
        v.for_count(args[1], isa.tile_tokens, lambda count: _multiply(v, count, args[2:]))
        return context.get_dummy_value()

    return types.void(key, *[types.int64] * 8), codegen


def _multiply(v: Vectors, n_tokens: int, args: Any) -> None:
    n_vectors, panel, panel_stride, inputs, offset, sums, fresh = args
    b, n_rows, width = v.builder, v.isa.tile_rows, 4 * v.lanes
    places = [v.at(sums, width * index) for index in range(n_rows * n_tokens)]
    totals = [v.variable(v.zero()) for _ in places]
    with b.if_then(b.icmp_signed("==", fresh, v.integer(0))):
        for total, place in zip(totals, places, strict=True):
            b.store(v.load(v.floats, place), total)
    weights = [b.add(panel, b.mul(panel_stride, v.integer(row))) for row in range(n_rows)]
    activations = [b.add(v.load(I64, v.at(inputs, 8 * token)), offset) for token in range(n_tokens)]
    with v.loop(n_vectors) as step:
        at = b.mul(step, v.integer(width))
        xs = [v.load(v.floats, b.add(base, at)) for base in activations]
        for row in range(n_rows):
            weight = v.load(v.floats, b.add(weights[row], at))
            for token in range(n_tokens):
                total = totals[row * n_tokens + token]
                b.store(v.fma(weight, xs[token], b.load(total)), total)
    for total, place in zip(totals, places, strict=True):
        v.store(b.load(total), place)


@intrinsic(prefer_literal=True)
def reduce_tile(_context: Any, key: Any, n_tokens: Any, sums: Any, out: Any, out_stride: Any) -> Any:
    """out[token * out_stride + row] = sum of the lanes of sums[row][token]; f32, the stride in elements."""
    isa = from_key(key.literal_value).isa

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        v = Vectors(builder, isa)
        v.for_count(args[1], isa.tile_tokens, lambda count: _reduce(v, count, *args[2:]))
        return context.get_dummy_value()

    return types.void(key, *[types.int64] * 4), codegen


def _reduce(v: Vectors, n_tokens: int, sums: Any, out: Any, out_stride: Any) -> None:
    for token in range(n_tokens):
        line = v.builder.add(out, v.builder.mul(out_stride, v.integer(4 * token)))
        places = [4 * v.lanes * (row * n_tokens + token) for row in range(v.isa.tile_rows)]
        store_sums(v, [v.load(v.floats, v.at(sums, place)) for place in places], line)


def store_sums(v: Vectors, vectors: list[Any], line: Any) -> None:
    """Store the sums of `vectors` (as many as a power of two) in a row, folding two vectors into one where there are
    two.
    """
    b, left = v.builder, v.lanes
    while left > 1:
        if len(vectors) > 1:
            pairs = zip(vectors[0::2], vectors[1::2], strict=True)
            halves = [(_pick(v, low, high, 0), _pick(v, low, high, 1)) for low, high in pairs]
        else:
            count = range(0, vectors[0].type.count, 2)
            halves = [(v.shuffle(vectors[0], count), v.shuffle(vectors[0], [lane + 1 for lane in count]))]
        vectors = [b.fadd(even, odd) for even, odd in halves]
        left //= 2
    for place, vector in enumerate(vectors):
        v.store(vector, v.at(line, 4 * vector.type.count * place))


def _pick(v: Vectors, low: Any, high: Any, parity: int) -> Any:
    """Every second lane of two vectors, those of `low` first."""
    return v.builder.shuffle_vector(low, high, v.ints_of([2 * lane + parity for lane in range(low.type.count)]))
