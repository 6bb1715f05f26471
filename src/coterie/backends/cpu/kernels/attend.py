"""What attention is made of: outer products in register tiles, dot products with a key, and rows of a softmax."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from coterie.backends.cpu.isa import ISAS, Isa
from coterie.backends.cpu.kernels.activation import exponential
from coterie.backends.cpu.kernels.vector import F32, Vectors

TILE_ROWS = 6
DOT_ROWS = 8


def tile_width(isa: Isa) -> int:
    """Columns of a tile."""
    return _tile_vectors(isa) * isa.lanes


def _tile_vectors(isa: Isa) -> int:
    """Vectors beside each other in a tile: TILE_ROWS times as many accumulators fit the registers."""
    return 4 if isa.tile_rows * isa.tile_tokens >= 4 * TILE_ROWS else 2


@intrinsic(prefer_literal=True)
def outer_tile(
    _context: Any, isa: Any, n_rows: Any, a: Any, a_stride: Any, b: Any, b_stride: Any, c: Any, c_stride: Any,
    count: Any, fresh: Any,
) -> Any:  # fmt: skip
    """c[r, j] += sum over k < count of a[r, k] * b[k, j], for r < n_rows <= TILE_ROWS and the columns j of a tile.

    a, b, c: addresses of f32 rows, strides in bytes. c is taken as zero where `fresh` is not 0.
    """
    chosen = ISAS[isa.literal_value]

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        v = Vectors(builder, chosen)
        v.for_count(args[1], TILE_ROWS, lambda rows: _outer(v, rows, *args[2:]))
        return context.get_dummy_value()

    return types.void(isa, *[types.int64] * 9), codegen


def _outer(
    v: Vectors, rows: int, a: Any, a_stride: Any, b: Any, b_stride: Any, c: Any, c_stride: Any, count: Any, fresh: Any
) -> None:
    builder, width = v.builder, _tile_vectors(v.isa)
    lines = [builder.add(c, builder.mul(c_stride, v.integer(row))) for row in range(rows)]
    sources = [builder.add(a, builder.mul(a_stride, v.integer(row))) for row in range(rows)]
    sums = [[v.variable(v.zero()) for _ in range(width)] for _ in range(rows)]
    with builder.if_then(builder.icmp_signed("==", fresh, v.integer(0))):
        for line, row in zip(lines, sums, strict=True):
            for place, total in enumerate(row):
                builder.store(v.load(v.floats, v.at(line, 4 * v.lanes * place)), total)
    with v.loop(count) as step:
        base = builder.add(b, builder.mul(step, b_stride))
        columns = [v.load(v.floats, v.at(base, 4 * v.lanes * place)) for place in range(width)]
        offset = builder.mul(step, v.integer(4))
        for source, row in zip(sources, sums, strict=True):
            factor = v.splat(v.load(F32, builder.add(source, offset)))
            for column, total in zip(columns, row, strict=True):
                builder.store(v.fma(factor, column, builder.load(total)), total)
    for line, row in zip(lines, sums, strict=True):
        for place, total in enumerate(row):
            v.store(builder.load(total), v.at(line, 4 * v.lanes * place))


@intrinsic(prefer_literal=True)
def dot_rows(
    _context: Any, isa: Any, n_rows: Any, rows: Any, stride: Any, other: Any, count: Any, out: Any, out_stride: Any
) -> Any:
    """out[r] = rows[r] . other over `count` numbers, for r < n_rows <= DOT_ROWS; addresses of f32, strides in bytes."""
    chosen = ISAS[isa.literal_value]

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        v = Vectors(builder, chosen)
        v.for_count(args[1], DOT_ROWS, lambda count: _dots(v, count, *args[2:]))
        return context.get_dummy_value()

    return types.void(isa, *[types.int64] * 7), codegen


def _dots(v: Vectors, n_rows: int, rows: Any, stride: Any, other: Any, count: Any, out: Any, out_stride: Any) -> None:
    builder = v.builder
    sources = [builder.add(rows, builder.mul(stride, v.integer(row))) for row in range(n_rows)]
    sums = [v.variable(v.zero()) for _ in range(n_rows)]
    n_vectors = builder.sdiv(count, v.integer(v.lanes))

    def add(offset: Any, read: Any) -> None:
        vector = read(builder.add(other, offset))
        for source, total in zip(sources, sums, strict=True):
            builder.store(v.fma(read(builder.add(source, offset)), vector, builder.load(total)), total)

    with v.loop(n_vectors) as step:
        add(builder.mul(step, v.integer(4 * v.lanes)), lambda address: v.load(v.floats, address))
    rest = builder.srem(count, v.integer(v.lanes))
    with builder.if_then(builder.icmp_signed(">", rest, v.integer(0)), likely=False):
        offset = builder.mul(n_vectors, v.integer(4 * v.lanes))
        add(offset, lambda address: v.load_masked(v.floats, address, rest))
    for row, total in enumerate(sums):
        place = builder.add(out, builder.mul(out_stride, v.integer(row)))
        v.store(v.sum(builder.load(total)), place)


@intrinsic(prefer_literal=True)
def transpose_square(_context: Any, isa: Any, rows: Any, stride: Any, out: Any, out_stride: Any) -> Any:
    """out[i, j] = rows[j, i] for a square of as many numbers as a vector has lanes; f32, strides in bytes."""
    chosen = ISAS[isa.literal_value]

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        v = Vectors(builder, chosen)
        rows, stride, out, out_stride = args[1:]
        lines = [v.load(v.floats, builder.add(rows, builder.mul(stride, v.integer(index)))) for index in range(v.lanes)]
        step = 1
        while step < v.lanes:
            for index in range(v.lanes):
                if not index & step:
                    lines[index], lines[index + step] = _exchange(v, lines[index], lines[index + step], step)
            step *= 2
        for index, line in enumerate(lines):
            v.store(line, builder.add(out, builder.mul(out_stride, v.integer(index))))
        return context.get_dummy_value()

    return types.void(isa, *[types.int64] * 4), codegen


def _exchange(v: Vectors, first: Any, second: Any, step: int) -> tuple[Any, Any]:
    """Two lines with their off-diagonal parts exchanged: lanes that differ in the bit `step`."""
    lanes = range(v.lanes)
    upper = [v.lanes + lane - step if lane & step else lane for lane in lanes]
    lower = [v.lanes + lane if lane & step else lane + step for lane in lanes]
    shuffle = v.builder.shuffle_vector
    return shuffle(first, second, v.ints_of(upper)), shuffle(first, second, v.ints_of(lower))


@intrinsic(prefer_literal=True)
def highest_of(_context: Any, isa: Any, row: Any, count: Any, initial: Any) -> Any:
    """The largest of `initial` and `count` numbers at an address, `count` being whole vectors; NaN is passed over."""
    chosen = ISAS[isa.literal_value]

    def codegen(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        v = Vectors(builder, chosen)
        _, row, count, initial = args
        best = v.variable(v.splat(initial))
        with v.loop(builder.sdiv(count, v.integer(v.lanes))) as step:
            vector = v.load(v.floats, builder.add(row, builder.mul(step, v.integer(4 * v.lanes))))
            builder.store(_larger(v, vector, builder.load(best)), best)
        vector = builder.load(best)
        while vector.type.count > 1:
            half = vector.type.count // 2
            vector = _larger(v, v.shuffle(vector, range(half)), v.shuffle(vector, range(half, 2 * half)))
        return builder.extract_element(vector, v.integer(0))

    return types.float32(isa, types.int64, types.int64, types.float32), codegen


def _larger(v: Vectors, first: Any, second: Any) -> Any:
    return v.builder.select(v.builder.fcmp_ordered(">", first, second), first, second)


@intrinsic(prefer_literal=True)
def exponentials(_context: Any, isa: Any, row: Any, count: Any, highest: Any) -> Any:
    """row[i] = e^(row[i] - highest) for `count` numbers, whole vectors of them; their sum."""
    chosen = ISAS[isa.literal_value]

    def codegen(_ctx: Any, builder: Any, _sig: Any, args: Any) -> Any:
        v = Vectors(builder, chosen)
        _, row, count, highest = args
        highest, total = v.splat(highest), v.variable(v.zero())
        with v.loop(builder.sdiv(count, v.integer(v.lanes))) as step:
            place = builder.add(row, builder.mul(step, v.integer(4 * v.lanes)))
            value = exponential(v, builder.fsub(v.load(v.floats, place), highest))
            v.store(value, place)
            builder.store(builder.fadd(builder.load(total), value), total)
        return v.sum(builder.load(total))

    return types.float32(isa, types.int64, types.int64, types.float32), codegen


@intrinsic(prefer_literal=True)
def scale_row(_context: Any, isa: Any, row: Any, count: Any, factor: Any, out: Any) -> Any:
    """out[i] = factor * row[i] for `count` numbers; both are addresses of f32 and may be the same."""
    chosen = ISAS[isa.literal_value]

    def codegen(context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        v = Vectors(builder, chosen)
        _, row, count, factor, out = args
        factors, n_vectors = v.splat(factor), builder.sdiv(count, v.integer(v.lanes))
        with v.loop(n_vectors) as step:
            offset = builder.mul(step, v.integer(4 * v.lanes))
            v.store(builder.fmul(factors, v.load(v.floats, builder.add(row, offset))), builder.add(out, offset))
        begin = builder.mul(n_vectors, v.integer(v.lanes))
        with v.loop(builder.sub(count, begin)) as step:
            offset = builder.mul(builder.add(begin, step), ir.Constant(begin.type, 4))
            v.store(builder.fmul(factor, v.load(F32, builder.add(row, offset))), builder.add(out, offset))
        return context.get_dummy_value()

    return types.void(isa, types.int64, types.int64, types.float32, types.int64), codegen
