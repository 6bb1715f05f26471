"""What scales and biases of a tile's rows become before its products: constants in float16, in shared memory."""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from coterie.backends.cuda.kernels.codes import scale_of
from coterie.backends.cuda.kernels.hopper.layouts import ROWS, scales_read
from coterie.backends.cuda.kernels.hopper.numbers import factor_bits, power, row_exponents, words_of


@triton.constexpr_function
def groups_in_turn(n_groups, mode, bits):
    """Groups whose constants are in shared memory at a time: 32 KiB of them, 16 where codes are bytes."""
    most = 128 if mode != "affine" else 32 if bits == 8 else 64
    groups = 16
    while groups < min(most, n_groups):
        groups *= 2
    return groups


@triton.constexpr_function
def turns_of(n_groups, mode, bits):
    """Times that the constants in shared memory are others."""
    return -(-n_groups // groups_in_turn(n_groups, mode, bits))


@gluon.jit
def read_constants(scale_at, bias_at, turn, N_GROUPS: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr):
    """Scales and biases f32 [ROWS, groups] of a turn, of rows that begin at scale_at, bias_at [ROWS]; those without
    biases get scales twice.
    """
    NG: gl.constexpr = groups_in_turn(N_GROUPS, MODE, BITS)
    group = turn * NG + gl.arange(0, NG, layout=gl.SliceLayout(0, scales_read()))
    inside = (group < N_GROUPS)[None, :]
    scale = scale_of(gl.load(scale_at[:, None] + group[None, :], mask=inside, other=0), MODE)
    bias = scale
    if MODE == "affine":
        bias = gl.load(bias_at[:, None] + group[None, :], mask=inside, other=0.0).to(gl.float32)
    return scale, bias


@gluon.jit
def keep_constants(scale, bias, scale_at, bias_at, N_GROUPS: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr):
    """(room for a turn's constants, with the first turn's in it; what rows are multiplied by f32 [ROWS]; by what, as a
    stored exponent, their outputs are to be multiplied, in shared memory). scale and bias are the last turn's.
    """
    TURNS: gl.constexpr = turns_of(N_GROUPS, MODE, BITS)
    exponent = row_exponents(scale, bias, MODE, BITS)
    for turn in gl.static_range(TURNS - 1):
        scale, bias = read_constants(scale_at, bias_at, turn, N_GROUPS, MODE, BITS)
        exponent = gl.maximum(exponent, row_exponents(scale, bias, MODE, BITS))
    if TURNS > 1:
        scale, bias = read_constants(scale_at, bias_at, 0, N_GROUPS, MODE, BITS)
    bits = factor_bits(exponent, MODE, BITS)
    factor = power(bits)
    words = words_of(scale, bias, factor, MODE)
    NG: gl.constexpr = groups_in_turn(N_GROUPS, MODE, BITS)
    room = gl.allocate_shared_memory(words.dtype, [NG, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    room.permute((1, 0)).store(words)
    divisors = gl.allocate_shared_memory(gl.uint8, [ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    divisors.store((254 - bits).to(gl.uint8))
    return room, factor, divisors
