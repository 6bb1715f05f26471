"""How the warps of a program share ROWS rows of a matrix: each has one of the groups of a chunk, all rows, and all
columns.
"""

import triton
from triton.experimental.gluon import language as gl

ROWS = gl.constexpr(16)
"""Rows of a tile: what a product of the matrix units takes."""

COLUMNS = gl.constexpr(8)
"""Columns of activations that it takes."""

_LINE = 64
"""Units of 16 bits that shared memory gives at a time."""


@triton.constexpr_function
def bits_below(n):
    """The powers of two below a power of two."""
    return [1 << i for i in range(n.bit_length() - 1)]


@triton.constexpr_function
def products(warps):
    """[groups, ROWS, COLUMNS]: group b is a matter of warp b % warps."""
    return gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[warps, 1, 1], instr_shape=[1, 16, 8])


@triton.constexpr_function
def left(warps):
    """Numbers [groups, ROWS, columns of a group] as the matrix units take them."""
    return gl.DotOperandLayout(0, products(warps), 2)


@triton.constexpr_function
def right(warps):
    """Activations [groups, columns of a group, COLUMNS]."""
    return gl.DotOperandLayout(1, products(warps), 2)


@triton.constexpr_function
def codes_copied(width, warps):
    """Units [ROWS, width], 16 bytes at a time, a row's side by side."""
    lanes = min(32, width // 8)
    return gl.BlockedLayout([1, 8], [32 // lanes, lanes], [warps, 1], [1, 0])


@triton.constexpr_function
def codes_kept(n_units, warps):
    """Units [ROWS, warps * n_units] in shared memory, so that rows of one group lie in different banks."""
    in_line = max(1, _LINE // n_units)
    return gl.SwizzledSharedLayout(n_units, max(1, in_line // warps), min(in_line, warps), [1, 0])


@triton.constexpr_function
def codes_read(n_units, warps):
    """Units [ROWS, warps * n_units], of which a thread has n_units / 4 neighbours in each of two rows."""
    each = n_units // 4
    return gl.DistributedLinearLayout(
        reg_bases=[[0, bit] for bit in bits_below(each)] + [[8, 0]],
        lane_bases=[[0, each], [0, 2 * each], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[0, n_units * bit] for bit in bits_below(warps)],
        block_bases=[],
        shape=[16, n_units * warps],
    )


@triton.constexpr_function
def columns_read(size, warps):
    """Activations [warps, size, COLUMNS] of groups of so many codes, to go with what `codes_read` reads: those of the
    units that a thread has stand side by side.
    """
    each = size // 4
    return gl.DistributedLinearLayout(
        reg_bases=[[0, bit, 0] for bit in bits_below(each)],
        lane_bases=[[0, each, 0], [0, 2 * each, 0], [0, 0, 1], [0, 0, 2], [0, 0, 4]],
        warp_bases=[[bit, 0, 0] for bit in bits_below(warps)],
        block_bases=[],
        shape=[warps, size, 8],
    )


@triton.constexpr_function
def columns_of(size, warps):
    """[COLUMNS] beside `columns_read`."""
    return gl.SliceLayout(0, gl.SliceLayout(1, columns_read(size, warps)))


@triton.constexpr_function
def row_fetched(size, warps):
    """A row's activations [warps, size]: each warp has those of its group."""
    return gl.BlockedLayout([1, max(1, size // 32)], [1, 32], [warps, 1], [1, 0])


@triton.constexpr_function
def constants_fetched(n_groups, held, warps):
    """Scales or biases [ROWS, held]: rows in neighbouring threads, each as many groups as it can ask for at once."""
    each = min(n_groups & -n_groups, 8, max(1, held // (2 * warps)))
    return gl.BlockedLayout([1, each], [16, 2], [1, warps], [0, 1])


@triton.constexpr_function
def constants_used(warps):
    """[groups, 8 rows, the row and the one 8 behind it, scale and constant]: one read gives a thread all four."""
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 0, 1], [0, 0, 1, 0]],
        lane_bases=[[0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0], [0, 4, 0, 0]],
        warp_bases=[[bit, 0, 0, 0] for bit in bits_below(warps)],
        block_bases=[],
        shape=[warps, 8, 2, 2],
    )


@triton.constexpr_function
def added_up(parts, shares, warps):
    """[shares, rows, parts, columns of a part]: what is added up is one thread's."""
    columns = 8 // parts
    return gl.BlockedLayout([shares, 1, parts, 1], [1, 32 // columns, 1, columns], [1, warps, 1, 1], [3, 2, 1, 0])


@triton.constexpr_function
def results(parts, shares, warps):
    """[rows, columns of a part]: sums over the others of `added_up`."""
    return gl.SliceLayout(1, gl.SliceLayout(0, added_up(parts, shares, warps)))


@triton.constexpr_function
def in_order(rank):
    """Shared memory without a twist."""
    return gl.SwizzledSharedLayout(1, 1, 1, list(range(rank))[::-1])
