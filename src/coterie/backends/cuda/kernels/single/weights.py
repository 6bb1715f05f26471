"""Tiles of a matrix in shared memory: codes as they are stored, scales and biases as the numbers that sums meet."""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy

from coterie.backends.cuda.kernels.codes import scale_of
from coterie.backends.cuda.kernels.copies import barrier, copy_async
from coterie.backends.cuda.kernels.single.layouts import (
    ROWS,
    codes_copied,
    codes_kept,
    constants_fetched,
    in_order,
)
from coterie.backends.cuda.kernels.single.numbers import excess


@triton.constexpr_function
def chunks_of(n_groups, warps):
    """Chunks, of a group a warp, that a row has."""
    return -(-n_groups // warps)


@triton.constexpr_function
def _held(n_groups, warps):
    """A power of two that holds the groups of all chunks."""
    return triton.next_power_of_2(chunks_of(n_groups, warps) * warps)


@gluon.jit
def _starts(values, others, first_row, last_row, width: gl.constexpr, PAIRED: gl.constexpr, LAYOUT: gl.constexpr):
    """Where ROWS rows begin, from `first_row` on; rows behind `last_row` repeat it. PAIRED: half of them are the same
    rows of `others`.
    """
    row = gl.arange(0, ROWS, layout=LAYOUT)
    if PAIRED:
        place = gl.minimum(first_row + row % (ROWS // 2), last_row) * width
        at = gl.where(row < ROWS // 2, values + place, others + place)
    else:
        at = values + gl.minimum(first_row + row, last_row) * width
    return at


@gluon.jit
def _rooms(dtype: gl.constexpr, N: gl.constexpr, U: gl.constexpr, WARPS: gl.constexpr):
    """Room for N chunks of codes, each an allocation of its own: so the compiler knows that no copy meets another."""
    room = (gl.allocate_shared_memory(dtype, [1, ROWS, WARPS * U], codes_kept(U, WARPS)),)
    if N > 1:
        room += _rooms(dtype, N - 1, U, WARPS)
    return room


@gluon.jit
def read_some(place, there, ALL: gl.constexpr):
    """What stands at places that are `there`, zeros for others; ALL: they all are."""
    if ALL:
        return gl.load(place)
    return gl.load(place, mask=there, other=0)


@gluon.jit
def _copy_codes(
    codes, others, first_row, last_row, K: gl.constexpr, ROW: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    PAIRED: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Room to which all codes of ROWS rows are on their way; zeros behind the last group."""
    U: gl.constexpr = G // C
    WIDTH: gl.constexpr = WARPS * U
    room = _rooms(codes.dtype.element_ty, chunks_of(K // G, WARPS), U, WARPS)
    L: gl.constexpr = codes_copied(WIDTH, WARPS)
    at = _starts(codes, others, first_row, last_row, ROW // C, PAIRED, gl.SliceLayout(1, L))
    unit = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, L))
    at = gl.multiple_of(at, 16)[:, None] + unit[None, :]
    for chunk in gl.static_range(chunks_of(K // G, WARPS)):
        if (chunk + 1) * WIDTH * C <= K:
            copy_async(room[chunk].index(0), at + chunk * WIDTH)
        else:
            copy_async(room[chunk].index(0), at + chunk * WIDTH, mask=(unit < K // C - chunk * WIDTH)[None, :])
    async_copy.commit_group()
    return room


@gluon.jit
def _read_constants(
    values, others, first_row, last_row, NG: gl.constexpr, ROW: gl.constexpr, PAIRED: gl.constexpr, WARPS: gl.constexpr
):
    """Scales or biases [ROWS, groups] of NG groups of rows of ROW groups."""
    HELD: gl.constexpr = _held(NG, WARPS)
    L: gl.constexpr = constants_fetched(ROW, HELD, WARPS)
    group = gl.arange(0, HELD, layout=gl.SliceLayout(0, L))
    at = _starts(values, others, first_row, last_row, ROW, PAIRED, gl.SliceLayout(1, L))
    return read_some(at[:, None] + group[None, :], (group < NG)[None, :], HELD == NG)


@gluon.jit
def fetch_rows(
    matrix, other, first_row, last_row, TILES: gl.constexpr, K: gl.constexpr, ROW: gl.constexpr, MODE: gl.constexpr,
    G: gl.constexpr, C: gl.constexpr, PAIRED: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Ask for TILES tiles of matrices whose (codes, scales, biases) begin at `matrix` and `other`, K columns of rows of
    ROW columns: of each tile (codes in shared memory, scales, biases), codes on their way.
    """
    NG: gl.constexpr = K // G
    room = _copy_codes(matrix[0], other[0], first_row, last_row, K, ROW, G, C, PAIRED, WARPS)
    scale = _read_constants(matrix[1], other[1], first_row, last_row, NG, ROW // G, PAIRED, WARPS)
    bias = scale
    if MODE == "affine":
        bias = _read_constants(matrix[2], other[2], first_row, last_row, NG, ROW // G, PAIRED, WARPS)
    fetched = ((room, scale, bias),)
    if TILES > 1:
        NEXT: gl.constexpr = ROWS // 2 if PAIRED else ROWS
        fetched += fetch_rows(matrix, other, first_row + NEXT, last_row, TILES - 1, K, ROW, MODE, G, C, PAIRED, WARPS)
    return fetched


@gluon.jit
def _keep_constants(scale, bias, MODE: gl.constexpr, BITS: gl.constexpr):
    """[groups, 8, 2, 2] in shared memory: see `constants_used`. A constant is what a group's sum of activations meets:
    its bias, less what numbers are too large by.
    """
    HELD: gl.constexpr = scale.shape[1]
    factor = scale_of(scale, MODE)
    constant = factor
    if MODE == "affine":
        constant = bias.to(gl.float32) - excess(MODE, BITS) * factor
    both = gl.reshape(gl.join(factor, constant), (2, 8, HELD, 2))
    kept = gl.allocate_shared_memory(gl.float32, [HELD, 8, 2, 2], in_order(4))
    kept.store(gl.permute(both, (2, 1, 0, 3)))
    return kept


@gluon.jit
def keep_rows(fetched, TILES: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr):
    """(codes, constants) of each tile, in shared memory once `await_rows` has returned."""
    room, scale, bias = fetched[0]
    kept = ((room, _keep_constants(scale, bias, MODE, BITS)),)
    if TILES > 1:
        kept += keep_rows(fetched[1:], TILES - 1, MODE, BITS)
    return kept


@gluon.jit
def await_rows():
    """Until all that was asked for is there, for every thread."""
    async_copy.wait_group(0)
    barrier()
