"""The kernel: 128 rows of an expert's matrices, or 64 of two, times the rows of a block."""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy

from coterie.backends.cuda.kernels.codes import scale_of
from coterie.backends.cuda.kernels.columns import block_at
from coterie.backends.cuda.kernels.hopper.layouts import COLUMNS, ROWS, as_vectors, copied, left, product, scales_read
from coterie.backends.cuda.kernels.hopper.numbers import factor_bits, power, row_exponents, words_of
from coterie.backends.cuda.kernels.hopper.outputs import finish, keep_tokens, slots_at
from coterie.backends.cuda.kernels.hopper.steps import barrier, fetch, groups_in_turn, rings, run_steps, stages_for


@triton.constexpr_function
def _turns(n_groups, in_turn):
    return -(-n_groups // in_turn)


@gluon.jit
def rows_at(
    first, n_rows, base, up_base, width: gl.constexpr, GATED: gl.constexpr, OUT_G: gl.constexpr, OUT_C: gl.constexpr,
    LAYOUT: gl.constexpr,
):  # fmt: skip
    """Where a program's ROWS rows begin, rows of `width` elements; what is behind the last row repeats it.

    Gate and up take turns of 8 rows, in the order in which hidden values are stored: that of the codes that they meet.
    """
    m = gl.arange(0, ROWS, layout=LAYOUT)
    if GATED:
        place = gl.minimum(first + m // 16 * 8 + m % 8, n_rows - 1)
        U: gl.constexpr = OUT_G // OUT_C
        row = place // OUT_G * OUT_G + place % U * OUT_C + place % OUT_G // U
        at = gl.where(m % 16 < 8, base + row * width, up_base + row * width)
    else:
        at = base + gl.minimum(first + m, n_rows - 1) * width
    return at


@gluon.jit
def _constants(
    scale_at, bias_at, first, MODE: gl.constexpr, N_GROUPS: gl.constexpr, NG: gl.constexpr,
):  # fmt: skip
    """Scales and biases f32 [ROWS, NG] of groups from `first` on; those without biases get scales twice."""
    group = first + gl.arange(0, NG, layout=gl.SliceLayout(0, scales_read()))
    inside = (group < N_GROUPS)[None, :]
    stored = gl.load(scale_at[:, None] + group[None, :], mask=inside, other=0)
    scale = scale_of(stored, MODE)
    bias = scale
    if MODE == "affine":
        bias = gl.load(bias_at[:, None] + group[None, :], mask=inside, other=0.0).to(gl.float32)
    return scale, bias


@gluon.jit
def half_rows_kernel(
    x, x_sizes, codes, scales, biases, up_codes, up_scales, up_biases, bias, up_bias, largest, up_largest,
    order, offsets, blocks, out, out_sizes,
    n_experts, top_k, n_slots, n_rows, n_stored, up_row, first_block,
    K: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    OUT_G: gl.constexpr, OUT_C: gl.constexpr, GATED: gl.constexpr, ACTIVATION: gl.constexpr, HAS_BIAS: gl.constexpr,
    MOST: gl.constexpr, LEAST: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """A block has up to MOST rows; the product is as wide as those that it has need, but at least LEAST: 16, 32, 64 or
    128.

    x float16 [n, K] in the order of codes, x_sizes f32 [n, 2] and largest f32 [E] as `kernels.halves` makes them. For
    GATED out is float16 and has its own out_sizes; the other arguments are those of `few_rows_kernel`.
    """
    expert, first_place = block_at(blocks, first_block + gl.program_id(1), n_experts, MOST, SLOTS)
    if expert < 0:
        return
    end = n_slots
    if SLOTS == "sorted":
        end = gl.load(offsets + expert + 1)
    elif SLOTS == "direct":
        end = first_place + 1
    n_own = end - first_place
    stored = expert * n_stored
    W: gl.constexpr = K // C
    NG: gl.constexpr = K // G
    codes, up_codes = codes + stored * W, up_codes + (stored + up_row) * W
    scales, up_scales = scales + stored * NG, up_scales + (stored + up_row) * NG
    biases, up_biases = biases + stored * NG, up_biases + (stored + up_row) * NG
    bias, up_bias = bias + stored, up_bias + stored + up_row
    largest, up_largest = largest + expert, up_largest + expert
    _as_wide_as_needed(
        n_own, x, x_sizes, codes, scales, biases, up_codes, up_scales, up_biases, bias, up_bias, largest, up_largest,
        order, first_place, end, out, out_sizes, top_k, n_slots, n_rows,
        K, MODE, BITS, G, C, OUT_G, OUT_C, GATED, ACTIVATION, HAS_BIAS, MOST, LEAST, SLOTS,
    )  # fmt: skip


@gluon.jit
def _as_wide_as_needed(
    n_own, x, x_sizes, codes, scales, biases, up_codes, up_scales, up_biases, bias, up_bias, largest, up_largest,
    order, first_place, end, out, out_sizes, top_k, n_slots, n_rows,
    K: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    OUT_G: gl.constexpr, OUT_C: gl.constexpr, GATED: gl.constexpr, ACTIVATION: gl.constexpr, HAS_BIAS: gl.constexpr,
    TOKENS: gl.constexpr, LEAST: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """The narrowest product that has n_own rows, TOKENS at most."""
    if TOKENS == LEAST or n_own > TOKENS // 2:
        _tile(
            x, x_sizes, codes, scales, biases, up_codes, up_scales, up_biases, bias, up_bias, largest, up_largest,
            order, first_place, end, out, out_sizes, top_k, n_slots, n_rows,
            K, MODE, BITS, G, C, OUT_G, OUT_C, GATED, ACTIVATION, HAS_BIAS, TOKENS, SLOTS,
        )  # fmt: skip
    else:
        _as_wide_as_needed(
            n_own, x, x_sizes, codes, scales, biases, up_codes, up_scales, up_biases, bias, up_bias, largest,
            up_largest, order, first_place, end, out, out_sizes, top_k, n_slots, n_rows,
            K, MODE, BITS, G, C, OUT_G, OUT_C, GATED, ACTIVATION, HAS_BIAS, TOKENS // 2, LEAST, SLOTS,
        )  # fmt: skip


@gluon.jit
def _tile(
    x, x_sizes, codes, scales, biases, up_codes, up_scales, up_biases, bias, up_bias, largest, up_largest,
    order, first_place, end, out, out_sizes, top_k, n_slots, n_rows,
    K: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    OUT_G: gl.constexpr, OUT_C: gl.constexpr, GATED: gl.constexpr, ACTIVATION: gl.constexpr, HAS_BIAS: gl.constexpr,
    TOKENS: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """`half_rows_kernel` for a block of up to TOKENS rows of one expert."""
    N_GROUPS: gl.constexpr = K // G
    NG: gl.constexpr = groups_in_turn(N_GROUPS, MODE, BITS)
    TURNS: gl.constexpr = _turns(N_GROUPS, NG)
    STAGES: gl.constexpr = stages_for(TOKENS, BITS, TURNS)
    STEPS: gl.constexpr = K // COLUMNS
    TURN_STEPS: gl.constexpr = NG * G // COLUMNS
    UNITS: gl.constexpr = COLUMNS // C
    MMA: gl.constexpr = product(TOKENS)
    first_row = gl.program_id(0) * (ROWS // 2 if GATED else ROWS)
    CL: gl.constexpr = copied(UNITS)
    w_at = rows_at(first_row, n_rows, codes, up_codes, K // C, GATED, OUT_G, OUT_C, gl.SliceLayout(1, CL))
    w_at = gl.multiple_of(w_at, 16)[:, None] + gl.arange(0, UNITS, layout=gl.SliceLayout(0, CL))[None, :]
    XL: gl.constexpr = copied(COLUMNS)
    slots, place = slots_at(order, first_place, n_slots, TOKENS, SLOTS, gl.SliceLayout(1, XL))
    own = (place < end)[:, None]
    scale_at = rows_at(
        first_row, n_rows, scales, up_scales, N_GROUPS, GATED, OUT_G, OUT_C, gl.SliceLayout(1, scales_read())
    )
    bias_at = rows_at(
        first_row, n_rows, biases, up_biases, N_GROUPS, GATED, OUT_G, OUT_C, gl.SliceLayout(1, scales_read())
    )
    scale, added = _constants(scale_at, bias_at, (TURNS - 1) * NG, MODE, N_GROUPS, NG)
    activations, units = rings(TOKENS, UNITS, STAGES)
    x_at = (x + (slots // top_k).to(gl.int64) * K)[:, None]
    x_at = x_at + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, XL))[None, :]
    for early in gl.static_range(STAGES - 2):
        if early < STEPS:
            fetch(activations, units, x_at, w_at, own, early, early)
        async_copy.commit_group()
    tokens = keep_tokens(
        order, first_place, n_slots, x_sizes, top_k, largest, up_largest, out_sizes, end,
        TOKENS, GATED, ACTIVATION, SLOTS,
    )  # fmt: skip
    exponent = row_exponents(scale, added, MODE, BITS)
    for turn in gl.static_range(TURNS - 1):
        scale, added = _constants(scale_at, bias_at, turn * NG, MODE, N_GROUPS, NG)
        exponent = gl.maximum(exponent, row_exponents(scale, added, MODE, BITS))
    bits = factor_bits(exponent, MODE, BITS)
    factor = power(bits)
    if TURNS > 1:
        scale, added = _constants(scale_at, bias_at, 0, MODE, N_GROUPS, NG)
    first_words = words_of(scale, added, factor, MODE)
    kept = gl.allocate_shared_memory(first_words.dtype, [NG, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    kept.permute((1, 0)).store(first_words)
    words = as_vectors(kept)
    divisors = gl.allocate_shared_memory(gl.uint8, [ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    divisors.store((254 - bits).to(gl.uint8))
    acc = gl.zeros([ROWS, TOKENS], gl.float32, MMA)
    before = gl.zeros([ROWS, COLUMNS], gl.float16, left(TOKENS))
    for turn in range(TURNS - 1):
        acc, before = run_steps(
            acc, before, activations, units, x_at, w_at, own, words, turn * TURN_STEPS, STEPS - 1, TURN_STEPS, False,
            STAGES, MODE, BITS, G,
        )  # fmt: skip
        scale, added = _constants(scale_at, bias_at, (turn + 1) * NG, MODE, N_GROUPS, NG)
        more = words_of(scale, added, factor, MODE)
        barrier()
        kept.permute((1, 0)).store(more)
    acc, before = run_steps(
        acc, before, activations, units, x_at, w_at, own, words, (TURNS - 1) * TURN_STEPS, STEPS - 1,
        STEPS - (TURNS - 1) * TURN_STEPS, True, STAGES, MODE, BITS, G,
    )  # fmt: skip
    async_copy.wait_group(0)
    acc = acc * power(divisors.load(gl.SliceLayout(1, MMA)))[:, None]
    if HAS_BIAS:
        at = rows_at(first_row, n_rows, bias, up_bias, 1, GATED, OUT_G, OUT_C, gl.SliceLayout(1, MMA))
        row_bias = gl.load(at).to(gl.float32)
    else:
        row_bias = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, MMA))
    finish(acc, row_bias, tokens, out, first_row, first_place, end, n_rows, 0, GATED, ACTIVATION)
