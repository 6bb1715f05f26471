"""From packed codes to float16 weights, in the registers from which the matrix units take them.

A weight becomes scale * code + bias, rounded once to the eleven bits of a float16 number. Codes need no conversion:
their bits are read as a subnormal number, which is code * 2^-24, or 16 * code * 2^-24 where they lie four places
higher, and the scale makes up for that. E2M1 codes get sign, exponent and mantissa moved to their places in float16,
which makes them value * 2^-14.

float16 has few exponents. So each row of a matrix is multiplied by a power of two, as large as its scales allow, and
the row's outputs are divided by it. What is 2^-17 of a row's largest weight, or less, begins to lose bits.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from coterie.backends.cuda.kernels.hopper.layouts import COLUMNS, ROWS, left, units_read
from coterie.backends.cuda.kernels.words import first_exponent

_CONSTANTS = "prmt.b32 s, $%d, $%d, 0x1010; prmt.b32 b, $%d, $%d, 0x3232;"
"""PTX: a scale and a bias, of one 32-bit word, twice each."""

_NIBBLES = gl.constexpr(
    "{ .reg .b32 t, s, r, b, q; " + _CONSTANTS.replace("%d", "5") + " mov.b32 q, 0x2C002C00; mul.rn.f16x2 r, s, q; "
    "and.b32 t, $4, 0x000F000F; fma.rn.f16x2 $0, t, s, b; and.b32 t, $4, 0x00F000F0; fma.rn.f16x2 $1, t, r, b; "
    "shr.b32 q, $4, 8; "
    "and.b32 t, q, 0x000F000F; fma.rn.f16x2 $2, t, s, b; and.b32 t, q, 0x00F000F0; fma.rn.f16x2 $3, t, r, b; }"
)
"""Four numbers of each of two units of 4-bit codes; 0x2C00 is 1/16."""

_BYTES = gl.constexpr(
    "{ .reg .b32 t, s, b, q; " + _CONSTANTS.replace("%d", "3") + " shr.b32 q, $2, 8; "
    "and.b32 t, $2, 0x00FF00FF; fma.rn.f16x2 $0, t, s, b; and.b32 t, q, 0x00FF00FF; fma.rn.f16x2 $1, t, s, b; }"
)
"""Two numbers of each of two units of 8-bit codes."""


def _float_lanes() -> gl.constexpr:
    """PTX: four numbers of each of two units of E2M1 codes."""
    signs = ("shl.b32 s, $4, 12;", "shl.b32 s, $4, 8;", "shl.b32 s, $4, 4;", "mov.b32 s, $4;")
    magnitudes = ("shl.b32 m, $4, 9;", "shl.b32 m, $4, 5;", "shl.b32 m, $4, 1;", "shr.b32 m, $4, 3;")
    join = "and.b32 m, m, 0x0E000E00; lop3.b32 m, s, 0x80008000, m, 0xEA;"
    steps = [
        f"{sign} {magnitude} {join} mul.rn.f16x2 ${place}, m, $5;"
        for place, (sign, magnitude) in enumerate(zip(signs, magnitudes, strict=True))
    ]
    return gl.constexpr("{ .reg .b32 s, m; " + " ".join(steps) + " }")


_E2M1_NIBBLES = _float_lanes()


@gluon.jit
def exponent_of(number):
    """The exponent, as float32 stores it, of numbers that are not negative."""
    return number.to(gl.int32, bitcast=True) >> 23


@gluon.jit
def row_exponents(scale, bias, MODE: gl.constexpr, BITS: gl.constexpr):
    """The stored exponent [n] of a row's largest weight, or of its largest E2M1 scale; scale, bias f32 [n, groups]."""
    size = scale
    if MODE == "affine":
        size = gl.maximum(gl.abs(bias), gl.abs(((1 << BITS) - 1) * scale + bias))
    return exponent_of(gl.max(size, 1))


