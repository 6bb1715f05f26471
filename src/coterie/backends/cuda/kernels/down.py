"""The last product of a layer for one token: down, weighted and summed over the token's experts, in one launch."""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.batch import activations, add_products, sums_of
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous
from coterie.ops.combine import SKIPPED_BELOW

_SKIPPED_BELOW = tl.constexpr(SKIPPED_BELOW)
_COLUMNS = tl.constexpr(8)
"""Columns of the matrix units' smallest product; a token fills as many as its hidden values have parts."""


@triton.jit
def down_kernel(
    hidden, codes, scales, biases, bias, ids, weights, out,
    n_experts, top_k, n_slots, n_rows, n_words,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr, EXCESS: tl.constexpr,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, PARTS: tl.constexpr, SLOTS: tl.constexpr, TOGETHER: tl.constexpr,
    BN: tl.constexpr, STAGES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BN values of a token's sum over its slots of weight * (down @ hidden + bias).

    A batch is TOGETHER groups of each of SLOTS >= top_k slots. hidden: bfloat16 [PARTS, n_slots, K] in the order of
    codes; ids int32 and weights f32 [n_slots]; out [T, n_rows].
    Slots of tiny weights, and those whose id is no expert's, are left out.
    """
    GB: tl.constexpr = SLOTS * TOGETHER
    row = tl.program_id(0) * BN + tl.arange(0, BN)
    inside = row < n_rows
    token = tl.program_id(1)
    batch = tl.arange(0, GB)
    slot = batch // TOGETHER
    place = token * top_k + slot
    part = tl.arange(0, _COLUMNS)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    expert = tl.load(ids + place, mask=slot < top_k, other=-1)
    weight = tl.load(weights + place, mask=slot < top_k, other=0.0)
    used = (expert >= 0) & (expert < n_experts) & (tl.abs(weight) >= _SKIPPED_BELOW)
    matrix = tl.where(used, expert, 0).to(tl.int64)
    hidden_row = (part[:, None] * n_slots + place[None, :]).to(tl.int64)
    live = (part < PARTS)[:, None] & used[None, :]
    acc = tl.zeros((GB, BN, _COLUMNS), tl.float32)
    for first in tl.range(0, tl.cdiv(K, G), TOGETHER, num_stages=STAGES):
        group = first + batch % TOGETHER
        there = used & (group < tl.cdiv(K, G))
        tile = activations(hidden, hidden_row * K, live, group, there, K, G)
        sums = sums_of(tile, MODE, GB, BN, _COLUMNS, G)
        acc = add_products(
            acc, tile, sums, codes, scales, biases, matrix, n_rows, n_words, row, inside, group, there,
            K, MODE, BITS, G, C, EXCESS, KIND, GB, BN, _COLUMNS,
        )  # fmt: skip
    total = tl.sum(tl.sum(acc * tl.where(used, weight, 0.0)[:, None, None], 0), 1)
    if HAS_BIAS:
        added = tl.load(bias + matrix[:, None] * n_rows + row[None, :], mask=used[:, None] & inside[None, :], other=0.0)
        once = tl.where(used & (batch % TOGETHER == 0), weight, 0.0)
        total += tl.sum(added * once[:, None], 0)
    tl.store(out + token.to(tl.int64) * n_rows + row, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def sum_slots_kernel(
    values, ids, weights, out, n_experts, top_k, n_columns,
    SLOTS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BLOCK columns of a token's sum over its slots, at most SLOTS, of weight * values; out [T, n_columns].

    Slots of tiny weights, and those whose id is no expert's, are left out: nothing of theirs is read.
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.arange(0, SLOTS)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    expert = tl.load(ids + token * top_k + slot, mask=slot < top_k, other=-1)
    weight = tl.load(weights + token * top_k + slot, mask=slot < top_k, other=0.0)
    used = (expert >= 0) & (expert < n_experts) & (tl.abs(weight) >= _SKIPPED_BELOW)
    place = (token * top_k + slot)[:, None] * n_columns + column[None, :]
    mask = used[:, None] & (column < n_columns)[None, :]
    value = tl.load(values + place, mask=mask, other=0.0).to(tl.float32)
    total = tl.sum(tl.where(used, weight, 0.0)[:, None] * value, 0)
    tl.store(out + token * n_columns + column, total.to(out.dtype.element_ty), mask=column < n_columns)
