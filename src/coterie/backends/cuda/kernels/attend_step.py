"""Attention of one more token of each sequence: its heads are made, kept in the cache, and meet what is there.

The positions of a sequence are divided among programs by its own length alone, so that a row comes out with the same
bits whatever rows stand beside it. Lengths and stores are read from the device: a recorded step serves all lengths.
Keys and values of earlier tokens are fetched before the kernels that make this token's projections have ended.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.attend import store_tile, weigh
from coterie.backends.cuda.kernels.heads import (
    CAPACITY,
    KEYS,
    N_COLUMNS,
    VALUES,
    made_heads,
    read_heads,
    read_turn,
    store_of,
)
from coterie.backends.cuda.kernels.norms import arrange_row
from coterie.backends.cuda.kernels.softmax import LOG2_E, LOWEST
from coterie.backends.cuda.kernels.tiles import product
from coterie.backends.cuda.launch import let_next_begin, wait_and_let_begin, wait_for_previous


@triton.jit
def share_of(split, position, window, HAS_WINDOW: tl.constexpr, N_SPLITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """(first, end) of the positions of a split, which is empty beyond the last one, and how many splits have some."""
    first = 0
    if HAS_WINDOW:
        first = tl.maximum(0, position + 1 - window)
    n_blocks = tl.cdiv(position + 1 - first, BLOCK_N)
    size = tl.maximum(tl.cdiv(n_blocks, N_SPLITS), 1) * BLOCK_N
    begin = first + split * size
    return begin, tl.minimum(begin + size, position + 1), tl.cdiv(position + 1 - first, size)


@triton.jit
def attend_shares_kernel(
    q, k, v, q_turned, q_weight, k_weight, cos, sin, positions, stores, mixed_parts, state_parts,
    q_row, k_row, v_row, eps, limit, window, scale,
    N_HEADS: tl.constexpr, GROUP: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, D_TURNED: tl.constexpr,
    N_PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr,
    V_NORM: tl.constexpr, HAS_LIMIT: tl.constexpr, HAS_NEW: tl.constexpr, HAS_WINDOW: tl.constexpr,
    LATENT: tl.constexpr, DTYPE: tl.constexpr, N_SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_TURNED: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Program: every n-th split of n programs, HEADS of the heads that share a key-value head, a row.

    mixed_parts f32 [rows, N_HEADS, N_SPLITS, D] and state_parts f32 [rows, N_HEADS, N_SPLITS, 2], highest score and
    sum of the shares, are written for splits that have positions. A row whose position is negative does nothing.
    HAS_NEW: k and v are the token's own, kept by the last split. LATENT: q and q_turned are ready to meet the stores,
    which have latents and keys of D_TURNED numbers, the token's own included.
    """
    first_split, row = tl.program_id(0), tl.program_id(2)
    parts_a_group: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    head = tl.program_id(1) // parts_a_group
    members = tl.program_id(1) % parts_a_group * HEADS + tl.arange(0, HEADS)
    heads = head * GROUP + members
    head_inside = members < GROUP
    position = tl.load(positions + row).to(tl.int32)
    begin, end, n_used = share_of(first_split, position, window, HAS_WINDOW, N_SPLITS, BLOCK_N)
    if (begin >= end) | (position < 0):
        wait_for_previous(EARLY)
        let_next_begin(EARLY)
        return
    capacity = tl.load(stores + row * N_COLUMNS + CAPACITY).to(tl.int32)
    keys = store_of(stores, row, KEYS, DTYPE)
    values = store_of(stores, row, VALUES, DTYPE)
    head_keys = keys + head.to(tl.int64) * capacity * D
    head_values = values + head.to(tl.int64) * capacity * (D_TURNED if LATENT else D)
    # The token's own key and value are not there yet.
    stored = position if HAS_NEW else position + 1
    at = begin + tl.arange(0, BLOCK_N)
    key_block = store_tile(head_keys, at % capacity, at < stored, D, BLOCK_D)
    value_block = store_tile(
        head_values, at % capacity, at < stored, D_TURNED if LATENT else D, BLOCK_TURNED if LATENT else BLOCK_D
    )
    row64 = row.to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    if not LATENT:
        # Turned long ago, by the first kernel of the step.
        cos += row64 * N_PAIRS
        sin += row64 * N_PAIRS
        q_turn = read_turn(q_weight, cos, sin, D, N_PAIRS, INTERLEAVED, Q_NORM, BLOCK_D)
        if HAS_NEW:
            k_turn = read_turn(k_weight, cos, sin, D, N_PAIRS, INTERLEAVED, K_NORM, BLOCK_D)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    if LATENT:
        of_turned = tl.arange(0, BLOCK_TURNED)
        lines = row64 * N_HEADS + heads[:, None]
        queries = tl.load(
            q + lines * D + columns[None, :], mask=head_inside[:, None] & (columns < D)[None, :], other=0.0
        )
        turned = tl.load(
            q_turned + lines * D_TURNED + of_turned[None, :],
            mask=head_inside[:, None] & (of_turned < D_TURNED)[None, :], other=0.0,
        )  # fmt: skip
        queries, turned = queries.to(DTYPE), turned.to(DTYPE)
    else:
        # All is read before anything is made: a norm's sum would keep the reads after it waiting.
        found = read_heads(q + row64 * q_row, heads, head_inside, D, D, N_PAIRS, INTERLEAVED, BLOCK_D)
        if HAS_NEW:
            one, there = head + tl.arange(0, 1), tl.arange(0, 1) == 0
            found_key = read_heads(k + row64 * k_row, one, there, D, D, N_PAIRS, INTERLEAVED, BLOCK_D)
            found_value = read_heads(v + row64 * v_row, one, there, D, D, 0, False, BLOCK_D)
        queries = made_heads(found, q_turn, eps, limit, D, N_PAIRS, Q_NORM, True, HAS_LIMIT).to(DTYPE)
    if HAS_NEW:
        new_key = made_heads(found_key, k_turn, eps, limit, D, N_PAIRS, K_NORM, True, HAS_LIMIT).to(DTYPE)
        new_value = made_heads(found_value, k_turn, eps, limit, D, 0, V_NORM, False, HAS_LIMIT).to(DTYPE)
        if first_split == (n_used - 1) % tl.num_programs(0):
            slot = (position % capacity).to(tl.int64) * D
            tl.store(head_keys + slot + columns[None, :], new_key, mask=(columns < D)[None, :])
            tl.store(head_values + slot + columns[None, :], new_value, mask=(columns < D)[None, :])
    factor = scale * LOG2_E
    for split in range(first_split, n_used, tl.num_programs(0)):
        begin, end, _ = share_of(split, position, window, HAS_WINDOW, N_SPLITS, BLOCK_N)
        after, _, _ = share_of(split + tl.num_programs(0), position, window, HAS_WINDOW, N_SPLITS, BLOCK_N)
        highest = tl.full((HEADS,), LOWEST, tl.float32)
        total = tl.zeros((HEADS,), tl.float32)
        mixed = tl.zeros((HEADS, BLOCK_D), tl.float32)
        for block in range(begin, end, BLOCK_N):
            at = block + tl.arange(0, BLOCK_N)
            if HAS_NEW:  # noqa: SIM102 (only one of the two is known to the compiler)
                # Few blocks have it, and to choose takes nearly as many instructions as all else that is done.
                if block + BLOCK_N > position:
                    is_own = (at == position)[:, None]
                    key_block = tl.where(is_own, new_key, key_block)
                    value_block = tl.where(is_own, new_value, value_block)
            scores = product(queries, tl.trans(key_block))
            if LATENT:
                scores += product(turned, tl.trans(value_block))
            scores = tl.where((at < end)[None, :], scores, float("-inf"))
            shares, highest, total, mixed = weigh(scores, factor, highest, total, mixed)
            mixed += product(shares.to(DTYPE), key_block if LATENT else value_block)
            # The next split's first keys are fetched before this one's share is stored.
            at = tl.where(block + BLOCK_N < end, block + BLOCK_N, after) + tl.arange(0, BLOCK_N)
            key_block = store_tile(head_keys, at % capacity, at < stored, D, BLOCK_D)
            value_block = store_tile(
                head_values, at % capacity, at < stored, D_TURNED if LATENT else D, BLOCK_TURNED if LATENT else BLOCK_D
            )
        parts = (row64 * N_HEADS + heads) * N_SPLITS + split
        tl.store(
            mixed_parts + parts[:, None] * D + columns[None, :], mixed,
            mask=head_inside[:, None] & (columns < D)[None, :],
        )  # fmt: skip
        tl.store(state_parts + parts * 2, highest, mask=head_inside)
        tl.store(state_parts + parts * 2 + 1, total, mask=head_inside)


