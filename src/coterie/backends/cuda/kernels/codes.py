"""From packed codes to numbers for the matrix units.

A code becomes a bfloat16 number without an integer-to-float conversion, which runs at a quarter of the rate of other
instructions: its bits are put into the mantissa of a constant. An affine code q of b bits becomes 2^b + q, exactly;
what the constant adds to a sum is taken back from the sum of a group. Codes of mxfp4, nvfp4 and mxfp8 become their
values, exactly. Scales meet the f32 sum of their group, so no weight is ever rounded.

Codes are read as 16-bit units of C codes, code i of a unit at bits [i * BITS, (i + 1) * BITS). The numbers of the U
units of a group are laid side by side place by place, so a group's column i * U + u is code i of unit u; activations
are brought into that order beforehand (`kernels.prepare`). Codes of 3, 5 and 6 bits straddle units: they are fetched
one by one, in their own order, which is slower.

8-bit affine codes are two numbers each, of their low and of their high four bits (LOW, HIGH), both to be multiplied by
the same activation; together they are 272 + q.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.dequantize import e2m1, e4m3, e8m0
from coterie.backends.cuda.launch import SPEAKS_PTX

_BFLOAT16_BIAS = tl.constexpr(127)


def units(bits: int) -> int:
    """Codes in a 16-bit unit; 1 where codes are fetched one by one."""
    return 16 // bits if 16 % bits == 0 else 1


def excess(mode: str, bits: int) -> int:
    """What an affine number is too large by."""
    if mode != "affine":
        return 0
    return 272 if bits == 8 else 1 << bits


def _lanes(low: str, high: str) -> tl.constexpr:
    """PTX: the four nibbles of each unit, or-ed into the mantissa of `low` (nibbles 0 and 2) and of `high` (1 and 3).

    Two units, in one register, become eight numbers in eight instructions.
    """
    shifts = ("shl.b32 t, $4, 3;", "shr.b32 t, $4, 1;", "shr.b32 t, $4, 5;", "shr.b32 t, $4, 9;")
    steps = [
        f"{shift} lop3.b32 ${place}, t, 0x00780078, {(low, high)[place % 2]}, 0xEA;"
        for place, shift in enumerate(shifts)
    ]
    return tl.constexpr("{ .reg .b32 t; " + " ".join(steps) + " }")


def _float_lanes() -> tl.constexpr:
    """PTX: the values of the four E2M1 codes of each unit: sign, exponent and mantissa moved to their places in
    bfloat16, then times 2^126 for the difference of the exponents' biases, which is exact for subnormal codes too.
    -0 is added to the product, because GPUs before Hopper have no instruction without a sum.
    """
    signs = ("shl.b32 s, $4, 12;", "shl.b32 s, $4, 8;", "shl.b32 s, $4, 4;", "mov.b32 s, $4;")
    magnitudes = ("shl.b32 m, $4, 6;", "shl.b32 m, $4, 2;", "shr.b32 m, $4, 2;", "shr.b32 m, $4, 6;")
    join = "and.b32 m, m, 0x01C001C0; lop3.b32 m, s, 0x80008000, m, 0xEA;"
    steps = [
        f"{sign} {magnitude} {join} fma.rn.bf16x2 ${place}, m, f, z;"
        for place, (sign, magnitude) in enumerate(zip(signs, magnitudes, strict=True))
    ]
    constants = "mov.b32 f, 0x7E807E80; mov.b32 z, 0x80008000;"
    return tl.constexpr("{ .reg .b32 s, m, f, z; " + constants + " " + " ".join(steps) + " }")


_NIBBLES = _lanes("0x41804180", "0x41804180")
_LOW_AND_HIGH = _lanes("0x41804180", "0x43804380")
E2M1_NIBBLES = _float_lanes()


@triton.jit
def _asm(q, TEXT: tl.constexpr):
    """Four bfloat16 numbers of each uint16 unit, by PTX that takes two units at a time."""
    return tl.inline_asm_elementwise(
        TEXT,
        "=&r,=&r,=&r,=&r,r",
        [q],
        dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def _from_bits(bits):
    return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def _number(code, MODE: tl.constexpr, BITS: tl.constexpr):
    """The bfloat16 number of codes as integers, in plain operations."""
    if MODE == "affine":
        number = _from_bits((code << (7 - BITS)) | ((_BFLOAT16_BIAS + BITS) << 7))
    elif MODE == "mxfp8":
        number = e4m3(code.to(tl.uint32)).to(tl.bfloat16)
    else:
        number = e2m1(code.to(tl.uint32)).to(tl.bfloat16)
    return number


@triton.jit
def _one(q, i: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr):
    return _number((q >> (i * BITS)) & ((1 << BITS) - 1), MODE, BITS)


@triton.jit
def _two(q, i: tl.constexpr, STEP: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr):
    """Places i and i + STEP, as a new last axis."""
    return tl.join(_one(q, i, MODE, BITS), _one(q, i + STEP, MODE, BITS))


@triton.jit
def _four(q, i: tl.constexpr, STEP: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr):
    return tl.join(_two(q, i, 2 * STEP, MODE, BITS), _two(q, i + STEP, 2 * STEP, MODE, BITS))


@triton.jit
def _eight(q, i: tl.constexpr, STEP: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr):
    return tl.join(_four(q, i, 2 * STEP, MODE, BITS), _four(q, i + STEP, 2 * STEP, MODE, BITS))


@triton.jit
def _sixteen(q, MODE: tl.constexpr, BITS: tl.constexpr):
    return tl.join(_eight(q, 0, 2, MODE, BITS), _eight(q, 1, 2, MODE, BITS))


@triton.jit
def _places(q, MODE: tl.constexpr, BITS: tl.constexpr):
    """Numbers of units [..., U], their places as new axes of two at the end, the first of them counting highest."""
    if BITS == 1:
        numbers = _sixteen(q, MODE, BITS)
    elif BITS == 2:
        numbers = _eight(q, 0, 1, MODE, BITS)
    elif BITS == 8:
        numbers = _two(q, 0, 1, MODE, BITS)
    elif SPEAKS_PTX:
        a, b, c, d = _asm(q, _NIBBLES if MODE == "affine" else E2M1_NIBBLES)
        numbers = tl.join(tl.join(a, c), tl.join(b, d))
    else:
        numbers = _four(q, 0, 1, MODE, BITS)
    return numbers


@triton.jit
def _side_by_side(numbers, A: tl.constexpr, B: tl.constexpr, N: tl.constexpr):
    """Numbers [A, B, U, 2, ...] with places as trailing axes to [A, B, N], a group's columns place by place."""
    if len(numbers.shape) == 4:
        moved = tl.permute(numbers, (0, 1, 3, 2))
    elif len(numbers.shape) == 5:
        moved = tl.permute(numbers, (0, 1, 3, 4, 2))
    elif len(numbers.shape) == 6:
        moved = tl.permute(numbers, (0, 1, 3, 4, 5, 2))
    else:
        moved = tl.permute(numbers, (0, 1, 3, 4, 5, 6, 2))
    return tl.reshape(moved, (A, B, N))


