"""Tiles in shared memory times columns of activations."""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from coterie.backends.cuda.kernels.copies import barrier
from coterie.backends.cuda.kernels.single.layouts import (
    COLUMNS,
    ROWS,
    added_up,
    codes_read,
    columns_of,
    columns_read,
    constants_used,
    in_order,
    left,
    products,
    row_fetched,
)
from coterie.backends.cuda.kernels.single.numbers import beside_numbers, numbers
from coterie.backends.cuda.kernels.single.weights import await_rows, chunks_of, read_some


@gluon.jit
def _constants(kept, chunk: gl.constexpr, WARPS: gl.constexpr):
    """Scales and constants f32 [WARPS, ROWS, COLUMNS] of a chunk."""
    L: gl.constexpr = gl.SliceLayout(2, products(WARPS))
    scale, constant = gl.split(kept.slice(chunk * WARPS, WARPS).load(constants_used(WARPS)))
    scale = gl.convert_layout(gl.reshape(gl.permute(scale, (0, 2, 1)), (WARPS, ROWS)), L, assert_trivial=True)
    constant = gl.convert_layout(gl.reshape(gl.permute(constant, (0, 2, 1)), (WARPS, ROWS)), L, assert_trivial=True)
    shape: gl.constexpr = (WARPS, ROWS, COLUMNS)
    return scale[:, :, None].broadcast_to(shape), constant[:, :, None].broadcast_to(shape)


