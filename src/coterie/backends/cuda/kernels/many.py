"""Products for many rows an expert: weights become numbers in registers and go from there into the matrix units.

A program has BN rows of a matrix, two matrices' where gate and up go together, and STEPS groups of codes at a time,
each of which it multiplies with all rows of a block. What affine biases, and the constants in which codes were hidden,
add to a sum is a product of its own, of the sums of activations over groups.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.activation import gated
from coterie.backends.cuda.kernels.codes import fetched, low_and_high, number_in, numbers_of, words_at
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
def _half(tile, HIGH: tl.constexpr, BN: tl.constexpr, WIDTH: tl.constexpr):
    """One half of the columns of a tile [BN, 2 * WIDTH]."""
    low, high = tl.split(tl.permute(tl.reshape(tile, (BN, 2, WIDTH)), (0, 2, 1)))
    return high if HIGH else low


@triton.jit
def _piece(tile, index: tl.constexpr, STEPS: tl.constexpr, BN: tl.constexpr, WIDTH: tl.constexpr):
    """Columns index * WIDTH ... of a tile [BN, STEPS * WIDTH]; STEPS is 1, 2 or 4."""
    if STEPS == 4:
        pair = _half(tile, index >= 2, BN, 2 * WIDTH)
        piece = _half(pair, index % 2 == 1, BN, WIDTH)
    elif STEPS == 2:
        piece = _half(tile, index == 1, BN, WIDTH)
    else:
        piece = tile
    return piece


@triton.jit
def _codes_of(
    codes,
    row,
    inside,
    first,
    K: tl.constexpr,
    MODE: tl.constexpr,
    C: tl.constexpr,
    G: tl.constexpr,
    STEPS: tl.constexpr,
):
    """What a step fetches: units [BN, STEPS * G / C], or plain weights [BN, G]; codes that straddle units wait."""
    if MODE == "plain":
        k = first * G + tl.arange(0, G)
        fetched_now = tl.load(codes + row[:, None] * K + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0)
    elif C > 1:
        unit = first * (G // C) + tl.arange(0, STEPS * (G // C))
        mask = inside[:, None] & (unit < K // C)[None, :]
        fetched_now = tl.load(codes + row[:, None] * (K // C) + unit[None, :], mask=mask, other=0)
    else:
        fetched_now = row
    return fetched_now


@triton.jit
def _scales_of(
    scales, n_words, row, inside, first, K: tl.constexpr, MODE: tl.constexpr, G: tl.constexpr, KIND: tl.constexpr,
    STEPS: tl.constexpr,
):  # fmt: skip
    """The scales [BN, STEPS] of a step's groups; plain weights have none."""
    numbers = row
    if MODE != "plain":
        group = first + tl.arange(0, STEPS)
        mask = inside[:, None] & (group < K // G)[None, :]
        numbers = number_in(words_at(scales, n_words, group[None, :], row[:, None], mask, KIND), row[:, None], KIND)
    return numbers


@triton.jit
def _add_group(
    acc, x, units, scales, codes, row, inside, first, index: tl.constexpr,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr, STEPS: tl.constexpr,
    BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """acc [BN, BT] plus the products of a step's group with x [G, BT]: the sum of packed codes times their scale."""
    if MODE == "plain":
        acc = plain_dot(units, x, acc)
    else:
        nothing = tl.zeros((BN, BT), tl.float32)
        if C == 1:
            place = (first + index) * G + tl.arange(0, G)[None, :]
            start = codes + row[:, None] * row_width(K, MODE, BITS, 1)
            sums = dot(fetched(start, place, inside[:, None] & (place < K), BITS), x, nothing)
        else:
            own = _piece(units, index, STEPS, BN, G // C)[None, :, :]
            if MODE == "affine" and BITS == 8:
                low, high = low_and_high(own, 1, BN, G)
                sums = dot(tl.reshape(high, (BN, G)), x, dot(tl.reshape(low, (BN, G)), x, nothing))
            else:
                sums = dot(tl.reshape(numbers_of(own, 1, BN, G, MODE, BITS), (BN, G)), x, nothing)
        scale = tl.reshape(_piece(scales, index, STEPS, BN, 1), (BN, 1))
        acc = tl.fma(sums, tl.broadcast_to(scale, (BN, BT)), acc)
    return acc


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
    x_sums, starts, live, scales, biases, n_words, row, inside,
    K: tl.constexpr, G: tl.constexpr, EXCESS: tl.constexpr, KIND: tl.constexpr, SPAN: tl.constexpr,
    EXACT: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """What biases and the constants of codes add: [BN, BT], the sum over groups of (bias - EXCESS scale) sum(x)."""
    NG: tl.constexpr = groups_together(K // G)
    total = tl.zeros((BN, BT), tl.float32)
    for first in tl.range(0, K // G, NG):
        group = first + tl.arange(0, NG)
        mask = inside[:, None] & (group < K // G)[None, :]
        scale = number_in(words_at(scales, n_words, group[None, :], row[:, None], mask, KIND), row[:, None], KIND)
        bias = number_in(words_at(biases, n_words, group[None, :], row[:, None], mask, KIND), row[:, None], KIND)
        runs = starts[None, :] + group[:, None] * (G // SPAN)
        seen = live[None, :] & (group < K // G)[:, None]
        sums = tl.load(x_sums + runs, mask=seen, other=0.0)
        for run in tl.static_range(1, G // SPAN):
            sums += tl.load(x_sums + runs + run, mask=seen, other=0.0)
        total = _product_of_f32(bias - EXCESS * scale, sums, total, EXACT)
    return total


@triton.jit
def many_rows_kernel(
    x, x_sums, codes, scales, biases, up_codes, up_scales, up_biases, bias, up_bias,
    order, offsets, blocks, out, out_sums,
    n_experts, top_k, n_inputs, n_slots, n_rows, n_stored, n_words, up_row,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr, EXCESS: tl.constexpr,
    KIND: tl.constexpr, SPAN: tl.constexpr, OUT_G: tl.constexpr, OUT_C: tl.constexpr, OUT_SPAN: tl.constexpr,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, BN: tl.constexpr, R: tl.constexpr,
    SLOTS: tl.constexpr, PARTS: tl.constexpr, OUT_PARTS: tl.constexpr, STAGES: tl.constexpr,
    EARLY: tl.constexpr, STEPS: tl.constexpr,
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
    codes, up_codes = codes + stored * W, up_codes + stored * W
    words = expert * (K // G) * n_words
    scales, up_scales, biases, up_biases = scales + words, up_scales + words, biases + words, up_biases + words
    up = row + up_row
    acc = tl.zeros((BN, BT), tl.float32)
    up_acc = tl.zeros((BN, BT), tl.float32)
    for first in tl.range(0, tl.cdiv(K, G), STEPS, num_stages=STAGES):
        units = _codes_of(codes, row, inside, first, K, MODE, C, G, STEPS)
        factors = _scales_of(scales, n_words, row, inside, first, K, MODE, G, KIND, STEPS)
        if GATED:
            up_units = _codes_of(up_codes, up, inside, first, K, MODE, C, G, STEPS)
            up_factors = _scales_of(up_scales, n_words, up, inside, first, K, MODE, G, KIND, STEPS)
        for index in tl.static_range(STEPS):
            k = (first + index) * G + tl.arange(0, G)
            seen = columns[None, :] & (k < K)[:, None]
            tile = tl.load(x + starts[None, :] + k[:, None], mask=seen, other=0.0)
            acc = _add_group(
                acc, tile, units, factors, codes, row, inside, first, index, K, MODE, BITS, G, C, STEPS, BN, BT,
            )  # fmt: skip
            if GATED:
                up_acc = _add_group(
                    up_acc, tile, up_units, up_factors, up_codes, up, inside, first, index,
                    K, MODE, BITS, G, C, STEPS, BN, BT,
                )  # fmt: skip
    if MODE == "affine":
        acc += _constants(
            x_sums, starts // SPAN, columns, scales, biases, n_words, row, inside,
            K, G, EXCESS, KIND, SPAN, PARTS > 1, BN, BT,
        )  # fmt: skip
    result = parts_added(acc, BN, PARTS, R)
    if HAS_BIAS:
        result += tl.load(bias + stored + row, mask=inside, other=0.0)[:, None]
    if GATED:
        if MODE == "affine":
            up_acc += _constants(
                x_sums, starts // SPAN, columns, up_scales, up_biases, n_words, up, inside,
                K, G, EXCESS, KIND, SPAN, PARTS > 1, BN, BT,
            )  # fmt: skip
        up_result = parts_added(up_acc, BN, PARTS, R)
        if HAS_BIAS:
            up_result += tl.load(up_bias + stored + up, mask=inside, other=0.0)[:, None]
        values = gated(result, up_result, ACTIVATION)
        first_row = tl.program_id(0) * BN
        store_hidden(
            values, out, out_sums, first_row, slots, live, n_slots, n_rows, BN, R, OUT_G, OUT_C, OUT_SPAN, OUT_PARTS,
        )  # fmt: skip
    else:
        mask = inside[:, None] & live[None, :]
        target = out + slots.to(tl.int64)[None, :] * n_rows + row[:, None]
        tl.store(target, result.to(out.dtype.element_ty), mask=mask)
