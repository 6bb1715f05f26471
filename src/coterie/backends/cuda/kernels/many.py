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
from coterie.backends.cuda.kernels.constants import constants
from coterie.backends.cuda.kernels.dot import dot, plain_dot
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit
def _either(first, second, line, BN: tl.constexpr, GATED: tl.constexpr):
    """Pointers for lines [BN], or for [2 * BN] of which the second half belongs to the second matrix."""
    return tl.where(line < BN, first, second) if GATED else first + line * 0


@triton.jit
def _units(codes, inside, group, C: tl.constexpr, G: tl.constexpr):
    """Units [1, lines, G / C] of one group; codes: where each line begins."""
    unit = group * (G // C) + tl.arange(0, G // C)
    return tl.load(codes[:, None] + unit[None, :], mask=inside[:, None], other=0)[None, :, :]


@triton.jit
def _plain(weights, inside, group, K: tl.constexpr, G: tl.constexpr):
    """Plain weights [lines, G]."""
    k = group * G + tl.arange(0, G)
    return tl.load(weights[:, None] + k[None, :], mask=inside[:, None] & (k < K)[None, :], other=0.0)


@triton.jit
def _packed(
    acc, x, scale, codes, inside, group,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr,
    M: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """acc [M, BT] plus the products with packed weights: the sum of the group, times its scale."""
    nothing = tl.zeros((M, BT), tl.float32)
    if C == 1:
        place = group * G + tl.arange(0, G)[None, :]
        sums = dot(fetched(codes[:, None], place, inside[:, None] & (place < K), BITS), x, nothing)
    elif MODE == "affine" and BITS == 8:
        low, high = low_and_high(_units(codes, inside, group, C, G), 1, M, G)
        sums = dot(tl.reshape(high, (M, G)), x, dot(tl.reshape(low, (M, G)), x, nothing))
    else:
        numbers = numbers_of(_units(codes, inside, group, C, G), 1, M, G, MODE, BITS)
        sums = dot(tl.reshape(numbers, (M, G)), x, nothing)
    return tl.fma(sums, tl.broadcast_to(scale_of(scale, MODE)[:, None], (M, BT)), acc)


@triton.jit
def _add_group(
    acc, x, scale, codes, inside, group,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr,
    M: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """acc [M, BT] plus the products of one group with x [G, BT]."""
    if MODE == "plain":
        acc = plain_dot(_plain(codes, inside, group, K, G), x, acc)
    else:
        acc = _packed(acc, x, scale, codes, inside, group, K, MODE, BITS, G, C, M, BT)
    return acc


@triton.jit
def _scales_at(scales, line, inside, group, K: tl.constexpr, MODE: tl.constexpr, G: tl.constexpr):
    """Stored scales of a group, one a line; plain weights have none."""
    stored = line
    if MODE != "plain":
        stored = tl.load(scales + group, mask=inside & (group < K // G), other=0)
    return stored


@triton.jit
def many_rows_kernel(
    x, x_sums, codes, scales, biases, up_codes, up_scales, up_biases, bias, up_bias,
    order, offsets, blocks, out, out_sums,
    n_experts, top_k, n_inputs, n_slots, n_rows, n_stored, up_row, first_block,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr, EXCESS: tl.constexpr,
    SPAN: tl.constexpr, OUT_G: tl.constexpr, OUT_C: tl.constexpr, OUT_SPAN: tl.constexpr,
    GATED: tl.constexpr, ACTIVATION: tl.constexpr, HAS_BIAS: tl.constexpr, BN: tl.constexpr, R: tl.constexpr,
    SLOTS: tl.constexpr, PARTS: tl.constexpr, OUT_PARTS: tl.constexpr, STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """BN rows of an expert's matrix times the R rows of a block; the arguments are those of `few_rows_kernel`.

    Gate and up are one matrix of 2 * BN lines: one product has to be waited for, and the two numbers that meet in the
    activation come out in the same thread.
    """
    BT: tl.constexpr = R * PARTS
    M: tl.constexpr = 2 * BN if GATED else BN
    first_row = tl.program_id(0) * BN
    line = tl.arange(0, M)
    row = first_row + line % BN
    inside = row < n_rows
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    expert, first_place = block_at(blocks, first_block + tl.program_id(1), n_experts, R, SLOTS)
    if expert < 0:
        return
    slots, live = slots_of(order, offsets, expert, first_place, n_slots, R, SLOTS)
    starts = starts_of(slots // top_k, K, n_inputs, PARTS, R)
    columns = each_part(live, PARTS, R)
    stored = expert * n_stored
    W: tl.constexpr = row_width(K, MODE, BITS, C)
    codes = _either(codes + stored * W, up_codes + (stored + up_row) * W, line, BN, GATED) + row * W
    scales = _either(scales + stored * (K // G), up_scales + (stored + up_row) * (K // G), line, BN, GATED)
    scales += row * (K // G)
    acc = tl.zeros((M, BT), tl.float32)
    # Scales are two bytes each, too few for an asynchronous copy: they are fetched two steps ahead by hand.
    scale = _scales_at(scales, line, inside, 0, K, MODE, G)
    next_scale = _scales_at(scales, line, inside, 1, K, MODE, G)
    for group in tl.range(0, tl.cdiv(K, G), num_stages=STAGES):
        k = group * G + tl.arange(0, G)
        # Columns that are no rows repeat the block's first: without a mask copies cost less.
        if K % G == 0:
            tile = tl.load(x + starts[None, :] + k[:, None])
        else:
            tile = tl.load(x + starts[None, :] + k[:, None], mask=(k < K)[:, None], other=0.0)
        later_scale = _scales_at(scales, line, inside, group + 2, K, MODE, G)
        acc = _add_group(acc, tile, scale, codes, inside, group, K, MODE, BITS, G, C, M, BT)
        scale, next_scale = next_scale, later_scale
    if MODE == "affine":
        biases = _either(biases + stored * (K // G), up_biases + (stored + up_row) * (K // G), line, BN, GATED)
        biases += row * (K // G)
        acc += constants(x_sums, starts // SPAN, columns, scales, biases, inside, K, G, EXCESS, SPAN, PARTS > 1, M, BT)
    result = parts_added(acc, M, PARTS, R)
    if HAS_BIAS:
        added = _either(bias + stored, up_bias + stored + up_row, line, BN, GATED) + row
        result += tl.load(added, mask=inside, other=0.0)[:, None]
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(result, (2, BN, R)), (1, 2, 0)))
        store_hidden(
            gated(gate, up, ACTIVATION), out, out_sums, first_row, slots, live, n_slots, n_rows,
            BN, R, OUT_G, OUT_C, OUT_SPAN, OUT_PARTS,
        )  # fmt: skip
    else:
        mask = inside[:, None] & live[None, :]
        target = out + slots.to(tl.int64)[None, :] * n_rows + row[:, None]
        tl.store(target, result.to(out.dtype.element_ty), mask=mask)
