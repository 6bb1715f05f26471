"""What stands before the products: activations in the order of codes, and routed rows sorted by expert."""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.constexpr_function
def chunks_of(n, size):
    """Pieces of `size` that n needs."""
    return -(-n // size)


@triton.jit
def group_sums(numbers, NG: tl.constexpr, G: tl.constexpr):
    """The sums f32 [NG] of groups of bfloat16 numbers; in f64, where their order does not matter, so that every kernel
    gives the same bits.
    """
    return tl.sum(tl.reshape(numbers.to(tl.float64), (NG, G)), 1).to(tl.float32)


@triton.jit
def _arrange(
    x, out, sums, row, first, n_rows,
    K: tl.constexpr, G: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr, SUMS: tl.constexpr, NG: tl.constexpr,
):  # fmt: skip
    """NG groups from group `first` on of row `row` of x [n_rows, K], as PARTS bfloat16 numbers each, and their sums."""
    group = first + tl.arange(0, NG)
    k = first * G + tl.arange(0, NG * G)
    rest = tl.load(x + row * K + k, mask=k < K, other=0.0).to(tl.float32)
    for part in tl.static_range(PARTS):
        number = rest.to(tl.bfloat16)
        rest -= number.to(tl.float32)
        start = part * n_rows + row
        ordered = number
        if C > 1:
            ordered = tl.reshape(tl.permute(tl.reshape(number, (NG, G // C, C)), (0, 2, 1)), (NG * G,))
        tl.store(out + start * K + k, ordered, mask=k < K)
        if SUMS:
            total = group_sums(number, NG, G)
            tl.store(sums + start * (K // G) + group, total, mask=group < K // G)


@triton.jit
def _counts(ids, n_slots, n_experts, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """How many of at most BLOCK slots each expert has, [EXPERTS]; ids that are no expert's count for nobody."""
    slot = tl.arange(0, BLOCK)
    chosen = tl.load(ids + slot, mask=slot < n_slots, other=-1)
    return tl.histogram(chosen, EXPERTS, mask=(chosen >= 0) & (chosen < n_experts))


@triton.jit
def _before_and_own(ids, expert, n_slots, BLOCK: tl.constexpr):
    """How many slots the experts before one have, and it itself."""
    before, own = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int32)
    for first in tl.range(0, n_slots, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        chosen = tl.load(ids + slot, mask=slot < n_slots, other=-1)
        before += ((chosen >= 0) & (chosen < expert)).to(tl.int32)
        own += (chosen == expert).to(tl.int32)
    return tl.sum(before, 0), tl.sum(own, 0)


@triton.jit
def _collect(ids, order, expert, place, n_slots, BLOCK: tl.constexpr):
    """Write the slots of an expert, in rising order, from `place` on."""
    for first in tl.range(0, n_slots, BLOCK):
        slot = first + tl.arange(0, BLOCK)
        own = (tl.load(ids + slot, mask=slot < n_slots, other=-1) == expert).to(tl.int32)
        tl.store(order + place + tl.cumsum(own, 0) - own, slot, mask=own != 0)
        place += tl.sum(own, 0)


@triton.jit
def list_blocks(blocks, expert, begin, n_own, first, last, R: tl.constexpr):
    """Places first ... of the table for the blocks of R of an expert's n_own slots from `begin` on; those behind them,
    up to `last`, stay empty.
    """
    for start in tl.range(first, last, 16):
        index = start + tl.arange(0, 16)
        row = (index - first) * R
        tl.store(blocks + 2 * index, tl.where(row < n_own, expert, -1), mask=index < last)
        tl.store(blocks + 2 * index + 1, begin + row, mask=index < last)


@triton.jit
def _sort(
    ids, order, offsets, blocks, expert, n_experts, n_slots, n_blocks,
    R: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """An expert's offset, order and blocks."""
    if n_slots <= BLOCK:
        experts = tl.arange(0, EXPERTS)
        counts = _counts(ids, n_slots, n_experts, EXPERTS, BLOCK)
        own = tl.sum(tl.where(experts == expert, counts, 0), 0)
        begin = tl.sum(tl.where(experts < expert, counts, 0), 0)
        first = tl.sum(tl.where(experts < expert, (counts + R - 1) // R, 0), 0)
        last = first + (own + R - 1) // R
    else:
        # To count every expert's slots would take longer than all the rest. Each expert before this one has left at
        # most one block that is not full, so some blocks between stay empty.
        begin, own = _before_and_own(ids, expert, n_slots, BLOCK)
        first = begin // R + expert
        last = (begin + own) // R + expert + 1
    tl.store(offsets + expert, begin)
    tl.store(offsets + expert + 1, begin + own)
    _collect(ids, order, expert, begin, n_slots, BLOCK)
    list_blocks(blocks, expert, begin, own, first, tl.where(expert == n_experts - 1, n_blocks, last), R)


@triton.jit
def prepare_kernel(
    x, out, sums, ids, order, offsets, blocks, n_rows, n_experts, n_slots, n_blocks,
    K: tl.constexpr, G: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr, SUMS: tl.constexpr, NG: tl.constexpr,
    R: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The first n_experts programs, if EXPERTS is not 0, find an expert's slots among ids int32 [n_slots]: order,
    offsets [E + 1], and blocks [n_blocks, 2]; the n_rows * n_chunks programs after them bring NG groups of a row of x
    each into the order of codes.

    Each expert counts for itself, so nothing is shared and one launch will do. Ids that are no expert's are skipped.
    """
    n_chunks: tl.constexpr = chunks_of(K, NG * G)
    index = tl.program_id(0) - n_experts
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    if index >= 0:
        row = (index // n_chunks).to(tl.int64)
        _arrange(x, out, sums, row, index % n_chunks * NG, n_rows, K, G, C, PARTS, SUMS, NG)
    elif EXPERTS > 0:
        _sort(ids, order, offsets, blocks, tl.program_id(0), n_experts, n_slots, n_blocks, R, EXPERTS, BLOCK)


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
