"""The rows of a block, up to eight or a few times as many, times the matrices of their expert."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from coterie.backends.cuda.kernels.activation import gated
from coterie.backends.cuda.kernels.columns import arranged, block_at
from coterie.backends.cuda.kernels.single.layouts import COLUMNS, ROWS, columns_of, results
from coterie.backends.cuda.kernels.single.products import add_up, fetch_row, multiply_rows, share
from coterie.backends.cuda.kernels.single.weights import fetch_rows, keep_rows
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@gluon.jit
def slots_in(order, first, end, COUNT: gl.constexpr, R: gl.constexpr, SLOTS: gl.constexpr, LAYOUT: gl.constexpr):
    """(slots int32 [COUNT], which of them the block has): R of them, again and again; others repeat one that it has."""
    place = first + gl.arange(0, COUNT, layout=LAYOUT) % R
    slots = gl.minimum(place, end - 1)
    if SLOTS == "sorted":
        slots = gl.load(order + slots)
    return slots, place < end


@gluon.jit
def _finish(
    sums, bias, up_bias, order, out, first_place, end, first_row, n_slots, n_rows, piece,
    OUT_G: gl.constexpr, OUT_C: gl.constexpr, GATED: gl.constexpr, ACTIVATION: gl.constexpr, HAS_BIAS: gl.constexpr,
    SLOTS: gl.constexpr, PARTS: gl.constexpr, OUT_PARTS: gl.constexpr, BLOCK: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Store what the sums of a block of columns make."""
    R: gl.constexpr = COLUMNS // PARTS
    N: gl.constexpr = (ROWS // 2 if GATED else ROWS) * len(sums[0])
    L: gl.constexpr = results(PARTS, len(sums) * WARPS, WARPS)
    own, there = slots_in(order, first_place + BLOCK * R, end, R, R, SLOTS, gl.SliceLayout(0, L))
    row = first_row + gl.arange(0, N, layout=gl.SliceLayout(1, L))
    inside = row < n_rows
    mask = inside[:, None] & there[None, :]
    start = out + ((own + piece.to(gl.int64) * n_slots) * n_rows)[None, :]
    room = share(sums, BLOCK, GATED, PARTS, WARPS)
    result = add_up(room, 0, N, PARTS, WARPS)
    if HAS_BIAS:
        result += gl.load(bias + row, mask=inside & (piece == 0), other=0.0)[:, None]
    if GATED:
        up = add_up(room, N, N, PARTS, WARPS)
        if HAS_BIAS:
            up += gl.load(up_bias + row, mask=inside, other=0.0)[:, None]
        rest = gated(result, up, ACTIVATION)
        target = start + arranged(row, OUT_G, OUT_C)[:, None]
        slot_stride = gl.to_tensor(n_slots).to(gl.int64) * n_rows
        for part in gl.static_range(OUT_PARTS):
            number = rest.to(gl.bfloat16)
            gl.store(target + part * slot_stride, number, mask=mask)
            rest -= number.to(gl.float32)
    else:
        gl.store(start + row[:, None], result.to(out.dtype.element_ty), mask=mask)


@gluon.jit
def single_rows_kernel(
    x, codes, scales, biases, up_codes, up_scales, up_biases, bias, up_bias, order, blocks, out,
    n_experts, n_inputs, n_slots, n_rows, n_stored, up_row, first_block,
    K: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    OUT_G: gl.constexpr, OUT_C: gl.constexpr, GATED: gl.constexpr, ACTIVATION: gl.constexpr, HAS_BIAS: gl.constexpr,
    TOP_K: gl.constexpr, SLOTS: gl.constexpr, IS_ONE: gl.constexpr, ARRANGED: gl.constexpr, PARTS: gl.constexpr,
    OUT_PARTS: gl.constexpr, AHEAD: gl.constexpr, TILES: gl.constexpr, BLOCKS: gl.constexpr, PIECES: gl.constexpr,
    APART: gl.constexpr, WARPS: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """TILES times ROWS rows of an expert's matrix times the rows of a block, BLOCKS times COLUMNS / PARTS at most. The
    arguments are those of `few_rows_kernel`, but K is one of PIECES of a row's columns, and out, unless GATED, has the
    sums of each: [PIECES, n_slots, n_rows]. IS_ONE: a block has one row of one part. ARRANGED: activations are in the
    order of codes; others are brought into it by every program. AHEAD: what experts the blocks have is known before the
    kernel before this one ends. APART: see `multiply_rows`.
    """
    R: gl.constexpr = COLUMNS // PARTS
    ROW: gl.constexpr = K * PIECES
    first_row = gl.program_id(0) * ((ROWS // 2 if GATED else ROWS) * TILES)
    if not AHEAD:
        wait_for_previous(EARLY)
        let_next_begin(EARLY)
    expert, first_place, end = block_at(blocks, first_block + gl.program_id(1), n_experts, n_slots, R * BLOCKS, SLOTS)
    if expert < 0:
        if AHEAD:
            wait_for_previous(EARLY)
            let_next_begin(EARLY)
        return
    piece = gl.program_id(2)
    at = expert * n_stored
    up = at + up_row
    unit, group = piece * (K // C), piece * (K // G)
    W: gl.constexpr = ROW // C
    NG: gl.constexpr = ROW // G
    one = (codes + at * W + unit, scales + at * NG + group, biases + at * NG + group)
    other = (up_codes + up * W + unit, up_scales + up * NG + group, up_biases + up * NG + group)
    fetched = fetch_rows(one, other, first_row, n_rows - 1, TILES, K, ROW, MODE, G, C, GATED, WARPS)
    inputs = ()
    for block in gl.static_range(BLOCKS):
        place = first_place + block * R
        slots, _ = slots_in(order, place, end, COLUMNS, R, SLOTS, columns_of(G, WARPS))
        inputs += (slots // TOP_K,)
    x += piece * K
    row_at = x + first_place.to(gl.int64) // TOP_K * ROW
    row = ()
    if IS_ONE and not AHEAD:
        row = fetch_row(row_at, K, G, WARPS)
    rows = keep_rows(fetched, TILES, MODE, BITS)
    if AHEAD:
        wait_for_previous(EARLY)
        let_next_begin(EARLY)
        if IS_ONE:
            row = fetch_row(row_at, K, G, WARPS)
    sums = multiply_rows(rows, x, row, inputs, n_inputs, K, ROW, MODE, BITS, G, C, ARRANGED, PARTS, APART, WARPS)
    for block in gl.static_range(BLOCKS):
        _finish(
            sums, bias + at, up_bias + up, order, out, first_place, end, first_row, n_slots, n_rows, piece,
            OUT_G, OUT_C, GATED, ACTIVATION, HAS_BIAS, SLOTS, PARTS, OUT_PARTS, block, WARPS,
        )  # fmt: skip