@triton.jit
def numbers_of(q, A: tl.constexpr, B: tl.constexpr, G: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr):
    """The bfloat16 numbers [A, B, G] of uint16 units [A, B, U], each row of them one group."""
    return _side_by_side(_places(q, MODE, BITS), A, B, G)


@triton.jit
def low_and_high(q, A: tl.constexpr, B: tl.constexpr, G: tl.constexpr):
    """The two numbers [A, B, G] of 8-bit affine codes in units [A, B, G / 2]: 16 + low bits, 256 + 16 high bits."""
    if SPEAKS_PTX:
        a, b, c, d = _asm(q, _LOW_AND_HIGH)
    else:
        a = _from_bits(((q & 15) << 3) | 0x4180)
        b = _from_bits((((q >> 4) & 15) << 3) | 0x4380)
        c = _from_bits((((q >> 8) & 15) << 3) | 0x4180)
        d = _from_bits((((q >> 12) & 15) << 3) | 0x4380)
    return _side_by_side(tl.join(a, c), A, B, G), _side_by_side(tl.join(b, d), A, B, G)


@triton.jit
def code_at(octets, place, inside, BITS: tl.constexpr):
    """Codes of 3, 5 or 6 bits at places (of one row) from the row's first byte on: uint16."""
    bit = place * BITS
    shift = (bit & 7).to(tl.uint16)
    first = tl.load(octets + (bit >> 3), mask=inside, other=0).to(tl.uint16)
    straddles = inside & ((bit & 7) > 8 - BITS)
    second = tl.load(octets + (bit >> 3) + 1, mask=straddles, other=0).to(tl.uint16)
    return ((first | (second << 8)) >> shift) & ((1 << BITS) - 1)


@triton.jit
def fetched(octets, place, inside, BITS: tl.constexpr):
    """The affine numbers of codes that straddle units."""
    return _number(code_at(octets, place, inside, BITS), "affine", BITS)


@triton.jit
def scale_of(stored, MODE: tl.constexpr):
    """Stored scales as f32."""
    if MODE == "affine":
        scale = stored.to(tl.float32)
    elif MODE == "nvfp4":
        scale = e4m3(stored.to(tl.uint32))
    else:
        scale = e8m0(stored.to(tl.uint32))
    return scale
