"""Products for few rows an expert.

A program has BN rows of a matrix, two matrices' where gate and up go together, and STEPS batches of GB groups of codes
at a time. Each group's sum meets its scale in f32, and the groups are added up at the end.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.activation import gated
from coterie.backends.cuda.kernels.batch import activations, add_products
from coterie.backends.cuda.kernels.columns import (
    block_at,
    each_part,
    parts_added,
    row_width,
    slots_of,
    starts_of,
    store_hidden,
)
from coterie.backends.cuda.kernels.constants import constants
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit
def few_rows_kernel(
    x, x_sums, codes, scales, biases, up_codes, up_scales, up_biases, bias, up_bias,
    order, blocks, out, out_sums,
    n_experts, top_k, n_inputs, n_slots, n_rows, n_stored, up_row, first_block,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr, EXCESS: tl.constexpr,
    SPAN: tl.constexpr, OUT_G: tl.constexpr, OUT_C: tl.constexpr, OUT_SPAN: tl.constexpr,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, BN: tl.constexpr, R: tl.constexpr,
    SLOTS: tl.constexpr, PARTS: tl.constexpr, OUT_PARTS: tl.constexpr, STAGES: tl.constexpr, EARLY: tl.constexpr,
    STEPS: tl.constexpr, GB: tl.constexpr,
):  # fmt: skip
    """BN rows of an expert's matrix times the R rows of a block.

    x: bfloat16 [PARTS, n_inputs, K] in the order of codes, row slot // top_k for a slot; x_sums: f32 [PARTS, n_inputs,
    K / SPAN]. codes, scales, biases: stacks of n_stored rows an expert, of which n_rows are multiplied; up rows begin
    at up_row. bias: f32 [E, n_stored]. blocks, SLOTS: see `block_at`; the launch begins with `first_block`.

    GATED: out is bfloat16 [OUT_PARTS, n_slots, n_rows], the gated hidden values in the order of the next matrix's
    codes, and out_sums f32 [OUT_PARTS, n_slots, ceil(n_rows / OUT_SPAN)]. Otherwise out is [n_slots, n_rows], a float.
    """
    BT: tl.constexpr = R * PARTS
    first_row = tl.program_id(0) * BN
    row = first_row + tl.arange(0, BN)
    inside = row < n_rows
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    expert, first_place, end = block_at(blocks, first_block + tl.program_id(1), n_experts, n_slots, R, SLOTS)
    if expert < 0:
        return
    slots, live = slots_of(order, first_place, end, R, SLOTS)
    starts = starts_of(slots // top_k, K, n_inputs, PARTS, R)
    columns = each_part(live, PARTS, R)
    stored = expert * n_stored
    W: tl.constexpr = row_width(K, MODE, BITS, C)
    codes, up_codes = codes + stored * W, up_codes + (stored + up_row) * W
    scales, up_scales = scales + stored * (K // G), up_scales + (stored + up_row) * (K // G)
    biases, up_biases = biases + stored * (K // G), up_biases + (stored + up_row) * (K // G)
    acc = tl.zeros((GB, BN, BT), tl.float32)
    up_acc = tl.zeros((GB, BN, BT), tl.float32)
    for first in tl.range(0, tl.cdiv(K, G), GB * STEPS, num_stages=STAGES):
        for step in tl.static_range(STEPS):
            group = first + step * GB
            tile = activations(x, starts, columns, group, K, G, GB, BT)
            acc = add_products(acc, tile, codes, scales, row, inside, group, K, MODE, BITS, G, C, GB, BN, BT)
            if GATED:
                up_acc = add_products(
                    up_acc, tile, up_codes, up_scales, row, inside, group, K, MODE, BITS, G, C, GB, BN, BT
                )
    total = tl.sum(acc, 0)
    up_total = tl.sum(up_acc, 0)
    if MODE == "affine":
        runs = starts // SPAN
        total += constants(x_sums, runs, columns, scales, biases, row, inside, K, G, EXCESS, SPAN, PARTS > 1, BN, BT)
        if GATED:
            up_total += constants(
                x_sums, runs, columns, up_scales, up_biases, row, inside, K, G, EXCESS, SPAN, PARTS > 1, BN, BT
            )
    result = parts_added(total, BN, PARTS, R)
    if HAS_BIAS:
        result += tl.load(bias + stored + row, mask=inside, other=0.0)[:, None]
    if GATED:
        up_result = parts_added(up_total, BN, PARTS, R)
        if HAS_BIAS:
            up_result += tl.load(up_bias + stored + up_row + row, mask=inside, other=0.0)[:, None]
        values = gated(result, up_result, ACTIVATION)
        store_hidden(
            values, out, out_sums, first_row, slots, live, n_slots, n_rows, BN, R, OUT_G, OUT_C, OUT_SPAN, OUT_PARTS,
        )  # fmt: skip
    else:
        target = out + slots.to(tl.int64)[None, :] * n_rows + row[:, None]
        tl.store(target, result.to(out.dtype.element_ty), mask=inside[:, None] & live[None, :])
