"""Up to eight rows of a block times the matrices of their expert."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from coterie.backends.cuda.kernels.activation import gated
from coterie.backends.cuda.kernels.columns import arranged, block_at
from coterie.backends.cuda.kernels.single.layouts import COLUMNS, ROWS, sums
from coterie.backends.cuda.kernels.single.products import finished, multiply, read_columns, read_rows
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous

barrier = getattr(gl, "thread_barrier", None) or gl.barrier


@gluon.jit
def slots_in(
    order, offsets, expert, first, n_slots, COUNT: gl.constexpr, R: gl.constexpr, SLOTS: gl.constexpr,
    LAYOUT: gl.constexpr,
):  # fmt: skip
    """(slots int32 [COUNT], which of them the block has): R of them, again and again; others repeat its first."""
    place = gl.arange(0, COUNT, layout=LAYOUT) % R
    if SLOTS == "sorted":
        live = first + place < gl.load(offsets + expert + 1)
        slots = gl.load(order + gl.where(live, first + place, first))
    elif SLOTS == "direct":
        live = place == 0
        slots = first + place * 0
    else:
        live = first + place < n_slots
        slots = gl.where(live, first + place, first)
    return slots, live


@gluon.jit
def single_rows_kernel(
    x, codes, scales, biases, up_codes, up_scales, up_biases, bias, up_bias, order, offsets, blocks, out,
    n_experts, top_k, n_inputs, n_slots, n_rows, n_stored, up_row, first_block,
    K: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    OUT_G: gl.constexpr, OUT_C: gl.constexpr, GATED: gl.constexpr, ACTIVATION: gl.constexpr, HAS_BIAS: gl.constexpr,
    SLOTS: gl.constexpr, PARTS: gl.constexpr, OUT_PARTS: gl.constexpr, AHEAD: gl.constexpr, WARPS: gl.constexpr,
    EARLY: gl.constexpr,
):  # fmt: skip
    """ROWS rows of an expert's matrix times the COLUMNS / PARTS rows of a block. The arguments are those of
    `few_rows_kernel`; AHEAD: what experts the blocks have is known before the kernel before this one ends.
    """
    R: gl.constexpr = COLUMNS // PARTS
    W: gl.constexpr = K // C
    NG: gl.constexpr = K // G
    N: gl.constexpr = ROWS // 2 if GATED else ROWS
    first_row = gl.program_id(0) * N
    if not AHEAD:
        wait_for_previous(EARLY)
        let_next_begin(EARLY)
    expert, first_place = block_at(blocks, first_block + gl.program_id(1), n_experts, R, SLOTS)
    if expert < 0:
        if AHEAD:
            wait_for_previous(EARLY)
            let_next_begin(EARLY)
        return
    at = expert * n_stored
    up = at + up_row
    one = (codes + at * W, scales + at * NG, biases + at * NG)
    other = (up_codes + up * W, up_scales + up * NG, up_biases + up * NG)
    matrix = read_rows(one, other, first_row, n_rows - 1, K, MODE, G, C, GATED, WARPS)
    OF_COLUMNS: gl.constexpr = gl.SliceLayout(0, sums(WARPS))
    OF_ROWS: gl.constexpr = gl.SliceLayout(1, sums(WARPS))
    slots, live = slots_in(order, offsets, expert, first_place, n_slots, COLUMNS, R, SLOTS, OF_COLUMNS)
    if AHEAD:
        wait_for_previous(EARLY)
        let_next_begin(EARLY)
    barrier()  # all weights are asked for before anything else is
    columns = read_columns(x, slots // top_k, live, n_inputs, K, G, C, PARTS, WARPS)
    result = finished(multiply(matrix, columns, K, MODE, BITS, G, WARPS), PARTS, WARPS)
    own, there = slots_in(order, offsets, expert, first_place, n_slots, R, R, SLOTS, OF_COLUMNS)
    if GATED:
        gate, up_result = gl.split(gl.permute(gl.reshape(result, (2, N, R)), (1, 2, 0)))
        L: gl.constexpr = gate.type.layout
        row = first_row + gl.arange(0, N, layout=gl.SliceLayout(1, L))
        if HAS_BIAS:
            gate += gl.load(bias + at + row, mask=row < n_rows, other=0.0)[:, None]
            up_result += gl.load(up_bias + up + row, mask=row < n_rows, other=0.0)[:, None]
        rest = gated(gate, up_result, ACTIVATION)
        own, there = gl.convert_layout(own, gl.SliceLayout(0, L)), gl.convert_layout(there, gl.SliceLayout(0, L))
        slot_stride = gl.to_tensor(n_slots).to(gl.int64) * n_rows
        target = out + (own.to(gl.int64) * n_rows)[None, :] + arranged(row, OUT_G, OUT_C)[:, None]
        for part in gl.static_range(OUT_PARTS):
            number = rest.to(gl.bfloat16)
            gl.store(target + (part * slot_stride), number, mask=(row < n_rows)[:, None] & there[None, :])
            rest -= number.to(gl.float32)
    else:
        row = first_row + gl.arange(0, N, layout=OF_ROWS)
        inside = row < n_rows
        if HAS_BIAS:
            result += gl.load(bias + at + row, mask=inside, other=0.0)[:, None]
        target = out + (own.to(gl.int64) * n_rows)[None, :] + row[:, None]
        gl.store(target, result.to(out.dtype.element_ty), mask=inside[:, None] & there[None, :])
