"""From packed codes to float16 numbers in the registers from which the matrix units take them: every code, exactly.

The bits of an affine code are read as a subnormal number, which is code * 2^-24; where they lie four places higher it
is 16 times as much, and the activation that it meets is a sixteenth (`Arrangement.lifted`). E2M1 codes get sign,
exponent and mantissa moved to their places in float16, which makes them value * 2^-14.
"""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from coterie.backends.cuda.kernels.stream.layouts import COLUMNS, left, products, right

_NIBBLES = gl.constexpr(
    "{ .reg .b32 t; and.b32 $0, $4, 0x000F000F; and.b32 $1, $4, 0x00F000F0; shr.b32 t, $4, 8; "
    "and.b32 $2, t, 0x000F000F; and.b32 $3, t, 0x00F000F0; }"
)
"""Four numbers of each of two units of 4-bit codes."""

_BYTES = gl.constexpr("{ .reg .b32 t; and.b32 $0, $2, 0x00FF00FF; shr.b32 t, $2, 8; and.b32 $1, t, 0x00FF00FF; }")
"""Two numbers of each of two units of 8-bit codes."""


_E2M1_NIBBLES = gl.constexpr(
    "{ .reg .b32 s, m; "
    "shr.b32 m, $4, 3; lop3.b32 m, $4, m, 0x80808080, 0xE4; and.b32 $3, m, 0x8E008E00; "
    "shl.b32 m, m, 8; and.b32 $1, m, 0x8E008E00; "
    "shl.b32 s, $4, 4; shl.b32 m, $4, 1; lop3.b32 m, s, m, 0x80808080, 0xE4; and.b32 $2, m, 0x8E008E00; "
    "shl.b32 m, m, 8; and.b32 $0, m, 0x8E008E00; }"
)
"""Four numbers of each of two units of E2M1 codes: signs, and what is three bits lower, are put together for two places
at a time.
"""


@triton.constexpr_function
def one_is(mode):
    """What a product is to be multiplied by, because of the numbers' powers of two."""
    return 2.0**24 if mode == "affine" else 2.0**14


@gluon.jit
def numbers(units, MODE: gl.constexpr, BITS: gl.constexpr, WARPS: gl.constexpr):
    """Numbers [rows, columns] of units [rows, n]; code i of unit u is column i * n + `place` of u.

    The matrix units multiply two neighbours of a thread's and two more that they count eight columns later: the units
    that a thread has are given such places.
    """
    M: gl.constexpr = units.shape[0]
    n: gl.constexpr = units.shape[1]
    units = gl.reshape(gl.permute(gl.reshape(units, (M, 4, n // 8, 2)), (0, 2, 1, 3)), (M, n))
    if BITS == 8:
        a, b = gl.inline_asm_elementwise(
            _BYTES, "=&r,=&r,r", [units], dtype=(gl.float16, gl.float16), is_pure=True, pack=2
        )
        flat = gl.reshape(gl.permute(gl.join(a, b), (0, 2, 1)), (M, 2 * n))
    else:
        a, b, c, d = gl.inline_asm_elementwise(
            _NIBBLES if MODE == "affine" else _E2M1_NIBBLES, "=&r,=&r,=&r,=&r,r", [units],
            dtype=(gl.float16, gl.float16, gl.float16, gl.float16), is_pure=True, pack=2,
        )  # fmt: skip
        four = gl.join(gl.join(a, c), gl.join(b, d))
        flat = gl.reshape(gl.permute(four, (0, 2, 3, 1)), (M, 4 * n))
    return gl.convert_layout(flat, left(WARPS), assert_trivial=True)


@gluon.jit
def beside_numbers(x, U: gl.constexpr, WARPS: gl.constexpr):
    """Activations [G, COLUMNS], those of a thread's units side by side in the order of codes, as the matrix units take
    them beside `numbers`.
    """
    G: gl.constexpr = x.shape[0]
    turned = gl.permute(gl.reshape(x, (4, G // U, U // 8, 2, COLUMNS)), (1, 2, 0, 3, 4))
    return gl.convert_layout(gl.reshape(turned, (G, COLUMNS)), right(WARPS), assert_trivial=True)


@gluon.jit
def ones(G: gl.constexpr, U: gl.constexpr, BITS: gl.constexpr, WARPS: gl.constexpr):
    """Numbers [16 * WARPS, G] of codes that are all 1."""
    L: gl.constexpr = gl.SliceLayout(0, left(WARPS))
    one = gl.full([G], 1, gl.int32, L)
    if BITS == 4:
        one = gl.where(gl.arange(0, G, layout=L) // U % 2 == 1, 16, 1)
    return one.to(gl.int16).to(gl.float16, bitcast=True)[None, :].broadcast_to((16 * WARPS, G))


@gluon.jit
def _each_word(words, WARPS: gl.constexpr):
    """Words [rows, n] as n vectors [rows] beside products."""
    M: gl.constexpr = words.shape[0]
    n: gl.constexpr = words.shape[1]
    if n == 1:
        found = (gl.convert_layout(gl.reshape(words, (M,)), gl.SliceLayout(1, products(WARPS))),)
    else:
        first, second = gl.split(gl.permute(gl.reshape(words, (M, 2, n // 2)), (0, 2, 1)))
        found = _each_word(first, WARPS) + _each_word(second, WARPS)
    return found


@gluon.jit
def _half_of(words, SHIFT: gl.constexpr, IS_FLOAT16: gl.constexpr):
    """One of the 16-bit numbers in each word, f32."""
    if IS_FLOAT16:
        number = ((words >> SHIFT) & 0xFFFF).to(gl.uint16).to(gl.float16, bitcast=True).to(gl.float32)
    elif SHIFT == 0:
        number = (words << 16).to(gl.float32, bitcast=True)
    else:
        number = (words & 0xFFFF0000).to(gl.float32, bitcast=True)
    return number


@gluon.jit
def constants_of(words, MODE: gl.constexpr, IS_FLOAT16: gl.constexpr, WARPS: gl.constexpr):
    """(scales, biases), f32 [rows] for each group, of words [rows, n] as `words_kernel` makes them. A scale's byte 0 is
    2^-127, which f32 has as a subnormal number.
    """
    scales, biases = (), ()
    each = _each_word(words, WARPS)
    for index in gl.static_range(len(each)):
        if MODE == "affine":
            scales += (_half_of(each[index], 0, IS_FLOAT16),)
            biases += (_half_of(each[index], 16, IS_FLOAT16),)
        else:
            for place in gl.static_range(4):
                exponent = ((each[index] >> (8 * place)) & 255) << 23
                scales += (gl.maximum(exponent, 0x00400000).to(gl.float32, bitcast=True),)
    return scales, biases