@triton.jit(do_not_specialize=["n_rows"])
def combine_shares_kernel(
    mixed_parts, state_parts, sinks, positions, out, values, sums, n_rows, window,
    N_HEADS: tl.constexpr, ARRANGED: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_WINDOW: tl.constexpr, D: tl.constexpr,
    N_SPLITS: tl.constexpr, SPLITS: tl.constexpr, CHUNK: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, SOON: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Program: a head of a row. out f32 [rows, N_HEADS, D]; zeros for a row whose position is negative.

    ARRANGED: (group, codes in a unit, parts, whether with sums) for each of `values` and `sums`, where the row goes in
    the order of codes.
    """
    head, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    position = tl.load(positions + row).to(tl.int32)
    _, _, n_used = share_of(0, position, window, HAS_WINDOW, N_SPLITS, BLOCK_N)
    columns = tl.arange(0, BLOCK_D)
    inside = columns < D
    part = (row * N_HEADS + head) * N_SPLITS
    wait_and_let_begin(SOON, EARLY)
    some = tl.arange(0, CHUNK)
    tile = tl.load(
        mixed_parts + (part + some)[:, None] * D + columns[None, :],
        mask=(some < n_used)[:, None] & inside[None, :], other=0.0,
    )  # fmt: skip
    splits = tl.arange(0, SPLITS)
    highest = tl.load(state_parts + (part + splits) * 2, mask=splits < n_used, other=LOWEST)
    totals = tl.load(state_parts + (part + splits) * 2 + 1, mask=splits < n_used, other=0.0)
    top = tl.max(highest, 0)
    if HAS_SINKS:
        sink = tl.load(sinks + head) * LOG2_E
        top = tl.maximum(top, sink)
    total = tl.sum(tl.exp2(highest - top) * totals, 0)
    if HAS_SINKS:
        total += tl.exp2(sink - top)
    mixed = tl.zeros((BLOCK_D,), tl.float32)
    for _ in range(0, n_used, CHUNK):
        weights = tl.exp2(tl.load(state_parts + (part + some) * 2, mask=some < n_used, other=LOWEST) - top)
        mixed += tl.sum(weights[:, None] * tile, 0)
        some += CHUNK
        tile = tl.load(
            mixed_parts + (part + some)[:, None] * D + columns[None, :],
            mask=(some < n_used)[:, None] & inside[None, :], other=0.0,
        )  # fmt: skip
    mixed /= tl.where(position < 0, 1.0, total)
    tl.store(out + (row * N_HEADS + head) * D + columns, mixed, mask=inside)
    for index in tl.static_range(len(ARRANGED)):
        arrange_row(
            mixed, values[index], sums[index], head * D, row, n_rows, D, ARRANGED[index][0], ARRANGED[index][1],
            ARRANGED[index][2], ARRANGED[index][3], N_HEADS * D, BLOCK_D,
        )  # fmt: skip
