"""The kernel: 128 rows of an expert's matrices, or 64 of two, times the rows of a block."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy

from coterie.backends.cuda.kernels.columns import block_at
from coterie.backends.cuda.kernels.hopper.constants import keep_constants, read_constants, turns_of
from coterie.backends.cuda.kernels.hopper.layouts import COLUMNS, ROWS, copied, product, scales_read
from coterie.backends.cuda.kernels.hopper.numbers import power
from coterie.backends.cuda.kernels.hopper.outputs import finish, keep_tokens, slots_at
from coterie.backends.cuda.kernels.hopper.steps import (
    fetch_activations,
    fetch_units,
    rings,
    run_codes,
    run_plain,
    stages_for,
)
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


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
def half_rows_kernel(
    x, x_sizes, codes, scales, biases, up_codes, up_scales, up_biases, bias, up_bias, largest, up_largest,
    order, blocks, out, out_sizes,
    n_experts, top_k, n_slots, n_rows, n_stored, up_row, first_block,
    K: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    OUT_G: gl.constexpr, OUT_C: gl.constexpr, GATED: gl.constexpr, ACTIVATION: gl.constexpr, HAS_BIAS: gl.constexpr,
    MOST: gl.constexpr, LEAST: gl.constexpr, SLOTS: gl.constexpr, KNOWN: gl.constexpr, PIECES: gl.constexpr,
    EARLY: gl.constexpr,
):  # fmt: skip
    """A block has up to MOST rows; the product is as wide as those that it has need, but at least LEAST: 16, 32, 64 or
    128.

    x float16 [n, K] in the order of codes, x_sizes f32 [n, 2] and largest f32 [E] as `kernels.halves` makes them. For
    GATED out is float16 and has its own out_sizes. For plain weights x and hidden values are bfloat16, and there are
    neither sizes nor largest ones. The other arguments are those of `few_rows_kernel`, but K columns are one of PIECES
    of a row; where there are several, out has the sums of each, [PIECES, n_slots, n_rows]. KNOWN: the slots do not come
    from the kernel before this, so weights are fetched before that one ends.
    """
    if not KNOWN:
        wait_for_previous(EARLY)
        let_next_begin(EARLY)
    expert, first_place, end = block_at(blocks, first_block + gl.program_id(1), n_experts, n_slots, MOST, SLOTS)
    if expert < 0:
        if KNOWN:
            wait_for_previous(EARLY)
        return
    ROW: gl.constexpr = K * PIECES
    W: gl.constexpr = ROW // C
    NG: gl.constexpr = ROW // G
    at = expert * n_stored
    up = at + up_row
    if PIECES > 1:
        piece = gl.program_id(2)
        x += piece * K
        out += piece.to(gl.int64) * n_slots * n_rows
        codes, scales, biases = codes + piece * (K // C), scales + piece * (K // G), biases + piece * (K // G)
    gate_of = (codes + at * W, scales + at * NG, biases + at * NG, bias + at, largest + expert)
    up_of = (up_codes + up * W, up_scales + up * NG, up_biases + up * NG, up_bias + up, up_largest + expert)
    as_wide_as_needed(
        x, x_sizes, gate_of, up_of, gl.program_id(0), order, first_place, end, out, out_sizes, top_k, n_rows,
        K, ROW, MODE, BITS, G, C, OUT_G, OUT_C, GATED, ACTIVATION, HAS_BIAS, MOST, LEAST, SLOTS, KNOWN and EARLY,
    )  # fmt: skip


@gluon.jit
def as_wide_as_needed(
    x, x_sizes, gate, up, tile_index, order, first_place, end, out, out_sizes, top_k, n_rows,
    K: gl.constexpr, ROW: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    OUT_G: gl.constexpr, OUT_C: gl.constexpr, GATED: gl.constexpr, ACTIVATION: gl.constexpr, HAS_BIAS: gl.constexpr,
    TOKENS: gl.constexpr, LEAST: gl.constexpr, SLOTS: gl.constexpr, WAITS: gl.constexpr,
):  # fmt: skip
    """The narrowest product that has a block's rows, TOKENS at most, over K columns of rows of ROW; of gate and up:
    codes, scales, biases, bias, largest. WAITS: activations come from the kernel before this, which nobody has waited
    for yet.
    """
    if TOKENS == LEAST or end - first_place > TOKENS // 2:
        _tile(
            x, x_sizes, gate, up, tile_index, order, first_place, end, out, out_sizes, top_k, n_rows,
            K, ROW, MODE, BITS, G, C, OUT_G, OUT_C, GATED, ACTIVATION, HAS_BIAS, TOKENS, SLOTS, WAITS,
        )  # fmt: skip
    else:
        as_wide_as_needed(
            x, x_sizes, gate, up, tile_index, order, first_place, end, out, out_sizes, top_k, n_rows,
            K, ROW, MODE, BITS, G, C, OUT_G, OUT_C, GATED, ACTIVATION, HAS_BIAS, TOKENS // 2, LEAST, SLOTS, WAITS,
        )  # fmt: skip


@gluon.jit
def _tile(
    x, x_sizes, gate, up, tile_index, order, first_place, end, out, out_sizes, top_k, n_rows,
    K: gl.constexpr, ROW: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    OUT_G: gl.constexpr, OUT_C: gl.constexpr, GATED: gl.constexpr, ACTIVATION: gl.constexpr, HAS_BIAS: gl.constexpr,
    TOKENS: gl.constexpr, SLOTS: gl.constexpr, WAITS: gl.constexpr,
):  # fmt: skip
    """`as_wide_as_needed` for a block of up to TOKENS rows."""
    codes, scales, biases, bias, largest = gate
    up_codes, up_scales, up_biases, up_bias, up_largest = up
    N_GROUPS: gl.constexpr = K // G
    UNITS: gl.constexpr = COLUMNS // C
    STAGES: gl.constexpr = stages_for(TOKENS, MODE, BITS, turns_of(N_GROUPS, MODE, BITS))
    CL: gl.constexpr = copied(UNITS)
    XL: gl.constexpr = copied(COLUMNS)
    first_row = tile_index * (ROWS // 2 if GATED else ROWS)
    w_at = rows_at(first_row, n_rows, codes, up_codes, ROW // C, GATED, OUT_G, OUT_C, gl.SliceLayout(1, CL))
    w_at = gl.multiple_of(w_at, 16)[:, None] + gl.arange(0, UNITS, layout=gl.SliceLayout(0, CL))[None, :]
    if MODE != "plain":
        SL: gl.constexpr = gl.SliceLayout(1, scales_read())
        scale_at = rows_at(first_row, n_rows, scales, up_scales, ROW // G, GATED, OUT_G, OUT_C, SL)
        bias_at = rows_at(first_row, n_rows, biases, up_biases, ROW // G, GATED, OUT_G, OUT_C, SL)
        scale, added = read_constants(scale_at, bias_at, turns_of(N_GROUPS, MODE, BITS) - 1, N_GROUPS, MODE, BITS)
    tiles = rings(x.dtype.element_ty, codes.dtype.element_ty, TOKENS, UNITS, STAGES)
    slots, place = slots_at(order, first_place, end, TOKENS, SLOTS, gl.SliceLayout(1, XL))
    # Units first, all of them: for activations the slots have to be there, and perhaps the kernel before has to end.
    for early in gl.static_range(STAGES - 2):
        if early < K // COLUMNS:
            fetch_units(tiles, w_at, early, early)
    wait_for_previous(WAITS)
    let_next_begin(WAITS)
    x_at = (x + (slots // top_k).to(gl.int64) * ROW)[:, None]
    x_at = x_at + gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, XL))[None, :]
    own = (place < end)[:, None]
    for early in gl.static_range(STAGES - 2):
        if early < K // COLUMNS:
            fetch_activations(tiles, x_at, own, early, early)
        async_copy.commit_group()
    places = (x_at, w_at, own)
    tokens = keep_tokens(
        order, first_place, end, x_sizes, top_k, largest, up_largest, out_sizes,
        TOKENS, MODE == "plain", GATED, ACTIVATION, SLOTS,
    )  # fmt: skip
    if MODE == "plain":
        acc = run_plain(tiles, places, TOKENS, K // COLUMNS, STAGES)
    else:
        constants = keep_constants(scale, added, scale_at, bias_at, N_GROUPS, MODE, BITS)
        acc = run_codes(tiles, places, constants, scale_at, bias_at, TOKENS, K, STAGES, MODE, BITS, G)
        acc = acc * power(constants[2].load(gl.SliceLayout(1, product(TOKENS))))[:, None]
    row_bias = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, product(TOKENS)))
    if HAS_BIAS:
        RL: gl.constexpr = gl.SliceLayout(1, product(TOKENS))
        row_bias = gl.load(rows_at(first_row, n_rows, bias, up_bias, 1, GATED, OUT_G, OUT_C, RL)).to(gl.float32)
    finish(acc, row_bias, tokens, out, first_row, first_place, end, n_rows, 0, MODE == "plain", GATED, ACTIVATION)
