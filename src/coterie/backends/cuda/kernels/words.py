"""The constants of groups side by side as the kernels of `stream` fetch them: those of eight rows, step by step."""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import let_next_begin, wait_for_previous

_ROWS = tl.constexpr(64)
"""Rows that a program has."""

_GROUPS = tl.constexpr(64)
_STEPS = tl.constexpr(16)
"""Groups of them, and steps, that it looks at together."""


@triton.constexpr_function
def first_exponent(mode, bits):
    """The exponent, as float32 stores it, of what rows are multiplied by if their largest weight, or scale of E2M1
    codes, has the stored exponent 0.

    Weights stay below 2^-7, of bytes below 2^-3, so that scales * 2^24, at most 2 / 15 or 2 / 255 of that, stay below
    2^15; E2M1 scales below 2.
    """
    if mode != "affine":
        return 254
    return 250 if bits == 8 else 246


@triton.jit
def _half_bits(values):
    """Numbers rounded to float16, their bits in words."""
    return values.to(tl.float16).to(tl.uint16, bitcast=True).to(tl.uint32)


@triton.jit
def _largest(scales, biases, start, real, NG: tl.constexpr, BITS: tl.constexpr):
    """The largest magnitude of a weight, f32 [_ROWS], in rows of NG groups that begin at start, if they are `real`."""
    largest = tl.zeros((_ROWS,), tl.float32)
    for first in tl.range(0, NG, _GROUPS):
        group = first + tl.arange(0, _GROUPS)
        place, there = start[:, None] + group[None, :], real[:, None] & (group < NG)[None, :]
        scale = tl.load(scales + place, mask=there, other=0.0).to(tl.float32)
        bias = tl.load(biases + place, mask=there, other=0.0).to(tl.float32)
        size = tl.maximum(tl.abs(bias), tl.abs(((1 << BITS) - 1) * scale + bias))
        largest = tl.maximum(largest, tl.max(size, 1))
    return largest


@triton.jit
def words_kernel(
    scales, biases, words, units, n_rows,
    NG: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, STEPS: tl.constexpr, WORDS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """words uint32 [n_rows / 8, STEPS, 8, WORDS] of scales and biases [n_rows, NG]: a word is a group's scale times
    2^24 below its bias, as float16 numbers of a row that was multiplied by a power of two, or four groups' scales in
    bytes. What is behind a row's last group is 0. units f32 [n_rows]: what a 1 of a row's products stands for.
    """
    row = tl.program_id(0).to(tl.int64) * _ROWS + tl.arange(0, _ROWS)
    real = row < n_rows
    start = row * NG
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    factor = tl.full((_ROWS,), 1.0, tl.float32)
    unit = tl.full((_ROWS,), 16384.0, tl.float32)  # of E2M1 codes, as the kernels make numbers of them
    if MODE == "affine":
        exponent = _largest(scales, biases, start, real, NG, BITS).to(tl.int32, bitcast=True) >> 23
        stored = tl.minimum(tl.maximum(first_exponent(MODE, BITS) - exponent, 1), 229)
        factor = (stored << 23).to(tl.float32, bitcast=True)
        unit = ((254 - stored) << 23).to(tl.float32, bitcast=True)
    tl.store(units + row, unit, mask=real)
    target = (row // 8 * (STEPS * 8) + row % 8)[None, :, None]
    index = tl.arange(0, WORDS)[None, None, :]
    for first in tl.range(0, STEPS, _STEPS):
        step = (first + tl.arange(0, _STEPS))[:, None, None]
        at, there = step * WORDS + index, real[None, :, None] & (step < STEPS)
        if MODE == "affine":
            place, inside = start[None, :, None] + at, there & (at < NG)
            scale = tl.load(scales + place, mask=inside, other=0.0).to(tl.float32)
            bias = tl.load(biases + place, mask=inside, other=0.0).to(tl.float32)
            by = factor[None, :, None]
            word = _half_bits(scale * (by * 16777216.0)) | (_half_bits(bias * by) << 16)
        else:
            word = tl.zeros((_STEPS, _ROWS, WORDS), tl.uint32)
            for byte in tl.static_range(4):
                group = at * 4 + byte
                stored_scale = tl.load(scales + start[None, :, None] + group, mask=there & (group < NG), other=0)
                word |= stored_scale.to(tl.uint32) << (8 * byte)
        tl.store(words + (target + step * 8) * WORDS + index, word, mask=there)
