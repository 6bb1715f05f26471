"""What stands before the products: activations in the order of codes, and routed rows sorted by expert."""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit
def _arrange(x, out, sums, row, n_rows, K: tl.constexpr, G: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr, SUMS: tl.constexpr, NG: tl.constexpr):  # fmt: skip
    """Row `row` of x [n_rows, K] as PARTS bfloat16 numbers each, and the sums of each group, NG groups at a time."""
    unit = tl.arange(0, G // C)
    place = tl.arange(0, C)
    for first in tl.range(0, tl.cdiv(K, G), NG):
        group = first + tl.arange(0, NG)
        k = group[:, None, None] * G + unit[None, :, None] * C + place[None, None, :]
        rest = tl.load(x + row * K + k, mask=k < K, other=0.0).to(tl.float32)
        target = group[:, None, None] * G + place[None, None, :] * (G // C) + unit[None, :, None]
        for part in tl.static_range(PARTS):
            number = rest.to(tl.bfloat16)
            rest -= number.to(tl.float32)
            start = part * n_rows + row
            tl.store(out + start * K + target, number, mask=k < K)
            if SUMS:
                total = tl.sum(tl.sum(number.to(tl.float32), 2), 1)
                tl.store(sums + start * (K // G) + group, total, mask=group < K // G)


@triton.jit
def _counts(ids, expert, n_slots, BLOCK: tl.constexpr):
    """How many slots have a smaller id, and how many have this one."""
    before, own = 0, 0
    for first in tl.range(0, n_slots, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        chosen = tl.load(ids + slot, mask=slot < n_slots, other=0x7FFFFFFF)
        before += tl.sum(((chosen >= 0) & (chosen < expert)).to(tl.int32), 0)
        own += tl.sum((chosen == expert).to(tl.int32), 0)
    return before, own


@triton.jit
def _collect(ids, order, expert, place, n_slots, BLOCK: tl.constexpr):
    """Write the slots of an expert, in rising order, from `place` on."""
    for first in tl.range(0, n_slots, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        own = (tl.load(ids + slot, mask=slot < n_slots, other=-1) == expert).to(tl.int32)
        tl.store(order + place + tl.cumsum(own, 0) - own, slot, mask=own != 0)
        place += tl.sum(own, 0)


@triton.jit
def _list_blocks(blocks, expert, before, own, n_experts, n_slots, R: tl.constexpr, HOLES: tl.constexpr):
    """The blocks of an expert's `own` slots. From place `before` // R + expert on there is room for them, whatever the
    counts of the experts before: a division rounds down by less than one block each. Room that is left is a hole.
    """
    first = before // R + expert
    behind = (before + own) // R + expert + 1
    n_places = tl.where(expert == n_experts - 1, n_slots // R + n_experts, behind) - first
    for start in tl.range(0, n_places, HOLES):
        index = start + tl.arange(0, HOLES)
        taken = index * R < own
        place = first + index
        tl.store(blocks + 2 * place, tl.where(taken, expert, -1), mask=index < n_places)
        tl.store(blocks + 2 * place + 1, before + index * R, mask=index < n_places)


@triton.jit
def prepare_kernel(
    x, out, sums, ids, order, offsets, blocks, n_rows, n_experts, n_slots,
    K: tl.constexpr, G: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr, SUMS: tl.constexpr, NG: tl.constexpr,
    R: tl.constexpr, GROUPED: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Programs below n_rows bring a row of x into the order of codes; with GROUPED, the n_experts programs after them
    find an expert's slots among ids int32 [n_slots]: order, offsets [E + 1], and blocks [n_slots // R + E, 2].

    Each expert counts for itself, so nothing is shared and one launch will do. Ids that are no expert's are skipped.
    """
    index = tl.program_id(0)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    if index < n_rows:
        _arrange(x, out, sums, index.to(tl.int64), n_rows, K, G, C, PARTS, SUMS, NG)
    elif GROUPED:
        expert = index - n_rows
        before, own = _counts(ids, expert, n_slots, BLOCK)
        tl.store(offsets + expert, before)
        tl.store(offsets + expert + 1, before + own)
        _collect(ids, order, expert, before, n_slots, BLOCK)
        _list_blocks(blocks, expert, before, own, n_experts, n_slots, R, 16)