@gluon.jit
def factor_bits(exponent, MODE: gl.constexpr, BITS: gl.constexpr):
    """The stored exponent of the power of two for rows whose largest weight has `exponent`."""
    return gl.minimum(gl.maximum(first_exponent(MODE, BITS) - exponent, 1), 229)


@gluon.jit
def power(stored_exponent):
    """The power of two, f32, that has a stored exponent."""
    return (stored_exponent.to(gl.int32) << 23).to(gl.float32, bitcast=True)


@gluon.jit
def words_of(scale, bias, factor, MODE: gl.constexpr):
    """Scales, and biases, f32 [n, groups] of rows times `factor` [n], as a program keeps them: uint32, the bias above
    the scale; float16 where there are no biases.
    """
    if MODE == "affine":
        low = (scale * (factor * 16777216.0)[:, None]).to(gl.float16).to(gl.uint16, bitcast=True).to(gl.uint32)
        high = (bias * factor[:, None]).to(gl.float16).to(gl.uint16, bitcast=True).to(gl.uint32)
        words = low | (high << 16)
    else:
        words = (scale * (factor * 16384.0)[:, None]).to(gl.float16)
    return words


@gluon.jit
def _numbers(q, word, MODE: gl.constexpr, BITS: gl.constexpr):
    """Weights [ROWS, columns] of one group from its units [ROWS, n] and constants [ROWS]; code i of unit u is column
    i * n + u.
    """
    n: gl.constexpr = q.shape[1]
    constant = gl.convert_layout(gl.expand_dims(word, 1).broadcast_to((ROWS, n)), q.type.layout, assert_trivial=True)
    if BITS == 8:
        a, b = gl.inline_asm_elementwise(
            _BYTES, "=&r,=&r,r,r,r", [q, constant], dtype=(gl.float16, gl.float16), is_pure=True, pack=2
        )
        flat = gl.reshape(gl.permute(gl.join(a, b), (0, 2, 1)), (ROWS, 2 * n))
    else:
        a, b, c, d = gl.inline_asm_elementwise(
            _NIBBLES if MODE == "affine" else _E2M1_NIBBLES,
            "=&r,=&r,=&r,=&r,r,r,r" if MODE == "affine" else "=&r,=&r,=&r,=&r,r,r",
            [q, constant], dtype=(gl.float16, gl.float16, gl.float16, gl.float16), is_pure=True, pack=2,
        )  # fmt: skip
        four = gl.join(gl.join(a, c), gl.join(b, d))
        flat = gl.reshape(gl.permute(four, (0, 2, 3, 1)), (ROWS, 4 * n))
    return flat


@gluon.jit
def codes_of(units, words, step, G: gl.constexpr):
    """A step's units [ROWS, n] and the constants [ROWS] of its one or two groups, from shared memory."""
    n: gl.constexpr = units.shape[1]
    q = units.load(units_read(n))
    if G == COLUMNS:
        word = words.index(step).load(gl.SliceLayout(1, units_read(n)))
        next_word = word
    else:
        word = words.index(2 * step).load(gl.SliceLayout(1, units_read(n // 2)))
        next_word = words.index(2 * step + 1).load(gl.SliceLayout(1, units_read(n // 2)))
    return q, word, next_word


@gluon.jit
def weights_of(q, word, next_word, TOKENS: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr):
    """Weights [ROWS, COLUMNS] of a step from what `codes_of` gives."""
    if G == COLUMNS:
        numbers = _numbers(q, word, MODE, BITS)
    else:
        pairs = gl.permute(gl.reshape(q, (ROWS, 2, q.shape[1] // 2)), (0, 2, 1))
        first, second = gl.split(pairs)
        one, other = _numbers(first, word, MODE, BITS), _numbers(second, next_word, MODE, BITS)
        numbers = gl.reshape(gl.permute(gl.join(one, other), (0, 2, 1)), (ROWS, COLUMNS))
    return gl.convert_layout(numbers, left(TOKENS), assert_trivial=True)
