"""From packed codes to float16 numbers in the registers from which the matrix units take them.

The bits of an affine code are read as a subnormal number, which is code * 2^-24; where they lie four places higher it
is 16 times as much, and the activation that it meets is a sixteenth (`Arrangement.lifted`). E2M1 codes get sign,
exponent and mantissa moved to their places in float16, which makes them value * 2^-14.

A number is a code, exactly, or a weight: scale * code + bias, rounded once to the eleven bits of float16. A code is
quicker to make, a weight costs nothing once it was multiplied.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from coterie.backends.cuda.kernels.stream.layouts import left, products, right

_NIBBLES = gl.constexpr(
    "{ .reg .b32 t; and.b32 $0, $4, 0x000F000F; and.b32 $1, $4, 0x00F000F0; shr.b32 t, $4, 8; "
    "and.b32 $2, t, 0x000F000F; and.b32 $3, t, 0x00F000F0; }"
)
"""Four numbers of each of two units of 4-bit codes."""

_NIBBLES_WEIGHED = gl.constexpr(
    "{ .reg .b32 t, q; and.b32 t, $4, 0x000F000F; fma.rn.f16x2 $0, t, $5, $7; "
    "and.b32 t, $4, 0x00F000F0; fma.rn.f16x2 $1, t, $5, $9; shr.b32 q, $4, 8; "
    "and.b32 t, q, 0x000F000F; fma.rn.f16x2 $2, t, $5, $7; and.b32 t, q, 0x00F000F0; fma.rn.f16x2 $3, t, $5, $9; }"
)
"""The same, as weights; operands are two of each: units, scales, biases, and biases of numbers 16 times as large."""

_BYTES = gl.constexpr("{ .reg .b32 t; and.b32 $0, $2, 0x00FF00FF; shr.b32 t, $2, 8; and.b32 $1, t, 0x00FF00FF; }")
"""Two numbers of each of two units of 8-bit codes."""

_BYTES_WEIGHED = gl.constexpr(
    "{ .reg .b32 t; and.b32 t, $2, 0x00FF00FF; fma.rn.f16x2 $0, t, $3, $5; "
    "shr.b32 t, $2, 8; and.b32 t, t, 0x00FF00FF; fma.rn.f16x2 $1, t, $3, $5; }"
)
"""The same, as weights; operands are two of each: units, scales, biases."""

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

_TWICE = gl.constexpr(
    "{ .reg .b32 q; mov.b32 q, 0x4C004C00; prmt.b32 $0, $3, $3, 0x1010; prmt.b32 $1, $3, $3, 0x3232; "
    "mul.rn.f16x2 $2, $1, q; }"
)
"""A word's scale twice, its bias twice, and 16 times the bias twice; 0x4C00 is 16."""


@gluon.jit
def _as_operand(a, b, c, d, BITS: gl.constexpr, WARPS: gl.constexpr):
    """Numbers [rows, columns] from those of each code of a unit [rows, n]."""
    M: gl.constexpr = a.shape[0]
    n: gl.constexpr = a.shape[1]
    if BITS == 8:
        flat = gl.reshape(gl.permute(gl.join(a, b), (0, 2, 1)), (M, 2 * n))
    else:
        four = gl.join(gl.join(a, c), gl.join(b, d))
        flat = gl.reshape(gl.permute(four, (0, 2, 3, 1)), (M, 4 * n))
    return gl.convert_layout(flat, left(WARPS), assert_trivial=True)


