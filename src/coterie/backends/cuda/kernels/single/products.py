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
def _for_matrix_units(x, U: gl.constexpr, ARRANGED: gl.constexpr, WARPS: gl.constexpr):
    """Activations as the matrix units take them. Not ARRANGED, they are brought into the order of codes first, each
    thread's for themselves, as `Arrangement.of_threads` has them.
    """
    G: gl.constexpr = x.shape[1]
    if not ARRANGED:
        parts = gl.reshape(x, (WARPS, 4, U // 4, G // U, COLUMNS))
        x = gl.reshape(gl.permute(parts, (0, 1, 3, 2, 4)), (WARPS, G, COLUMNS))
    return beside_numbers(x, U, WARPS)


@triton.constexpr_function
def _chunks_ahead(size, blocks, chunks):
    """Chunks of groups of `size` codes whose activations are asked for before weights are there: all, if half of a
    thread's registers have room for them. Of short groups a thread would ask for too little at a time.
    """
    return chunks if blocks == 1 and size >= 64 and size * chunks <= 512 else 1


@gluon.jit
def multiply_rows(
    rows, x, inputs, n_inputs, K: gl.constexpr, ROW: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr,
    G: gl.constexpr, C: gl.constexpr, ARRANGED: gl.constexpr, PARTS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """What `keep_rows` gives times rows `inputs` of x bfloat16 [PARTS, n_inputs, ROW], K columns of them: of each tile,
    for each of the `inputs` [COLUMNS], f32 [WARPS, ROWS, COLUMNS], a warp's groups summed.

    A group's sum of number times activation meets its scale in f32, and its sum of activations its constant.
    """
    U: gl.constexpr = G // C
    CHUNKS: gl.constexpr = chunks_of(K // G, WARPS)
    AHEAD: gl.constexpr = _chunks_ahead(G, len(inputs), CHUNKS)
    near = [_places(x, chosen, n_inputs, ROW, G, C, PARTS, WARPS) for chosen in inputs]
    nothing = gl.zeros([WARPS, ROWS, COLUMNS], gl.float32, products(WARPS))
    sums = [[nothing for _ in inputs] for _ in rows]
    read = _read_chunks(near, 0, AHEAD, K, G, WARPS)
    if AHEAD > 1:
        barrier()  # the compiler would wait for the weights first
    await_rows()
    for chunk in gl.static_range(CHUNKS):
        found = read[chunk] if chunk < AHEAD else _read_chunk(near, chunk, K, G, WARPS)
        columns = [_for_matrix_units(some, U, ARRANGED, WARPS) for some in found]
        totals = columns
        if MODE == "affine":
            ones = gl.full([WARPS, ROWS, G], 1.0, gl.bfloat16, left(WARPS))
            totals = [mma_v2(ones, some, nothing) for some in columns]
        coming = ()
        for tile in gl.static_range(len(rows)):
            coming += (_add_tile(sums[tile], rows[tile], columns, totals, chunk, U, MODE, BITS, WARPS),)
        sums = coming
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
    """A block of columns of what `multiply_rows` gives, in shared memory: [WARPS, rows, PARTS, columns of a part]."""
    together = _side_by_side(sums, BLOCK, PAIRED, WARPS)
    shape: gl.constexpr = [WARPS, together.shape[1], PARTS, COLUMNS // PARTS]
    room = gl.allocate_shared_memory(gl.float32, shape, in_order(4))
    room.store(gl.reshape(together, shape))
    return room


@gluon.jit
def add_up(room, FIRST: gl.constexpr, COUNT: gl.constexpr, PARTS: gl.constexpr, WARPS: gl.constexpr):
    """The sums over warps and parts of COUNT rows from row FIRST on: f32 [COUNT, columns of a part]."""
    return gl.sum(gl.sum(room.slice(FIRST, COUNT, dim=1).load(added_up(PARTS, WARPS)), 0), 1)
