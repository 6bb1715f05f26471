"""How a program's 256 threads share its tiles, and how its tiles lie in shared memory."""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

ROWS = gl.constexpr(128)
"""Rows of a matrix that a program has: 16 a warp. Gate and up have 64 each, in turns of 8, so that both numbers of a
hidden value are one thread's.
"""

COLUMNS = gl.constexpr(64)
"""Activations of a row that a step multiplies."""

_REINTERPRETS = gl.constexpr(hasattr(gl.shared_memory_descriptor, "reinterpret"))
"""Whether it is called so, as it is since Triton 3.7."""


@triton.constexpr_function
def product(n_tokens):
    """The product of the matrix units: ROWS x n_tokens."""
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[8, 1], instr_shape=[16, n_tokens, 16])


@triton.constexpr_function
def left(n_tokens):
    """Weights [ROWS, COLUMNS] as the matrix units take them from registers."""
    return gl.DotOperandLayout(0, product(n_tokens), 2)


@triton.constexpr_function
def units_read(n_units):
    """Units [ROWS, n_units], of which a thread has those whose numbers the matrix units want from it."""
    registers = [[0, 1], [8, 0]] + [[0, 8 << i] for i in range(3) if 8 << i < n_units]
    return gl.DistributedLinearLayout(
        reg_bases=registers,
        lane_bases=[[0, 2], [0, 4], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0], [64, 0]],
        block_bases=[],
        shape=[128, n_units],
    )


@triton.constexpr_function
def copied(width):
    """Rows of `width` 16-bit numbers, copied 16 bytes at a time."""
    return gl.BlockedLayout([1, 8], [256 // width, width // 8], [8, 1], [1, 0])


@triton.constexpr_function
def units_kept(n_units):
    """Units [ROWS, n_units] in shared memory, 16 bytes at a time so that 8 rows lie in 8 different places."""
    pieces = n_units // 8
    return gl.SwizzledSharedLayout(8, max(1, 8 // pieces), min(8, pieces), [1, 0])


@triton.constexpr_function
def swizzled():
    """Rows of COLUMNS 16-bit numbers in shared memory, as the matrix units take them from there."""
    return gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16)


@triton.constexpr_function
def scales_read():
    """Scales [ROWS, groups]: eight neighbours a thread, neighbouring rows in neighbouring threads."""
    return gl.BlockedLayout([1, 8], [32, 1], [4, 2], [1, 0])


@triton.constexpr_function
def stored(n_rows):
    """Outputs [n_rows, tokens], rows of a token side by side."""
    return gl.BlockedLayout([8, 1], [min(32, n_rows // 8), max(1, 256 // n_rows)], [1, 8], [0, 1])


@triton.constexpr_function
def per_token():
    """A token a thread."""
    return gl.BlockedLayout([1], [32], [8], [0])


@gluon.jit
def as_vectors(room):
    """Shared memory [n, m] as n vectors."""
    L: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    if _REINTERPRETS:
        vectors = room.reinterpret(room.dtype, room.shape, L)
    else:
        vectors = room._reinterpret(room.dtype, room.shape, L)
    return vectors
