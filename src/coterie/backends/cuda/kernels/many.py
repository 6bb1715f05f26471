"""Products for many rows an expert: weights become numbers in registers and go from there into the matrix units.

A program has BN rows of a matrix, two matrices' where gate and up go together, and one group of codes at a time, which
it multiplies with all rows of a block. What affine biases, and the constants in which codes were hidden, add to a sum
is a product of its own, of the sums of activations over groups.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.activation import gated
from coterie.backends.cuda.kernels.codes import bits_at, fetched, low_and_high, number_of, numbers_of
from coterie.backends.cuda.kernels.columns import (
    block_at,
    each_part,
    groups_together,
    parts_added,
    row_width,
    slots_of,
    starts_of,
    store_hidden,
)
from coterie.backends.cuda.kernels.dot import dot, plain_dot
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit
def _units(codes, row, inside, group, K: tl.constexpr, C: tl.constexpr, G: tl.constexpr):
    """Units [1, BN, G / C] of one group."""
    unit = group * (G // C) + tl.arange(0, G // C)
    return tl.load(codes + row[:, None] * (K // C) + unit[None, :], mask=inside[:, None], other=0)[None, :, :]


@triton.jit
def _numbers(
    codes, row, inside, group, K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr,
    C: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Numbers [BN, G] of one group."""
    if C == 1:
        place = group * G + tl.arange(0, G)[None, :]
        numbers = fetched(codes + row[:, None] * (K // 8 * BITS), place, inside[:, None] & (place < K), BITS)
    else:
        numbers = tl.reshape(numbers_of(_units(codes, row, inside, group, K, C, G), 1, BN, G, MODE, BITS), (BN, G))
    return numbers


@triton.jit
def _plain(acc, x, weights, row, inside, first, K: tl.constexpr, G: tl.constexpr):
    """acc plus the products with plain weights."""
    k = first * G + tl.arange(0, G)
    mask = inside[:, None] & (k < K)[None, :]
    return plain_dot(tl.load(weights + row[:, None] * K + k[None, :], mask=mask, other=0.0), x, acc)


@triton.jit
def _packed(
    acc, x, scale, codes, row, inside, group,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr,
    TYPE: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """acc plus the products with packed weights: the sum of the group, times its scale."""
    nothing = tl.zeros((BN, BT), tl.float32)
    if MODE == "affine" and BITS == 8:
        low, high = low_and_high(_units(codes, row, inside, group, K, C, G), 1, BN, G)
        sums = dot(tl.reshape(high, (BN, G)), x, dot(tl.reshape(low, (BN, G)), x, nothing))
    else:
        sums = dot(_numbers(codes, row, inside, group, K, MODE, BITS, G, C, BN), x, nothing)
    return tl.fma(sums, tl.broadcast_to(number_of(scale, TYPE, MODE)[:, None], (BN, BT)), acc)


@triton.jit
def _sum_of_group(
    acc, x, scale, codes, row, inside, group,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr,
    TYPE: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """acc [BN, BT] plus the scaled products of one group with x [G, BT]."""
    if MODE == "plain":
        acc = _plain(acc, x, codes, row, inside, group, K, G)
    else:
        acc = _packed(acc, x, scale, codes, row, inside, group, K, MODE, BITS, G, C, TYPE, BN, BT)
    return acc


@triton.jit
def _scale_bits(scales, n_stored, row, inside, group, K: tl.constexpr, MODE: tl.constexpr, G: tl.constexpr):
    """The bits of the scales [BN] of a group; plain weights have none."""
    bits = row
    if MODE != "plain":
        bits = bits_at(scales + group * n_stored + row, inside & (group < K // G))
    return bits


@triton.jit
def _product_of_f32(a, b, acc, EXACT: tl.constexpr):
    """acc + a @ b of f32 tiles: to 16 digits of each, or, EXACT, to all of them."""
    if EXACT:
        acc = tl.dot(a, b, acc, input_precision="tf32x3")
    else:
        a_high, b_high = a.to(tl.bfloat16), b.to(tl.bfloat16)
        a_low = (a - a_high.to(tl.float32)).to(tl.bfloat16)
        b_low = (b - b_high.to(tl.float32)).to(tl.bfloat16)
        acc = dot(a_low, b_high, dot(a_high, b_low, dot(a_high, b_high, acc)))
    return acc


@triton.jit
def _constants(
    x_sums, starts, live, scales, biases, n_stored, row, inside,
    K: tl.constexpr, G: tl.constexpr, EXCESS: tl.constexpr, SPAN: tl.constexpr, EXACT: tl.constexpr,
    BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """What biases and the constants of codes add: [BN, BT], the sum over groups of (bias - EXCESS scale) sum(x)."""
    NG: tl.constexpr = groups_together(K // G)
    total = tl.zeros((BN, BT), tl.float32)
    for first in tl.range(0, K // G, NG):
        group = first + tl.arange(0, NG)
        mask = inside[None, :] & (group < K // G)[:, None]
        place = group[:, None] * n_stored + row[None, :]
        scale = tl.load(scales + place, mask=mask, other=0.0).to(tl.float32)
        constant = tl.load(biases + place, mask=mask, other=0.0).to(tl.float32) - EXCESS * scale
        runs = starts[None, :] + group[:, None] * (G // SPAN)
        seen = live[None, :] & (group < K // G)[:, None]
        sums = tl.load(x_sums + runs, mask=seen, other=0.0)
        for run in tl.static_range(1, G // SPAN):
            sums += tl.load(x_sums + runs + run, mask=seen, other=0.0)
        total = _product_of_f32(tl.trans(constant), sums, total, EXACT)
    return total


@triton.jit
def many_rows_kernel(
    x, x_sums, codes, scales, biases, up_codes, up_scales, up_biases, bias, up_bias,
    order, offsets, blocks, out, out_sums,
    n_experts, top_k, n_inputs, n_slots, n_rows, n_stored, up_row,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr, EXCESS: tl.constexpr,
    SPAN: tl.constexpr, OUT_G: tl.constexpr, OUT_C: tl.constexpr, OUT_SPAN: tl.constexpr, GATED: tl.constexpr,
    ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, BN: tl.constexpr, R: tl.constexpr, SLOTS: tl.constexpr,
    PARTS: tl.constexpr, OUT_PARTS: tl.constexpr, STAGES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BN rows of an expert's matrix times the R rows of a block; the arguments are those of `few_rows_kernel`."""
    BT: tl.constexpr = R * PARTS
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = row < n_rows
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    expert, first_place = block_at(blocks, tl.program_id(1), n_experts, R, SLOTS)
    if expert < 0:
        return
    slots, live = slots_of(order, offsets, expert, first_place, n_slots, R, SLOTS)
    starts = starts_of(slots // top_k, K, n_inputs, PARTS, R)
    columns = each_part(live, PARTS, R)
    stored = expert * n_stored
    W: tl.constexpr = row_width(K, MODE, BITS, C)
    codes, up_codes = codes + stored * W, up_codes + (stored + up_row) * W
    scales, up_scales = scales + stored * (K // G), up_scales + stored * (K // G) + up_row
    biases, up_biases = biases + stored * (K // G), up_biases + stored * (K // G) + up_row
    acc = tl.zeros((BN, BT), tl.float32)
    up_acc = tl.zeros((BN, BT), tl.float32)
    TYPE: tl.constexpr = scales.dtype.element_ty
    # Scales are too few bytes for an asynchronous copy: they are fetched a step ahead by hand.
    scale = _scale_bits(scales, n_stored, row, inside, 0, K, MODE, G)
    up_scale = _scale_bits(up_scales, n_stored, row, inside, 0, K, MODE, G)
    for group in tl.range(0, tl.cdiv(K, G), num_stages=STAGES):
        k = group * G + tl.arange(0, G)
        seen = columns[None, :] if K % G == 0 else columns[None, :] & (k < K)[:, None]
        tile = tl.load(x + starts[None, :] + k[:, None], mask=seen, other=0.0)
        next_scale = _scale_bits(scales, n_stored, row, inside, group + 1, K, MODE, G)
        next_up_scale = _scale_bits(up_scales, n_stored, row, inside, group + 1, K, MODE, G)
        acc = _sum_of_group(acc, tile, scale, codes, row, inside, group, K, MODE, BITS, G, C, TYPE, BN, BT)
        if GATED:
            up_acc = _sum_of_group(
                up_acc, tile, up_scale, up_codes, row, inside, group, K, MODE, BITS, G, C, TYPE, BN, BT
            )
        scale, up_scale = next_scale, next_up_scale
    if MODE == "affine":
        acc += _constants(
            x_sums,
            starts // SPAN,
            columns,
            scales,
            biases,
            n_stored,
            row,
            inside,
            K,
            G,
            EXCESS,
            SPAN,
            PARTS > 1,
            BN,
            BT,
        )
    result = parts_added(acc, BN, PARTS, R)
    if HAS_BIAS:
        result += tl.load(bias + stored + row, mask=inside, other=0.0)[:, None]
    if GATED:
        if MODE == "affine":
            up_acc += _constants(
                x_sums, starts // SPAN, columns, up_scales, up_biases, n_stored, row, inside,
                K, G, EXCESS, SPAN, PARTS > 1, BN, BT,
            )  # fmt: skip
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