@gluon.jit
def _in_places(units):
    """units [rows, n], those of a thread where the matrix units look for them: two neighbours, and two more that they
    count eight columns later.
    """
    M: gl.constexpr = units.shape[0]
    n: gl.constexpr = units.shape[1]
    return gl.reshape(gl.permute(gl.reshape(units, (M, 4, n // 8, 2)), (0, 2, 1, 3)), (M, n))


@gluon.jit
def codes_of(units, MODE: gl.constexpr, BITS: gl.constexpr, WARPS: gl.constexpr):
    """Codes [rows, columns] of units [rows, n] as numbers; code i of unit u is column i * n + `place` of u."""
    units = _in_places(units)
    if BITS == 8:
        a, b = gl.inline_asm_elementwise(
            _BYTES, "=&r,=&r,r", [units], dtype=(gl.float16, gl.float16), is_pure=True, pack=2
        )
        found = _as_operand(a, b, a, b, BITS, WARPS)
    else:
        a, b, c, d = gl.inline_asm_elementwise(
            _NIBBLES if MODE == "affine" else _E2M1_NIBBLES, "=&r,=&r,=&r,=&r,r", [units],
            dtype=(gl.float16, gl.float16, gl.float16, gl.float16), is_pure=True, pack=2,
        )  # fmt: skip
        found = _as_operand(a, b, c, d, BITS, WARPS)
    return found


@gluon.jit
def _beside(values, units):
    """[rows] for each of units [rows, n]."""
    L: gl.constexpr = units.type.layout
    return gl.expand_dims(gl.convert_layout(values, gl.SliceLayout(1, L)), 1).broadcast_to(units.shape)


@gluon.jit
def weights_of(units, word, BITS: gl.constexpr, WARPS: gl.constexpr):
    """Weights [rows, columns] of units [rows, n] of affine codes, in the order of `codes_of`; word uint32 [rows]."""
    scale, bias, lifted = gl.inline_asm_elementwise(
        _TWICE, "=&r,=&r,=&r,r", [word], dtype=(gl.uint32, gl.uint32, gl.uint32), is_pure=True, pack=1
    )
    units = _in_places(units)
    scale, bias, lifted = _beside(scale, units), _beside(bias, units), _beside(lifted, units)
    if BITS == 8:
        a, b = gl.inline_asm_elementwise(
            _BYTES_WEIGHED, "=&r,=&r,r,r,r,r,r", [units, scale, bias], dtype=(gl.float16, gl.float16), is_pure=True,
            pack=2,
        )  # fmt: skip
        found = _as_operand(a, b, a, b, BITS, WARPS)
    else:
        a, b, c, d = gl.inline_asm_elementwise(
            _NIBBLES_WEIGHED, "=&r,=&r,=&r,=&r,r,r,r,r,r,r,r", [units, scale, bias, lifted],
            dtype=(gl.float16, gl.float16, gl.float16, gl.float16), is_pure=True, pack=2,
        )  # fmt: skip
        found = _as_operand(a, b, c, d, BITS, WARPS)
    return found


@gluon.jit
def beside_numbers(x, U: gl.constexpr, WARPS: gl.constexpr):
    """Activations [G, columns], those of a thread's units side by side in the order of codes, as the matrix units take
    them beside numbers.
    """
    G: gl.constexpr = x.shape[0]
    N: gl.constexpr = x.shape[1]
    turned = gl.permute(gl.reshape(x, (4, G // U, U // 8, 2, N)), (1, 2, 0, 3, 4))
    return gl.convert_layout(gl.reshape(turned, (G, N)), right(WARPS), assert_trivial=True)


@gluon.jit
def ones(G: gl.constexpr, U: gl.constexpr, BITS: gl.constexpr, WARPS: gl.constexpr):
    """Numbers [16 * WARPS, G] whose products with activations are the sums of these."""
    L: gl.constexpr = gl.SliceLayout(0, left(WARPS))
    one = gl.full([G], 1.0, gl.float16, L)
    if BITS == 4:
        one = gl.where(gl.arange(0, G, layout=L) // U % 2 == 1, 16.0, 1.0).to(gl.float16)
    return one[None, :].broadcast_to((16 * WARPS, G))


@gluon.jit
def each_word(words, WARPS: gl.constexpr):
    """Words [rows, n] as n vectors [rows] beside products."""
    M: gl.constexpr = words.shape[0]
    n: gl.constexpr = words.shape[1]
    if n == 1:
        found = (gl.convert_layout(gl.reshape(words, (M,)), gl.SliceLayout(1, products(WARPS))),)
    else:
        first, second = gl.split(gl.permute(gl.reshape(words, (M, 2, n // 2)), (0, 2, 1)))
        found = each_word(first, WARPS) + each_word(second, WARPS)
    return found


@gluon.jit
def half_of(word, SHIFT: gl.constexpr):
    """One of the two float16 numbers in words, f32: of affine ones the scale (0) or the bias (16)."""
    return ((word >> SHIFT) & 0xFFFF).to(gl.uint16).to(gl.float16, bitcast=True).to(gl.float32)


@gluon.jit
def scale_byte_of(word, PLACE: gl.constexpr):
    """One of the four E8M0 scales in words, f32. A byte 0 is 2^-127, which f32 has as a subnormal number."""
    exponent = ((word >> (8 * PLACE)) & 255) << 23
    return gl.maximum(exponent, 0x00400000).to(gl.float32, bitcast=True)
