"""Routed rows sorted by expert, stably, without a wait and without an order that depends on chance.

An id out of range counts as one more expert behind the others: its rows come last, beyond the last offset.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit
def _expert_of(ids, rows, end, n_experts):
    """The experts of rows; n_experts for an id out of range, n_experts + 1 beyond the end."""
    expert = tl.load(ids + rows, mask=rows < end, other=0)
    expert = tl.where((expert >= 0) & (expert < n_experts), expert, n_experts)
    return tl.where(rows < end, expert, n_experts + 1)


@triton.jit
def group_few_kernel(ids, order, offsets, inverse, n_rows, n_experts, ROWS: tl.constexpr, EARLY: tl.constexpr):
    """One expert a program, which looks at all rows: one launch, for few rows."""
    own = tl.program_id(0)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    before, count = 0, 0
    for first in range(0, n_rows, ROWS):
        expert = _expert_of(ids, first + tl.arange(0, ROWS), n_rows, n_experts)
        before += tl.sum((expert < own).to(tl.int32), 0)
        count += tl.sum((expert == own).to(tl.int32), 0)
    tl.store(offsets + own, before)
    if count > 0:
        for first in range(0, n_rows, ROWS):
            rows = first + tl.arange(0, ROWS)
            mine = (_expert_of(ids, rows, n_rows, n_experts) == own).to(tl.int32)
            place = before + tl.cumsum(mine, 0) - mine
            tl.store(order + place, rows, mask=mine == 1)
            tl.store(inverse + rows, place, mask=mine == 1)
            before += tl.sum(mine, 0)


@triton.jit
def count_rows_kernel(ids, counts, n_rows, n_experts, rows_each, ROWS: tl.constexpr, EARLY: tl.constexpr):
    """counts[expert, program] of the rows that a program has; they are zero before."""
    program, n_programs = tl.program_id(0), tl.num_programs(0)
    begin = program.to(tl.int64) * rows_each
    end = tl.minimum(begin + rows_each, n_rows)
    wait_for_previous(EARLY)
    for first in range(begin, end, ROWS):
        expert = _expert_of(ids, first + tl.arange(0, ROWS), end, n_experts)
        tl.atomic_add(counts + expert * n_programs + program, 1, mask=expert <= n_experts)


@triton.jit
def place_rows_kernel(
    ids, counts, ends, order, offsets, inverse, n_rows, n_experts, rows_each, ROWS: tl.constexpr, EARLY: tl.constexpr
):
    """Rows to their places. `ends`: the running total of counts; `counts` becomes what a program has yet to place."""
    program, n_programs = tl.program_id(0), tl.num_programs(0)
    begin = program.to(tl.int64) * rows_each
    end = tl.minimum(begin + rows_each, n_rows)
    lanes = tl.arange(0, ROWS)
    wait_for_previous(EARLY)
    for first in range(program * ROWS, n_experts + 1, n_programs * ROWS):
        expert = first + lanes
        last = expert * n_programs - 1
        offset = tl.load(ends + last, mask=(expert > 0) & (expert <= n_experts), other=0)
        tl.store(offsets + expert, offset, mask=expert <= n_experts)
    for first in range(begin, end, ROWS):
        rows = first + lanes
        expert = _expert_of(ids, rows, end, n_experts)
        same = expert[:, None] == expert[None, :]
        earlier = tl.sum((same & (lanes[None, :] < lanes[:, None])).to(tl.int32), 1)
        later = tl.sum((same & (lanes[None, :] > lanes[:, None])).to(tl.int32), 1)
        real = rows < end
        slot = expert * n_programs + program
        left = tl.load(counts + slot, mask=real, other=0)
        place = tl.load(ends + slot, mask=real, other=0) - left + earlier
        tl.store(order + place, rows.to(tl.int32), mask=real)
        tl.store(inverse + rows, place, mask=real)
        tl.debug_barrier()  # every thread has read what is left before it changes, and sees the change after
        tl.store(counts + slot, left - earlier - 1, mask=real & (later == 0))
        tl.debug_barrier()
