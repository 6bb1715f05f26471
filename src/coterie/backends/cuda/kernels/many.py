"""Products for many rows an expert: weights become numbers in registers and go from there into the matrix units.

A program has BN rows of a matrix, two matrices' where gate and up go together, and one group of codes at a time, which
it multiplies with all rows of a block.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.activation import gated
from coterie.backends.cuda.kernels.codes import fetched, low_and_high, numbers_of, scale_of
from coterie.backends.cuda.kernels.columns import (
    block_at,
    each_part,
    parts_added,
    row_width,
    slots_of,
    starts_of,
    store_hidden,
)
from coterie.backends.cuda.kernels.constants import add_constants, groups_together, sums_at
from coterie.backends.cuda.kernels.dot import dot, plain_dot
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit
def _units(codes, row, inside, group, K: tl.constexpr, C: tl.constexpr, G: tl.constexpr):
    """Units [1, BN, G / C] of one group."""
    unit = group * (G // C) + tl.arange(0, G // C)
    return tl.load(codes + row[:, None] * (K // C) + unit[None, :], mask=inside[:, None], other=0)[None, :, :]


@triton.jit
def _plain(weights, row, inside, group, K: tl.constexpr, G: tl.constexpr):
    """Plain weights [BN, G]."""
    k = group * G + tl.arange(0, G)
    return tl.load(weights + row[:, None] * K + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0)


@triton.jit
def _packed(
    acc, x, scale, codes, row, inside, group,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr,
    BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """acc plus the products with packed weights: the sum of the group, times its scale."""
    nothing = tl.zeros((BN, BT), tl.float32)
    if C == 1:
        place = group * G + tl.arange(0, G)[None, :]
        start = codes + row[:, None] * row_width(K, MODE, BITS, 1)
        sums = dot(fetched(start, place, inside[:, None] & (place < K), BITS), x, nothing)
    elif MODE == "affine" and BITS == 8:
        low, high = low_and_high(_units(codes, row, inside, group, K, C, G), 1, BN, G)
        sums = dot(tl.reshape(high, (BN, G)), x, dot(tl.reshape(low, (BN, G)), x, nothing))
    else:
        numbers = numbers_of(_units(codes, row, inside, group, K, C, G), 1, BN, G, MODE, BITS)
        sums = dot(tl.reshape(numbers, (BN, G)), x, nothing)
    return tl.fma(sums, tl.broadcast_to(scale_of(scale, MODE)[:, None], (BN, BT)), acc)


@triton.jit
def _add_group(
    acc, x, scale, codes, row, inside, group,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr,
    BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """acc [BN, BT] plus the products of one group with x [G, BT]."""
    if MODE == "plain":
        acc = plain_dot(_plain(codes, row, inside, group, K, G), x, acc)
    else:
        acc = _packed(acc, x, scale, codes, row, inside, group, K, MODE, BITS, G, C, BN, BT)
    return acc


@triton.jit
def _scales_at(scales, row, inside, group, K: tl.constexpr, MODE: tl.constexpr, G: tl.constexpr):
    """Stored scales [BN] of a group; plain weights have none."""
    stored = row
    if MODE != "plain":
        stored = tl.load(scales + row * (K // G) + group, mask=inside & (group < K // G), other=0)
    return stored


@triton.jit
def many_rows_kernel(
    x, x_sums, codes, scales, biases, up_codes, up_scales, up_biases, bias, up_bias,
    order, blocks, out, out_sums,
    n_experts, top_k, n_inputs, n_slots, n_rows, n_stored, up_row, first_block,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr, EXCESS: tl.constexpr,
    SPAN: tl.constexpr, OUT_G: tl.constexpr, OUT_C: tl.constexpr, OUT_SPAN: tl.constexpr,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, BN: tl.constexpr, R: tl.constexpr,
    SLOTS: tl.constexpr, PARTS: tl.constexpr, OUT_PARTS: tl.constexpr, STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """BN rows of an expert's matrix times the R rows of a block; the arguments are those of `few_rows_kernel`."""
    BT: tl.constexpr = R * PARTS
    row = tl.program_id(0) * BN + tl.arange(0, BN)
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
    acc = tl.zeros((BN, BT), tl.float32)
    up_acc = tl.zeros((BN, BT), tl.float32)
    # Scales are two bytes each, too few for an asynchronous copy: they are fetched one step ahead by hand.
    scale = _scales_at(scales, row, inside, 0, K, MODE, G)
    up_scale = _scales_at(up_scales, row, inside, 0, K, MODE, G)
    for group in tl.range(0, tl.cdiv(K, G), num_stages=STAGES):
        k = group * G + tl.arange(0, G)
        # Columns that are no rows repeat the block's first: without a mask copies cost less.
        if K % G == 0:
            tile = tl.load(x + starts[None, :] + k[:, None])
        else:
            tile = tl.load(x + starts[None, :] + k[:, None], mask=(k < K)[:, None], other=0.0)
        next_scale = _scales_at(scales, row, inside, group + 1, K, MODE, G)
        next_up_scale = _scales_at(up_scales, row, inside, group + 1, K, MODE, G)
        acc = _add_group(acc, tile, scale, codes, row, inside, group, K, MODE, BITS, G, C, BN, BT)
        if GATED:
            up_acc = _add_group(up_acc, tile, up_scale, up_codes, row, inside, group, K, MODE, BITS, G, C, BN, BT)
        scale, up_scale = next_scale, next_up_scale
    if MODE == "affine":
        runs = starts // SPAN
        for first in tl.range(0, K // G, groups_together(K // G)):
            sums = sums_at(x_sums, runs, columns, first, K, G, SPAN)
            acc = add_constants(acc, sums, scales, biases, row, inside, first, K, G, EXCESS, PARTS > 1)
            if GATED:
                up_acc = add_constants(up_acc, sums, up_scales, up_biases, row, inside, first, K, G, EXCESS, PARTS > 1)
    result = parts_added(acc, BN, PARTS, R)
    if HAS_BIAS:
        result += tl.load(bias + stored + row, mask=inside, other=0.0)[:, None]
    if GATED:
        up_result = parts_added(up_acc, BN, PARTS, R)
        if HAS_BIAS:
            up_result += tl.load(up_bias + stored + up_row + row, mask=inside, other=0.0)[:, None]
        values = gated(result, up_result, ACTIVATION)
        first_row = tl.program_id(0) * BN
        store_hidden(
            values, out, out_sums, first_row, slots, live, n_slots, n_rows, BN, R, OUT_G, OUT_C, OUT_SPAN, OUT_PARTS,
        )  # fmt: skip
    else:
        mask = inside[:, None] & live[None, :]
        target = out + slots.to(tl.int64)[None, :] * n_rows + row[:, None]
        tl.store(target, result.to(out.dtype.element_ty), mask=mask)
