"""Many routed rows sorted by expert, stably: programs count their shares of the slots, then each places its own.

Nothing is added by atomics in memory, so there is one order. Ids that are no expert's count for nobody.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.columns import BLOCK_ENTRY
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit
def list_blocks(blocks, expert, begin, n_own, first, last, R: tl.constexpr):
    """Places first ... of the table for the blocks of R of an expert's n_own slots from `begin` on; those behind them,
    up to `last`, stay empty.
    """
    for start in tl.range(first, last, 16):
        index = start + tl.arange(0, 16)
        row = (index - first) * R
        entry = blocks + BLOCK_ENTRY * index
        tl.store(entry, tl.where(row < n_own, expert, -1), mask=index < last)
        tl.store(entry + 1, begin + row, mask=index < last)
        tl.store(entry + 2, begin + n_own, mask=index < last)


@triton.jit
def _chosen(ids, slots, end, n_experts):
    """The experts of slots; -1 for those behind the end, and for ids that are no expert's."""
    chosen = tl.load(ids + slots, mask=slots < end, other=-1)
    return tl.where((chosen >= 0) & (chosen < n_experts), chosen, -1)


@triton.jit
def count_slots_kernel(
    ids, counts, n_slots, n_experts, width, EXPERTS: tl.constexpr, ROWS: tl.constexpr, EARLY: tl.constexpr
):
    """counts [programs, EXPERTS] of the `width` slots that a program has."""
    begin = tl.program_id(0) * width
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    total = tl.zeros((EXPERTS,), tl.int32)
    for first in tl.range(begin, tl.minimum(begin + width, n_slots), ROWS):
        chosen = _chosen(ids, first + tl.arange(0, ROWS), n_slots, n_experts)
        total += tl.histogram(chosen, EXPERTS, mask=chosen >= 0)
    tl.store(counts + tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS), total)


@triton.jit
def place_slots_kernel(
    ids, counts, order, blocks, n_slots, n_experts, n_blocks, width,
    R: tl.constexpr, EXPERTS: tl.constexpr, PROGRAMS: tl.constexpr, ROWS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """order of a program's slots; blocks [n_blocks, BLOCK_ENTRY] of R of an expert's slots, by turns.

    PROGRAMS: a power of two that holds those that counted, ROWS slots at a time.
    """
    program, n_programs = tl.program_id(0), tl.num_programs(0)
    programs, experts, lanes = tl.arange(0, PROGRAMS)[:, None], tl.arange(0, EXPERTS), tl.arange(0, ROWS)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    table = tl.load(counts + programs * EXPERTS + experts[None, :], mask=programs < n_programs, other=0)
    n_own = tl.sum(table, 0)
    begin = tl.cumsum(n_own, 0) - n_own
    n_blocks_own = (n_own + R - 1) // R
    first_block = tl.cumsum(n_blocks_own, 0) - n_blocks_own
    for expert in tl.range(program, n_experts, n_programs):
        own = experts == expert
        first = tl.sum(tl.where(own, first_block, 0), 0)
        last = tl.where(expert == n_experts - 1, n_blocks, first + tl.sum(tl.where(own, n_blocks_own, 0), 0))
        at, count = tl.sum(tl.where(own, begin, 0), 0), tl.sum(tl.where(own, n_own, 0), 0)
        list_blocks(blocks, expert, at, count, first, last, R)
    place = begin + tl.sum(tl.where(programs < program, table, 0), 0)
    for start in tl.range(program * width, tl.minimum(program * width + width, n_slots), ROWS):
        slots = start + lanes
        chosen = _chosen(ids, slots, n_slots, n_experts)
        earlier = (chosen[:, None] == chosen[None, :]) & (lanes[None, :] < lanes[:, None])
        own = chosen[:, None] == experts[None, :]
        to = tl.sum(tl.where(own, place[None, :], 0), 1) + tl.sum(earlier.to(tl.int32), 1)
        tl.store(order + to, slots, mask=chosen >= 0)
        place += tl.sum(own.to(tl.int32), 0)


@triton.jit
def list_blocks_kernel(
    offsets, blocks, n_experts, n_blocks, EXPERTS: tl.constexpr, R: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The table of blocks for slots that are sorted already: one program an expert."""
    expert = tl.program_id(0)
    experts = tl.arange(0, EXPERTS)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    earlier = experts < expert
    counts = tl.load(offsets + experts + 1, mask=earlier, other=0) - tl.load(offsets + experts, mask=earlier, other=0)
    first = tl.sum((counts + R - 1) // R, 0)
    begin = tl.load(offsets + expert)
    own = tl.load(offsets + expert + 1) - begin
    last = tl.where(expert == n_experts - 1, n_blocks, first + (own + R - 1) // R)
    list_blocks(blocks, expert, begin, own, first, last, R)
