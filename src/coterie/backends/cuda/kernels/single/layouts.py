"""How the warps of a program share a product of ROWS rows: each has some of the groups, all rows, and all columns."""

import triton
from triton.experimental.gluon import language as gl

ROWS = gl.constexpr(16)
"""Rows of a matrix that a program has."""

COLUMNS = gl.constexpr(8)
"""Columns of activations that it multiplies."""


@triton.constexpr_function
def _bits(n):
    """The powers of two below a power of two."""
    return [1 << i for i in range(n.bit_length() - 1)]


@triton.constexpr_function
def products(warps):
    """[groups, ROWS, COLUMNS]: group b is a matter of warp b % warps."""
    return gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[warps, 1, 1], instr_shape=[1, 16, 8])


@triton.constexpr_function
def sums(warps):
    """[ROWS, COLUMNS] over all groups."""
    return gl.SliceLayout(0, products(warps))


@triton.constexpr_function
def left(warps):
    """Numbers [groups, ROWS, columns of a group] as the matrix units take them."""
    return gl.DotOperandLayout(0, products(warps), 2)


@triton.constexpr_function
def right(warps):
    """Activations [groups, columns of a group, COLUMNS]."""
    return gl.DotOperandLayout(1, products(warps), 2)


@triton.constexpr_function
def units_read(n_groups, n_units, warps):
    """Units [groups, ROWS, n_units], of which a thread has n_units / 4 neighbours in each of two rows."""
    each = n_units // 4
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 0, bit] for bit in _bits(each)]
        + [[0, 8, 0]]
        + [[warps * bit, 0, 0] for bit in _bits(n_groups // warps)],
        lane_bases=[[0, 0, each], [0, 0, 2 * each], [0, 1, 0], [0, 2, 0], [0, 4, 0]],
        warp_bases=[[bit, 0, 0] for bit in _bits(warps)],
        block_bases=[],
        shape=[n_groups, 16, n_units],
    )


@triton.constexpr_function
def columns_read(n_groups, size, n_units, warps):
    """Activations [groups, size, COLUMNS] of groups of n_units units, to go with what `units_read` reads."""
    each = n_units // 4
    return gl.DistributedLinearLayout(
        reg_bases=[[0, bit, 0] for bit in _bits(each)]
        + [[0, n_units * bit, 0] for bit in _bits(size // n_units)]
        + [[warps * bit, 0, 0] for bit in _bits(n_groups // warps)],
        lane_bases=[[0, each, 0], [0, 2 * each, 0], [0, 0, 1], [0, 0, 2], [0, 0, 4]],
        warp_bases=[[bit, 0, 0] for bit in _bits(warps)],
        block_bases=[],
        shape=[n_groups, size, 8],
    )


@triton.constexpr_function
def constants_read(n_groups, warps):
    """Scales or biases [ROWS, groups], of which a thread has neighbours: those of its warp's groups."""
    each = n_groups // warps
    return gl.DistributedLinearLayout(
        reg_bases=[[0, bit] for bit in _bits(each)] + [[8, 0]],
        lane_bases=[[0, 0], [0, 0], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[0, each * bit] for bit in _bits(warps)],
        block_bases=[],
        shape=[16, n_groups],
    )


@triton.constexpr_function
def groups_counted(each, warps):
    """[warps, each]: every warp's groups."""
    return gl.DistributedLinearLayout(
        reg_bases=[[0, bit] for bit in _bits(each)],
        lane_bases=[[0, 0]] * 5,
        warp_bases=[[bit, 0] for bit in _bits(warps)],
        block_bases=[],
        shape=[warps, each],
    )


@triton.constexpr_function
def sums_by_slot(slots, warps):
    """[slots, ROWS]: all slots of a row are one thread's."""
    return gl.BlockedLayout([slots, 1], [1, 32], [1, warps], [1, 0])