@gluon.jit
def _add_tile(
    sums, tile, columns, totals, chunk: gl.constexpr, U: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """A tile's sums, of each of the BLOCKS of columns, plus the products of a chunk."""
    room, kept = tile
    units = gl.reshape(room[chunk].index(0).load(codes_read(U, WARPS)), (ROWS, WARPS, U))
    codes = numbers(gl.permute(units, (1, 0, 2)), MODE, BITS, WARPS)
    scale, constant = _constants(kept, chunk, WARPS)
    nothing = gl.zeros([WARPS, ROWS, COLUMNS], gl.float32, products(WARPS))
    result = ()
    for block in gl.static_range(len(sums)):
        total = gl.fma(mma_v2(codes, columns[block], nothing), scale, sums[block])
        if MODE == "affine":
            total = gl.fma(totals[block], constant, total)
        result += (total,)
    return result


@gluon.jit
def _places(
    x, inputs, n_inputs, ROW: gl.constexpr, G: gl.constexpr, C: gl.constexpr, PARTS: gl.constexpr, WARPS: gl.constexpr
):
    """Where the activations [WARPS, G, COLUMNS] of the first chunk stand."""
    L: gl.constexpr = columns_read(G, WARPS)
    part = gl.arange(0, COLUMNS, layout=columns_of(G, WARPS)) // (COLUMNS // PARTS)
    start = (part.to(gl.int64) * n_inputs + inputs) * ROW
    group = gl.arange(0, WARPS, layout=gl.SliceLayout(1, gl.SliceLayout(2, L)))
    k = gl.arange(0, G, layout=gl.SliceLayout(0, gl.SliceLayout(2, L)))
    return x + start[None, None, :] + (group * G)[:, None, None] + k[None, :, None]


@gluon.jit
def _read_chunk(near, chunk: gl.constexpr, K: gl.constexpr, G: gl.constexpr, WARPS: gl.constexpr):
    """A chunk's activations [WARPS, G, COLUMNS] of each block of columns."""
    L: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, columns_read(G, WARPS)))
    ALL: gl.constexpr = (chunk + 1) * WARPS * G <= K
    there = (gl.arange(0, WARPS, layout=L) < K // G - chunk * WARPS)[:, None, None]
    return [read_some(place + chunk * WARPS * G, there, ALL) for place in near]


@gluon.jit
def _read_chunks(near, first: gl.constexpr, COUNT: gl.constexpr, K: gl.constexpr, G: gl.constexpr, WARPS: gl.constexpr):
    """`_read_chunk` of COUNT chunks from `first` on, a tuple."""
    found = (_read_chunk(near, first, K, G, WARPS),)
    if COUNT > 1:
        found += _read_chunks(near, first + 1, COUNT - 1, K, G, WARPS)
    return found


@gluon.jit
def fetch_row(x, K: gl.constexpr, G: gl.constexpr, WARPS: gl.constexpr):
    """A row's activations [WARPS, G] of each chunk, asked for; zeros behind the last."""
    L: gl.constexpr = row_fetched(G, WARPS)
    group, k = gl.arange(0, WARPS, layout=gl.SliceLayout(1, L)), gl.arange(0, G, layout=gl.SliceLayout(0, L))
    at = x + (group * G)[:, None] + k[None, :]
    found = ()
    for chunk in gl.static_range(chunks_of(K // G, WARPS)):
        there = (group < K // G - chunk * WARPS)[:, None]
        found += (read_some(at + chunk * WARPS * G, there, (chunk + 1) * WARPS * G <= K),)
    return found


@gluon.jit
def _keep_row(found, ARRANGED: gl.constexpr, G: gl.constexpr, U: gl.constexpr, WARPS: gl.constexpr):
    """What `fetch_row` gives in shared memory, in the order of codes of `Arrangement.of_threads`: every column of a
    product is this row.
    """
    kept = ()
    for chunk in gl.static_range(len(found)):
        some = found[chunk]
        if not ARRANGED:
            parts = gl.permute(gl.reshape(some, (WARPS, 4, U // 4, G // U)), (0, 1, 3, 2))
            some = gl.reshape(parts, (WARPS, G))
        room = gl.allocate_shared_memory(gl.bfloat16, [WARPS, G], in_order(2))
        room.store(some)
        kept += (room,)
    return kept


@gluon.jit
def _read_row(room, WARPS: gl.constexpr):
    """A chunk's activations [WARPS, G, COLUMNS] of the row that `_keep_row` has kept."""
    G: gl.constexpr = room.shape[1]
    some = room.load(gl.SliceLayout(2, columns_read(G, WARPS)))
    return some[:, :, None].broadcast_to((WARPS, G, COLUMNS))


@triton.constexpr_function
def _chunks_ahead(size, blocks, chunks):
    """Chunks of groups of `size` codes whose activations are asked for before weights are there: all, if half of a
    thread's registers have room for them. Of short groups a thread would ask for too little at a time.
    """
    return chunks if blocks == 1 and size >= 64 and size * chunks <= 512 else 1


@gluon.jit
def multiply_rows(
    rows, x, row, inputs, n_inputs, K: gl.constexpr, ROW: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr,
    G: gl.constexpr, C: gl.constexpr, ARRANGED: gl.constexpr, PARTS: gl.constexpr, APART: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """What `keep_rows` gives times rows `inputs` of x bfloat16 [PARTS, n_inputs, ROW], K columns of them: of each tile,
    for each of the `inputs` [COLUMNS], f32 [WARPS, ROWS, COLUMNS], a warp's groups summed; that APART times, for every
    APART-th group. row: what `fetch_row` gives if all inputs are one row, which need not be ARRANGED in the order of
    codes; else nothing.

    A group's sum of number times activation meets its scale in f32, and its sum of activations its constant.
    """
    U: gl.constexpr = G // C
    CHUNKS: gl.constexpr = chunks_of(K // G, WARPS)
    nothing = gl.zeros([WARPS, ROWS, COLUMNS], gl.float32, products(WARPS))
    sums = ([[nothing for _ in inputs] for _ in rows],)
    for _ in gl.static_range(APART - 1):
        sums += sums[:1]
    kept = _keep_row(row, ARRANGED, G, U, WARPS)
    IS_ONE: gl.constexpr = len(kept) > 0
    AHEAD: gl.constexpr = _chunks_ahead(G, len(inputs), CHUNKS)
    near, read = (), ()
    if not IS_ONE:
        near = [_places(x, chosen, n_inputs, ROW, G, C, PARTS, WARPS) for chosen in inputs]
        read = _read_chunks(near, 0, AHEAD, K, G, WARPS)
        if AHEAD > 1:
            barrier()  # the compiler would wait for the weights first
    await_rows()
    for chunk in gl.static_range(CHUNKS):
        if IS_ONE:
            found = [_read_row(kept[chunk], WARPS)]
        else:
            found = read[chunk] if chunk < AHEAD else _read_chunk(near, chunk, K, G, WARPS)
        columns = [beside_numbers(some, U, WARPS) for some in found]
        totals = columns
        if MODE == "affine":
            ones = gl.full([WARPS, ROWS, G], 1.0, gl.bfloat16, left(WARPS))
            totals = [mma_v2(ones, some, nothing) for some in columns]
        coming = ()
        for tile in gl.static_range(len(rows)):
            coming += (_add_tile(sums[0][tile], rows[tile], columns, totals, chunk, U, MODE, BITS, WARPS),)
        # Whose turn it is stands in front.
        sums = sums[1:] + (coming,)  # noqa: RUF005 (the compiler knows no stars)
    for _ in gl.static_range(-CHUNKS % APART):
        sums = sums[1:] + sums[:1]
    return sums


@gluon.jit
def _side_by_side(sums, BLOCK: gl.constexpr, PAIRED: gl.constexpr, WARPS: gl.constexpr):
    """A block's sums of one or two tiles [WARPS, rows, COLUMNS]; PAIRED: first halves of tiles, then second ones."""
    TILES: gl.constexpr = len(sums)
    both = sums[0][BLOCK]
    if TILES == 2:
        both = gl.permute(gl.join(sums[0][BLOCK], sums[1][BLOCK]), (0, 3, 1, 2))
    if PAIRED:
        both = gl.permute(gl.reshape(both, (WARPS, TILES, 2, ROWS // 2, COLUMNS)), (0, 2, 1, 3, 4))
    return gl.reshape(both, (WARPS, TILES * ROWS, COLUMNS))


@gluon.jit
def share(sums, BLOCK: gl.constexpr, PAIRED: gl.constexpr, PARTS: gl.constexpr, WARPS: gl.constexpr):
    """A block of columns of what `multiply_rows` gives, in shared memory: [shares, rows, PARTS, columns of a part].
    What a warp has kept apart are so many shares, in the order in which as many warps would have them.
    """
    APART: gl.constexpr = len(sums)
    M: gl.constexpr = len(sums[0]) * ROWS
    shape: gl.constexpr = [APART * WARPS, M, PARTS, COLUMNS // PARTS]
    room = gl.allocate_shared_memory(gl.float32, shape, in_order(4))
    for apart in gl.static_range(APART):
        together = _side_by_side(sums[apart], BLOCK, PAIRED, WARPS)
        room.slice(apart * WARPS, WARPS).store(gl.reshape(together, (WARPS, M, PARTS, COLUMNS // PARTS)))
    return room


@gluon.jit
def add_up(room, FIRST: gl.constexpr, COUNT: gl.constexpr, PARTS: gl.constexpr, WARPS: gl.constexpr):
    """The sums over shares and parts of COUNT rows from row FIRST on: f32 [COUNT, columns of a part]."""
    L: gl.constexpr = added_up(PARTS, room.shape[0], WARPS)
    return gl.sum(gl.sum(room.slice(FIRST, COUNT, dim=1).load(L), 0), 1)
