"""From packed codes to bfloat16 numbers in the registers from which the matrix units take them: every code, exactly."""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from coterie.backends.cuda.kernels.codes import E2M1_NIBBLES
from coterie.backends.cuda.kernels.single.layouts import COLUMNS, ROWS, left, right

_NIBBLES = gl.constexpr(
    "{ .reg .b32 t; lop3.b32 $0, $4, 0x000F000F, 0x43004300, 0xEA; "
    "shr.b32 t, $4, 4; lop3.b32 $1, t, 0x000F000F, 0x43004300, 0xEA; "
    "shr.b32 t, $4, 8; lop3.b32 $2, t, 0x000F000F, 0x43004300, 0xEA; "
    "shr.b32 t, $4, 12; lop3.b32 $3, t, 0x000F000F, 0x43004300, 0xEA; }"
)
"""128 plus each of the four 4-bit codes of each of two units."""

_BYTE = (
    "lop3.b32 m, {q}, 0x00800080, 0, 0x0C; mul.lo.u32 m, m, 0x86; "
    "lop3.b32 t, {q}, 0x007F007F, 0x43004300, 0xEA; fma.rn.bf16x2 {out}, m, less, t; "
)
"""PTX: two codes. Their low seven bits are a number of 128 and more, which is the code if its eighth is set."""

_BYTES = gl.constexpr(
    "{ .reg .b32 t, m, q, less; mov.b32 less, 0xBF80BF80; "
    + _BYTE.format(q="$2", out="$0") + "shr.b32 q, $2, 8; " + _BYTE.format(q="q", out="$1") + "}"
)  # fmt: skip
"""The two 8-bit codes of each of two units."""


@triton.constexpr_function
def excess(mode, bits):
    """What numbers are larger than their codes by."""
    return 128 if mode == "affine" and bits == 4 else 0


@gluon.jit
def numbers(units, MODE: gl.constexpr, BITS: gl.constexpr, WARPS: gl.constexpr):
    """Numbers [groups, ROWS, columns] of units [groups, ROWS, n]; code i of unit u is column i * n + `place` of u.

    The matrix units multiply two neighbours of a thread's and two more that they count eight columns later: the units
    that a thread has are given such places.
    """
    n: gl.constexpr = units.shape[2]
    groups: gl.constexpr = units.shape[0]
    turned = gl.permute(gl.reshape(units, (groups, ROWS, 4, n // 8, 2)), (0, 1, 3, 2, 4))
    units = gl.reshape(turned, (groups, ROWS, n))
    if BITS == 8:
        a, b = gl.inline_asm_elementwise(
            _BYTES, "=&r,=&r,r", [units], dtype=(gl.bfloat16, gl.bfloat16), is_pure=True, pack=2
        )
        flat = gl.reshape(gl.permute(gl.join(a, b), (0, 1, 3, 2)), (groups, ROWS, 2 * n))
    else:
        a, b, c, d = gl.inline_asm_elementwise(
            _NIBBLES if MODE == "affine" else E2M1_NIBBLES, "=&r,=&r,=&r,=&r,r", [units],
            dtype=(gl.bfloat16, gl.bfloat16, gl.bfloat16, gl.bfloat16), is_pure=True, pack=2,
        )  # fmt: skip
        four = gl.join(gl.join(a, c), gl.join(b, d))
        flat = gl.reshape(gl.permute(four, (0, 1, 3, 4, 2)), (groups, ROWS, 4 * n))
    return gl.convert_layout(flat, left(WARPS), assert_trivial=True)


@gluon.jit
def beside_numbers(x, U: gl.constexpr, WARPS: gl.constexpr):
    """Activations [groups, G, COLUMNS], those of a thread's units side by side in the order of codes, as the matrix
    units take them beside `numbers`.
    """
    groups: gl.constexpr = x.shape[0]
    G: gl.constexpr = x.shape[1]
    turned = gl.permute(gl.reshape(x, (groups, 4, G // U, U // 8, 2, COLUMNS)), (0, 2, 3, 1, 4, 5))
    return gl.convert_layout(gl.reshape(turned, (groups, G, COLUMNS)), right(WARPS), assert_trivial=True)
