"""The kernel: rows of an expert's matrix, or half as many of two, times the rows of a block."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy

from coterie.backends.cuda.kernels.activation import gated
from coterie.backends.cuda.kernels.columns import arranged, block_at
from coterie.backends.cuda.kernels.hopper.numbers import power
from coterie.backends.cuda.kernels.hopper.outputs import factor_bits_of
from coterie.backends.cuda.kernels.single.rows import slots_in
from coterie.backends.cuda.kernels.stream.layouts import copied
from coterie.backends.cuda.kernels.stream.steps import fetch_activations, fetch_weights, rings, run_steps, steps_of
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@gluon.jit
def _row_places(base, up_base, width: gl.constexpr, M: gl.constexpr, GATED: gl.constexpr, LAYOUT: gl.constexpr):
    """Where M rows of `width` elements begin; GATED: 8 rows of each in turns."""
    m = gl.arange(0, M, layout=LAYOUT)
    if GATED:
        at = gl.where(m % 16 < 8, base, up_base) + (m // 16 * 8 + m % 8).to(gl.int64) * width
    else:
        at = base + m.to(gl.int64) * width
    return at


@gluon.jit
def _word_places(
    base, up_base, STEPS: gl.constexpr, WORDS: gl.constexpr, M: gl.constexpr, GATED: gl.constexpr, LAYOUT: gl.constexpr
):
    """Where the first step's words of M rows stand in [rows / 8, STEPS, 8, WORDS]; GATED as above."""
    m = gl.arange(0, M, layout=gl.SliceLayout(1, LAYOUT))
    eight: gl.constexpr = STEPS * 8 * WORDS
    if GATED:
        start = gl.where(m % 16 < 8, base, up_base) + (m // 16 * eight + m % 8 * WORDS)
    else:
        start = base + (m // 8 * eight + m % 8 * WORDS)
    return start[:, None] + gl.arange(0, WORDS, layout=gl.SliceLayout(0, LAYOUT))[None, :]


@gluon.jit
def stream_rows_kernel(
    x, x_sizes, codes, words, units, up_codes, up_words, up_units, bias, up_bias, largest, up_largest,
    order, blocks, out, out_sizes, n_experts, n_slots, n_rows, n_stored, up_row, first_block,
    K: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    WEIGHED: gl.constexpr, OUT_G: gl.constexpr, OUT_C: gl.constexpr, OUT_LIFTED: gl.constexpr,
    GATED: gl.constexpr, ACTIVATION: gl.constexpr, HAS_BIAS: gl.constexpr, TOP_K: gl.constexpr, SLOTS: gl.constexpr,
    AHEAD: gl.constexpr, M: gl.constexpr, N: gl.constexpr, GROUPS: gl.constexpr, WORDS: gl.constexpr,
    STAGES: gl.constexpr, WARPS: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """M rows of a matrix, of gate and up half of them each, times a block's rows, at most N; n_rows is a multiple of M.

    x float16 [n, K] in the order of codes of `Arrangement.of_stream`, x_sizes f32 [n, 2], and largest f32 [E], as
    `kernels.halves` makes them; words and units as `words_kernel` does, WORDS of a row for a step of GROUPS groups.
    WEIGHED: affine codes become weights before they are multiplied. For GATED out is float16 in the order (OUT_G,
    OUT_C, OUT_LIFTED) and has its own out_sizes. The other arguments are those of `few_rows_kernel`. AHEAD: what
    experts the blocks have is known before the kernel before this one ends.
    """
    HEIGHT: gl.constexpr = M // 2 if GATED else M
    STEPS: gl.constexpr = steps_of(K // G, GROUPS)
    WIDTH: gl.constexpr = GROUPS * G // C
    CL: gl.constexpr = copied(WIDTH, 8, WARPS)
    XL: gl.constexpr = copied(GROUPS * G, 8, WARPS)
    first_row = gl.program_id(0) * HEIGHT
    if not AHEAD:
        wait_for_previous(EARLY)
        let_next_begin(EARLY)
    expert, first_place, end = block_at(blocks, first_block + gl.program_id(1), n_experts, n_slots, N, SLOTS)
    if expert < 0:
        if AHEAD:
            wait_for_previous(EARLY)
            let_next_begin(EARLY)
        return
    at = expert * n_stored + first_row
    up = at + up_row
    W: gl.constexpr = K // C
    code_at = _row_places(codes + at * W, up_codes + up * W, W, M, GATED, gl.SliceLayout(1, CL))
    code_at = gl.multiple_of(code_at, 8)[:, None] + gl.arange(0, WIDTH, layout=gl.SliceLayout(0, CL))[None, :]
    PER_ROW: gl.constexpr = STEPS * WORDS
    word_at = _word_places(
        words + at * PER_ROW, up_words + up * PER_ROW, STEPS, WORDS, M, GATED, copied(WORDS, WORDS, WARPS)
    )
    rooms = rings(x, codes, STAGES, M, N, G, C, GROUPS, WORDS)
    for step in gl.static_range(min(STAGES - 1, STEPS)):
        fetch_weights(rooms, code_at, word_at, step, step, K, C, WARPS)
    slots, live = slots_in(order, first_place, end, N, N, SLOTS, gl.SliceLayout(1, XL))
    x_at = (x + (slots // TOP_K).to(gl.int64) * K)[:, None]
    x_at = x_at + gl.arange(0, GROUPS * G, layout=gl.SliceLayout(0, XL))[None, :]
    if AHEAD:
        wait_for_previous(EARLY)
        let_next_begin(EARLY)
    for step in gl.static_range(STAGES - 1):
        if step < STEPS:
            fetch_activations(rooms, x_at, live, step, step, K, WARPS)
        async_copy.commit_group()
    sums = run_steps(rooms, code_at, word_at, x_at, live, K, MODE, BITS, G, C, WEIGHED, WARPS)
    first, up_first = expert * n_stored, expert * n_stored + up_row
    _finish(
        sums, x_sizes, (units + first, bias + first, largest + expert),
        (up_units + up_first, up_bias + up_first, up_largest + expert), order, out, out_sizes,
        first_place, end, first_row, n_rows,
        OUT_G, OUT_C, OUT_LIFTED, GATED, ACTIVATION, HAS_BIAS, TOP_K, SLOTS,
    )  # fmt: skip


@gluon.jit
def _in_units(values, row_units, units, bias, HAS_BIAS: gl.constexpr):
    """Products [rows, N] in units of rows and of columns, plus the rows' biases."""
    values *= gl.load(row_units)[:, None] * units[None, :]
    if HAS_BIAS:
        values += gl.load(bias).to(gl.float32)[:, None]
    return values


@gluon.jit
def _finish(
    sums, x_sizes, gate, up, order, out, out_sizes, first_place, end, first_row, n_rows,
    OUT_G: gl.constexpr, OUT_C: gl.constexpr, OUT_LIFTED: gl.constexpr, GATED: gl.constexpr,
    ACTIVATION: gl.constexpr, HAS_BIAS: gl.constexpr, TOP_K: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """Store what the products of a block make: hidden values for the next product, or outputs."""
    M: gl.constexpr = sums.shape[0]
    N: gl.constexpr = sums.shape[1]
    result, other = sums, sums
    if GATED:
        pairs = gl.permute(gl.reshape(sums, (M // 16, 2, 8, N)), (0, 2, 3, 1))
        result, other = gl.split(gl.reshape(pairs, (M // 2, N, 2)))
    L: gl.constexpr = result.type.layout
    own, there = slots_in(order, first_place, end, N, N, SLOTS, gl.SliceLayout(0, L))
    row = first_row + gl.arange(0, M // 2 if GATED else M, layout=gl.SliceLayout(1, L))
    start = out + (own.to(gl.int64) * n_rows)[None, :]
    size_at = x_sizes + (own // TOP_K) * 2
    unit = gl.load(size_at)
    result = _in_units(result, gate[0] + row, unit, gate[1] + row, HAS_BIAS)
    if GATED:
        other = _in_units(other, up[0] + row, unit, up[1] + row, HAS_BIAS)
        factor = factor_bits_of(gl.load(size_at + 1), gl.load(gate[2]), gl.load(up[2]), ACTIVATION)
        gl.store(out_sizes + own * 2, power(254 - factor), mask=there & (gl.program_id(0) == 0))
        hidden = gated(result, other, ACTIVATION) * power(factor)[None, :]
        if OUT_LIFTED:
            hidden *= gl.where(row % OUT_C % 2 == 1, 0.0625, 1.0)[:, None]
        gl.store(start + arranged(row, OUT_G, OUT_C)[:, None], hidden.to(gl.float16), mask=there[None, :])
    else:
        gl.store(start + row[:, None], result.to(out.dtype.element_ty), mask=there[None, :])
