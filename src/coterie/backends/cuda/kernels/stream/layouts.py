"""How the warps of a program share rows of a matrix: 16 each, and 16 more for each further tile; all columns are
everybody's.
"""

import triton
from triton.experimental.gluon import language as gl

from coterie.backends.cuda.kernels.single.layouts import bits_below


@triton.constexpr_function
def products(warps):
    """[rows, columns of activations]."""
    return gl.NVMMADistributedLayout(version=[2, 0], warps_per_cta=[warps, 1], instr_shape=[16, 8])


@triton.constexpr_function
def left(warps):
    """Numbers [rows, columns of a group] as the matrix units take them."""
    return gl.DotOperandLayout(0, products(warps), 2)


@triton.constexpr_function
def right(warps):
    """Activations [columns of a group, columns of activations]."""
    return gl.DotOperandLayout(1, products(warps), 2)


@triton.constexpr_function
def _rows_of(rows, warps, lanes, each):
    """[rows, n]: a thread has `each` neighbours of two rows of a tile; `lanes` says where the four that share a row
    begin.
    """
    return gl.DistributedLinearLayout(
        reg_bases=[[0, bit] for bit in bits_below(each)]
        + [[8, 0]]
        + [[16 * warps * bit, 0] for bit in bits_below(rows // warps // 16)],
        lane_bases=[*lanes, [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16 * bit, 0] for bit in bits_below(warps)],
        block_bases=[],
        shape=[rows, each * (4 if lanes[0][1] else 1)],
    )


@triton.constexpr_function
def units_read(n_units, rows, warps):
    """Units [rows, n_units] of a group, a quarter of a row's a thread."""
    each = n_units // 4
    return _rows_of(rows, warps, [[0, each], [0, 2 * each]], each)


@triton.constexpr_function
def words_read(n_words, rows, warps):
    """Words of constants [rows, n_words]: the four threads that share a row have the same."""
    return _rows_of(rows, warps, [[0, 0], [0, 0]], n_words)


@triton.constexpr_function
def columns_read(size, columns, warps):
    """Activations [size, columns] of a group, the same for every warp: those of a thread's units stand side by side."""
    each = size // 4
    return gl.DistributedLinearLayout(
        reg_bases=[[bit, 0] for bit in bits_below(each)] + [[0, 8 * bit] for bit in bits_below(columns // 8)],
        lane_bases=[[each, 0], [2 * each, 0], [0, 1], [0, 2], [0, 4]],
        warp_bases=[[0, 0] for _ in bits_below(warps)],
        block_bases=[],
        shape=[size, columns],
    )


@triton.constexpr_function
def copied(width, each, warps):
    """[rows, width], `each` elements of a row at a time."""
    lanes = min(32, width // each)
    return gl.BlockedLayout([1, each], [32 // lanes, lanes], [warps, 1], [1, 0])


@triton.constexpr_function
def columns_kept():
    """Activations [columns, columns of a step] in shared memory, so that rows lie in different banks."""
    return gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
