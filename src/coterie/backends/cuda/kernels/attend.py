"""Causal attention of many tokens of one sequence over its stores of keys and values.

A program has some tokens with all heads that share a key-value head: its rows meet the keys and values block by block,
with a softmax that is corrected as larger scores turn up (Milakov and Gimelshein, 2018; Dao et al., FlashAttention,
2022). Scores are in units of log 2.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.heads import CAPACITY, KEYS, N_COLUMNS, VALUES, store_of
from coterie.backends.cuda.kernels.softmax import LOG2_E, LOWEST
from coterie.backends.cuda.kernels.tiles import product
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit
def store_tile(store, slots, inside, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr = True):
    """Rows [slots, BLOCK_D] of a head's store; zeros outside. Not MASKED: all slots are inside."""
    columns = tl.arange(0, BLOCK_D)
    place = store + slots.to(tl.int64)[:, None] * D + columns[None, :]
    if D % 8 == 0:
        # The store's address comes from a table, so the compiler cannot know that rows begin at multiples of 16 bytes.
        place = tl.multiple_of(place, (1, 16))
    if D == BLOCK_D:
        if not MASKED:
            return tl.load(place)
        return tl.load(place, mask=inside[:, None], other=0.0)
    return tl.load(place, mask=inside[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def weigh(scores, factor, highest, total, mixed):
    """Shares exp2(scores * factor) of one more block under the new highest score; what there was before is scaled to
    match. The factor is positive, and has no multiplication of its own: product and difference are one instruction.
    """
    raised = tl.maximum(highest, tl.max(scores, 1) * factor)
    correction = tl.exp2(highest - raised)
    shares = tl.exp2(scores * factor - raised[:, None])
    return shares, raised, total * correction + tl.sum(shares, 1), mixed * correction[:, None]


@triton.jit
def meet_block(
    queries, turned, keys, values, highest, total, mixed, at, end, positions, window, capacity, factor,
    MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, WRAPS: tl.constexpr, LATENT: tl.constexpr, D: tl.constexpr,
    D_TURNED: tl.constexpr, DTYPE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_TURNED: tl.constexpr,
):  # fmt: skip
    """The rows after the keys and values of BLOCK_N positions from `at` on."""
    seen = at + tl.arange(0, BLOCK_N)
    slots = seen % capacity if WRAPS else seen
    inside = seen < end
    block = store_tile(keys, slots, inside, D, BLOCK_D, MASKED)
    scores = product(queries, tl.trans(block))
    if LATENT:
        shared = store_tile(values, slots, inside, D_TURNED, BLOCK_TURNED, MASKED)
        scores += product(turned, tl.trans(shared))
    if MASKED:
        visible = seen[None, :] <= positions[:, None]
        if HAS_WINDOW:
            visible = visible & (seen[None, :] > positions[:, None] - window)
        scores = tl.where(visible, scores, float("-inf"))
    shares, highest, total, mixed = weigh(scores, factor, highest, total, mixed)
    if not LATENT:
        block = store_tile(values, slots, inside, D, BLOCK_D, MASKED)
    return highest, total, mixed + product(shares.to(DTYPE), block)


@triton.jit(do_not_specialize=["sequence", "n_tokens", "start"])
def attend_tokens_kernel(
    q, q_turned, stores, sequence, sinks, out, n_tokens, start, window, scale,
    N_HEADS: tl.constexpr, GROUP: tl.constexpr, HAS_WINDOW: tl.constexpr, WRAPS: tl.constexpr, HAS_SINKS: tl.constexpr,
    LATENT: tl.constexpr, D: tl.constexpr, D_TURNED: tl.constexpr, DTYPE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_TURNED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Program: BLOCK_M rows, token by token the heads of a group, and their key-value head.

    q [T, N_HEADS, D] in DTYPE, the stores' dtype; out [T, N_HEADS, D], f32 or DTYPE. LATENT: the stores have latents,
    which serve as keys and as values, and keys of D_TURNED numbers, which meet q_turned [T, N_HEADS, D_TURNED].
    """
    head = tl.program_id(1)
    # The last tokens see most, and come first.
    first_row = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    rows = first_row + tl.arange(0, BLOCK_M)
    row_inside = rows < n_tokens * GROUP
    positions = start + rows // GROUP
    lines = (rows // GROUP).to(tl.int64) * N_HEADS + head * GROUP + rows % GROUP
    columns = tl.arange(0, BLOCK_D)
    mask = row_inside[:, None] & (columns < D)[None, :]
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    capacity = tl.load(stores + sequence * N_COLUMNS + CAPACITY).to(tl.int32)
    keys = store_of(stores, sequence, KEYS, DTYPE)
    values = store_of(stores, sequence, VALUES, DTYPE)
    keys += head.to(tl.int64) * capacity * D
    values += head.to(tl.int64) * capacity * (D_TURNED if LATENT else D)
    queries = tl.load(q + lines[:, None] * D + columns[None, :], mask=mask, other=0.0)
    turned = queries
    if LATENT:
        of_turned = tl.arange(0, BLOCK_TURNED)
        turned = tl.load(
            q_turned + lines[:, None] * D_TURNED + of_turned[None, :],
            mask=row_inside[:, None] & (of_turned < D_TURNED)[None, :], other=0.0,
        )  # fmt: skip
    first_token, last_token = first_row // GROUP, tl.minimum((first_row + BLOCK_M - 1) // GROUP, n_tokens - 1)
    begin, n_front, end = 0, 0, start + last_token + 1
    if HAS_WINDOW:
        begin = tl.maximum(0, start + first_token + 1 - window)
        n_front = tl.cdiv(tl.maximum(end - window - begin, 0), BLOCK_N)
    n_blocks = tl.cdiv(end - begin, BLOCK_N)
    n_front = tl.minimum(n_front, n_blocks)
    n_clear = tl.maximum(n_front, (start + first_token + 1 - begin) // BLOCK_N)
    highest = tl.full((BLOCK_M,), LOWEST, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    factor = scale * LOG2_E
    if HAS_WINDOW:
        for block in range(n_front):
            highest, total, mixed = meet_block(
                queries, turned, keys, values, highest, total, mixed, begin + block * BLOCK_N, end, positions, window,
                capacity, factor, True, HAS_WINDOW, WRAPS, LATENT, D, D_TURNED, DTYPE, BLOCK_N, BLOCK_D, BLOCK_TURNED,
            )  # fmt: skip
    for block in range(n_front, n_clear):
        highest, total, mixed = meet_block(
            queries, turned, keys, values, highest, total, mixed, begin + block * BLOCK_N, end, positions, window,
            capacity, factor, False, HAS_WINDOW, WRAPS, LATENT, D, D_TURNED, DTYPE, BLOCK_N, BLOCK_D, BLOCK_TURNED,
        )  # fmt: skip
    for block in range(n_clear, n_blocks):
        highest, total, mixed = meet_block(
            queries, turned, keys, values, highest, total, mixed, begin + block * BLOCK_N, end, positions, window,
            capacity, factor, True, HAS_WINDOW, WRAPS, LATENT, D, D_TURNED, DTYPE, BLOCK_N, BLOCK_D, BLOCK_TURNED,
        )  # fmt: skip
    if HAS_SINKS:
        sink = tl.load(sinks + head * GROUP + rows % GROUP) * LOG2_E
        total += tl.exp2(sink - highest)
    tl.store(out + lines[:, None] * D + columns[None, :], (mixed / total[:, None]).to(out.dtype.element_ty), mask=mask)
