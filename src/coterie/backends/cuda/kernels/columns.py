"""Which activations a program multiplies: the routed rows of one block, each in one or more bfloat16 parts.

A block is an expert and the place of its first row among the rows sorted by expert. The columns of a tile are R routed
rows, and the same rows again for each further part, where activations are the sum of several bfloat16 numbers.
"""

import triton
import triton.language as tl

BLOCK_ENTRY = tl.constexpr(4)
"""Numbers of an entry of the table of blocks: expert, first place, end, and one that makes it 16 bytes, so that none is
divided among sectors of the caches.
"""


@triton.jit
def block_at(blocks, index, n_experts, n_slots, R: tl.constexpr, SLOTS: tl.constexpr):
    """(expert int64, first place, end of its expert's places) of a block; the expert is -1 where the table has a hole,
    or where an id is none. All of it stands side by side: what programs ask for next waits for one read.

    SLOTS says whose rows they are: "sorted", `blocks` is the table; "direct", `blocks` are the ids of the slots, and
    each slot is a block of its own; "dense", there is one matrix, and blocks are runs of R rows.
    """
    if SLOTS == "dense":
        expert, first, end = 0, index * R, n_slots
    elif SLOTS == "direct":
        expert, first, end = tl.load(blocks + index), index, index + 1
    else:
        entry = blocks + BLOCK_ENTRY * index
        expert, first, end = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    return tl.where((expert >= 0) & (expert < n_experts), expert, -1).to(tl.int64), first, end


@triton.jit
def slots_of(order, first, end, R: tl.constexpr, SLOTS: tl.constexpr):
    """(slots int32 [R], which of them the block has); the others repeat its first."""
    place = first + tl.arange(0, R)
    live = place < end
    slots = tl.where(live, place, first)
    if SLOTS == "sorted":
        slots = tl.load(order + slots)
    return slots, live


@triton.constexpr_function
def row_width(k, mode, bits, codes):
    """Elements that a stored row of k weights has: weights, uint16 units, or bytes where codes straddle units."""
    if mode == "plain":
        return k
    return k // codes if codes > 1 else k // 8 * bits


@triton.jit
def each_part(values, PARTS: tl.constexpr, R: tl.constexpr):
    """[R] to [PARTS * R]: the same for every part."""
    return tl.reshape(tl.broadcast_to(values[None, :], (PARTS, R)), (PARTS * R,))


@triton.jit
def starts_of(rows, width, n_rows, PARTS: tl.constexpr, R: tl.constexpr):
    """Where the columns begin, int64 [PARTS * R], in an array [PARTS, n_rows, width]."""
    part = tl.arange(0, PARTS * R) // R
    return (part.to(tl.int64) * n_rows + each_part(rows, PARTS, R)) * width


@triton.jit
def parts_added(tile, N: tl.constexpr, PARTS: tl.constexpr, R: tl.constexpr):
    """[N, PARTS * R] to [N, R]: the products with the parts added up."""
    if PARTS > 1:
        tile = tl.sum(tl.reshape(tile, (N, PARTS, R)), 1)
    return tile


@triton.jit
def arranged(k, G: tl.constexpr, C: tl.constexpr):
    """Where activation k stands in the order of codes: see `kernels.codes`."""
    return k // G * G + k % C * (G // C) + k % G // C


@triton.jit
def _in_order(values, first_row, N: tl.constexpr, R: tl.constexpr, G: tl.constexpr, C: tl.constexpr):
    """(hidden values [N, R] in the order in which they are stored, the place of each).

    Whole groups change their order in registers, so that neighbours are stored side by side.
    """
    place = first_row + tl.arange(0, N)
    if C > 1 and N % G == 0:
        groups = tl.permute(tl.reshape(values, (N // G, G // C, C, R)), (0, 2, 1, 3))
        values = tl.reshape(groups, (N, R))
    else:
        place = arranged(place, G, C)
    return values, place


@triton.jit
def store_hidden(
    values, hidden, hidden_sums, first_row, slots, live, n_slots, n_rows,
    N: tl.constexpr, R: tl.constexpr, G: tl.constexpr, C: tl.constexpr, SPAN: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Hidden values f32 [N, R] of rows first_row ... as bfloat16 parts [part, slot, place] in the order of the codes
    that they meet, and each part's sums over runs of SPAN rows, f32 [part, slot, run]; no sums for a SPAN of 0.
    """
    row = first_row + tl.arange(0, N)
    rest = tl.where((row < n_rows)[:, None], values, 0.0)
    for part in tl.static_range(PARTS):
        number = rest.to(tl.bfloat16)
        start = part * n_slots + slots.to(tl.int64)
        ordered, place = _in_order(number, first_row, N, R, G, C)
        mask = live[None, :] & (place < n_rows)[:, None]
        tl.store(hidden + start[None, :] * n_rows + place[:, None], ordered, mask=mask)
        if SPAN > 0:
            n_runs = tl.cdiv(n_rows, SPAN)
            run = first_row // SPAN + tl.arange(0, N // SPAN)
            total = tl.sum(tl.reshape(number.to(tl.float32), (N // SPAN, SPAN, R)), 1)
            sum_mask = live[None, :] & (run < n_runs)[:, None]
            tl.store(hidden_sums + start[None, :] * n_runs + run[:, None], total, mask=sum_mask)
        rest -= number.to(tl.float32)
