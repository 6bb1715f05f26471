"""What stands before the products: activations in the order of codes, and not too many routed rows sorted by expert."""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.halves import halve_row
from coterie.backends.cuda.kernels.sort import list_blocks
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
def _sort(
    ids, order, blocks, expert, n_experts, n_slots, n_blocks,
    R: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """An expert's order and blocks, of at most BLOCK slots."""
    experts, slot = tl.arange(0, EXPERTS), tl.arange(0, BLOCK)
    chosen = tl.load(ids + slot, mask=slot < n_slots, other=-1)
    counts = tl.histogram(chosen, EXPERTS, mask=(chosen >= 0) & (chosen < n_experts))
    n_own = tl.sum(tl.where(experts == expert, counts, 0), 0)
    begin = tl.sum(tl.where(experts < expert, counts, 0), 0)
    first = tl.sum(tl.where(experts < expert, (counts + R - 1) // R, 0), 0)
    last = tl.where(expert == n_experts - 1, n_blocks, first + (n_own + R - 1) // R)
    own = (chosen == expert).to(tl.int32)
    tl.store(order + begin + tl.cumsum(own, 0) - own, slot, mask=own != 0)
    list_blocks(blocks, expert, begin, n_own, first, last, R)


@triton.jit
def prepare_kernel(
    x, out, sums, ids, order, blocks, n_rows, n_experts, n_slots, n_blocks,
    K: tl.constexpr, G: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr, SUMS: tl.constexpr, HALVES: tl.constexpr,
    LIFTED: tl.constexpr, NG: tl.constexpr, R: tl.constexpr, EXPERTS: tl.constexpr, BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """The first n_experts programs, if EXPERTS is not 0, find an expert's slots among ids int32 [n_slots]: order and
    blocks [n_blocks, BLOCK_ENTRY]; the n_rows * n_chunks programs after them bring NG groups of a row of x each into
    the order of codes. HALVES: a program has a whole row, of NG * G activations at most, which becomes float16, and
    `sums` are its sizes.

    Each expert counts for itself, so nothing is shared and one launch will do, for up to BLOCK slots. Ids that are no
    expert's are skipped.
    """
    n_chunks: tl.constexpr = chunks_of(K, NG * G)
    index = tl.program_id(0) - n_experts
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    if index >= 0:
        row = (index // n_chunks).to(tl.int64)
        if HALVES:
            k = tl.arange(0, NG * G)
            values = tl.load(x + row * K + k, mask=k < K, other=0.0).to(tl.float32)
            halve_row(values, out, sums, row, K, G, C, LIFTED, NG * G)
        else:
            _arrange(x, out, sums, row, index % n_chunks * NG, n_rows, K, G, C, PARTS, SUMS, NG)
    elif EXPERTS > 0:
        _sort(ids, order, blocks, tl.program_id(0), n_experts, n_slots, n_blocks, R, EXPERTS, BLOCK)
