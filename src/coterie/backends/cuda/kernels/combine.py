"""Sums of expert outputs in f32, without the slots that are skipped: nothing of theirs is even read."""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import let_next_begin, wait_for_previous
from coterie.ops.combine import SKIPPED_BELOW

_SKIPPED_BELOW = tl.constexpr(SKIPPED_BELOW)


@triton.jit
def weighted_sum_kernel(
    outputs, weights, totals, top_k, n_columns, SLOTS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):
    """A block of columns of a token's sum: SLOTS slots at a time, in one order whatever runs beside."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n_columns
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, top_k, SLOTS):
        slots = first + tl.arange(0, SLOTS)
        weight = tl.load(weights + token * top_k + slots, mask=slots < top_k, other=0.0).to(tl.float32)
        skipped = tl.abs(weight) < _SKIPPED_BELOW
        places = (token * top_k + slots)[:, None] * n_columns + columns[None, :]
        read = (slots < top_k)[:, None] & ~skipped[:, None] & inside[None, :]
        values = tl.load(outputs + places, mask=read, other=0.0).to(tl.float32)
        total += tl.sum(tl.where(skipped, 0.0, weight)[:, None] * values, 0)
    tl.store(totals + token * n_columns + columns, total, mask=inside)


@triton.jit
def accumulate_kernel(
    accumulator, outputs, number, weight, n_values,
    HAS_WEIGHT: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A block of accumulator += factor * outputs; the factor is weight[0], or a number."""
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    factor = tl.load(weight) if HAS_WEIGHT else number
    inside = places < tl.where(tl.abs(factor) < _SKIPPED_BELOW, 0, n_values)
    added = tl.load(outputs + places, mask=inside, other=0.0).to(tl.float32)
    total = tl.load(accumulator + places, mask=inside, other=0.0) + factor * added
    tl.store(accumulator + places, total, mask=inside)
