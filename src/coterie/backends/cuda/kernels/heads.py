"""From projections to heads: norm, limit, rotary embedding (Su et al., RoFormer, 2021), and a place in the cache.

A store of keys or values is [heads, capacity, D], and position p stands at slot p % capacity. Where the stores of a
layer are is said by a table on the device, int64 [sequences, 4]: addresses of keys and of values, and the capacity; so
a recorded step finds a store that has grown. The fourth column keeps rows of the table at multiples of 32 bytes, for
which kernels would otherwise be compiled apart.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import let_next_begin, wait_for_previous

KEYS: tl.constexpr = tl.constexpr(0)
VALUES: tl.constexpr = tl.constexpr(1)
CAPACITY: tl.constexpr = tl.constexpr(2)
N_COLUMNS: tl.constexpr = tl.constexpr(4)
"""Columns of a table of stores, and how many there are."""


@triton.jit
def pairing(columns, N_PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """For each of the first 2 * N_PAIRS columns: its partner, the number of their pair, and whether it comes first."""
    if INTERLEAVED:
        return columns ^ 1, columns // 2, columns % 2 == 0
    first = columns < N_PAIRS
    return tl.where(first, columns + N_PAIRS, columns - N_PAIRS), columns % N_PAIRS, first


@triton.jit
def read_turn(
    weight, cos, sin, D: tl.constexpr, N_PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """What `made_heads` takes besides the heads, vectors [BLOCK_D]: a norm's weights, those of the columns' partners,
    cosines, and sines with their signs.
    """
    columns = tl.arange(0, BLOCK_D)
    turns = columns < 2 * N_PAIRS
    scale = tl.zeros((BLOCK_D,), tl.float32)
    scale_across, c, s = scale, scale, scale
    if HAS_WEIGHT:
        scale = tl.load(weight + columns, mask=columns < D, other=0.0)
    if N_PAIRS > 0:
        partner, pair, first = pairing(columns, N_PAIRS, INTERLEAVED)
        if HAS_WEIGHT:
            scale_across = tl.load(weight + partner, mask=turns, other=0.0)
        c = tl.load(cos + pair, mask=turns, other=1.0)
        s = tl.load(sin + pair, mask=turns, other=0.0)
        s = tl.where(first, -s, s)
    return scale, scale_across, c, s


@triton.jit
def read_heads(
    x, rows, row_inside, x_stride, D: tl.constexpr, N_PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Heads [rows, BLOCK_D] of one token in f32, and the partner of each of their numbers."""
    columns = tl.arange(0, BLOCK_D)
    mask = row_inside[:, None] & (columns < D)[None, :]
    lines = x + rows[:, None] * x_stride
    values = tl.load(lines + columns[None, :], mask=mask, other=0.0).to(tl.float32)
    across = values
    if N_PAIRS > 0:
        partner, _, _ = pairing(columns, N_PAIRS, INTERLEAVED)
        across_mask = mask & (columns < 2 * N_PAIRS)[None, :]
        across = tl.load(lines + partner[None, :], mask=across_mask, other=0.0).to(tl.float32)
    return values, across


@triton.jit
def _scaled(values, factor, weight, limit, HAS_NORM: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_LIMIT: tl.constexpr):
    """values times a norm's factor and weight, between -limit and limit."""
    if HAS_NORM:
        values *= factor
        if HAS_WEIGHT:
            values *= weight[None, :]
    if HAS_LIMIT:
        values = tl.minimum(tl.maximum(values, -limit), limit)
    return values


@triton.jit
def made_heads(
    heads, turn, eps, limit, D: tl.constexpr, N_PAIRS: tl.constexpr, HAS_NORM: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_LIMIT: tl.constexpr,
):  # fmt: skip
    """What `read_heads` gives: x / rms(x) * weight, between -limit and limit, pairs turned.

    Pairs are (i, i + N_PAIRS), or (2i, 2i + 1) where interleaved, of the first 2 * N_PAIRS numbers.
    """
    values, across = heads
    scale, scale_across, c, s = turn
    factor = 1.0
    if HAS_NORM:
        factor = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(values * values, 1) / D + eps))[:, None]
    values = _scaled(values, factor, scale, limit, HAS_NORM, HAS_WEIGHT, HAS_LIMIT)
    if N_PAIRS > 0:
        across = _scaled(across, factor, scale_across, limit, HAS_NORM, HAS_WEIGHT, HAS_LIMIT)
        values = values * c[None, :] + across * s[None, :]
    return values


@triton.jit
def head_tile(
    x, rows, row_inside, x_stride, weight, cos, sin, eps, limit,
    D: tl.constexpr, N_PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr, HAS_NORM: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_LIMIT: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Heads [rows, BLOCK_D] of one token, read and made."""
    turn = read_turn(weight, cos, sin, D, N_PAIRS, INTERLEAVED, HAS_NORM and HAS_WEIGHT, BLOCK_D)
    heads = read_heads(x, rows, row_inside, x_stride, D, N_PAIRS, INTERLEAVED, BLOCK_D)
    return made_heads(heads, turn, eps, limit, D, N_PAIRS, HAS_NORM, HAS_WEIGHT, HAS_LIMIT)


@triton.jit
def store_of(stores, sequence, WHICH: tl.constexpr, DTYPE: tl.constexpr):
    """The pointer to a sequence's keys or values."""
    return tl.load(stores + sequence * N_COLUMNS + WHICH).to(tl.pointer_type(DTYPE))


@triton.jit
def turn_heads_kernel(
    x, out, cos, sin, n_heads, x_token, x_head,
    D: tl.constexpr, N_PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr, BLOCK_D: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Program: HEADS heads of one token, turned; out is [tokens, heads, D] in f32."""
    token, heads = tl.program_id(0).to(tl.int64), tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    inside = heads < n_heads
    values = head_tile(
        x + token * x_token, heads, inside, x_head, x, cos + token * N_PAIRS, sin + token * N_PAIRS, 0.0, 0.0,
        D, N_PAIRS, INTERLEAVED, False, False, False, BLOCK_D,
    )  # fmt: skip
    columns = tl.arange(0, BLOCK_D)
    place = out + (token * n_heads + heads[:, None]) * D + columns[None, :]
    tl.store(place, values, mask=inside[:, None] & (columns < D)[None, :])


@triton.jit
def keep_heads(
    values, store, position, capacity, heads, inside,
    D: tl.constexpr, BLOCK_D: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Put heads [heads, BLOCK_D] of the token at `position` where they belong in a store."""
    columns = tl.arange(0, BLOCK_D)
    slots = heads.to(tl.int64) * capacity + position % capacity
    place = store + slots[:, None] * D + columns[None, :]
    tl.store(place, values.to(DTYPE), mask=inside[:, None] & (columns < D)[None, :])


@triton.jit
def place_heads_kernel(
    q, k, v, q_weight, k_weight, cos, sin, positions, sequences, stores, out, q_token, k_token, v_token, eps, limit,
    N_HEADS: tl.constexpr, N_KV_HEADS: tl.constexpr, D: tl.constexpr, N_PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr, V_NORM: tl.constexpr,
    HAS_LIMIT: tl.constexpr, DTYPE: tl.constexpr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Program: HEADS heads of one token. Queries go to out [tokens, N_HEADS, D], keys and values into the stores.

    A launch for queries alone has as many programs a token as their heads need.
    """
    token, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK_D)
    q_blocks: tl.constexpr = (N_HEADS + HEADS - 1) // HEADS
    kv_blocks: tl.constexpr = (N_KV_HEADS + HEADS - 1) // HEADS
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    cos += token * N_PAIRS
    sin += token * N_PAIRS
    if block < q_blocks:
        heads = block * HEADS + tl.arange(0, HEADS)
        inside = heads < N_HEADS
        values = head_tile(
            q + token * q_token, heads, inside, D, q_weight, cos, sin, eps, limit,
            D, N_PAIRS, INTERLEAVED, Q_NORM, True, HAS_LIMIT, BLOCK_D,
        )  # fmt: skip
        place = out + (token * N_HEADS + heads[:, None]) * D + columns[None, :]
        tl.store(place, values.to(DTYPE), mask=inside[:, None] & (columns < D)[None, :])
    else:
        sequence, position = tl.load(sequences + token), tl.load(positions + token).to(tl.int32)
        capacity = tl.load(stores + sequence * N_COLUMNS + CAPACITY).to(tl.int32)
        if block < q_blocks + kv_blocks:
            heads = (block - q_blocks) * HEADS + tl.arange(0, HEADS)
            inside = heads < N_KV_HEADS
            keys = head_tile(
                k + token * k_token, heads, inside, D, k_weight, cos, sin, eps, limit,
                D, N_PAIRS, INTERLEAVED, K_NORM, True, HAS_LIMIT, BLOCK_D,
            )  # fmt: skip
            store = store_of(stores, sequence, KEYS, DTYPE)
            keep_heads(keys, store, position, capacity, heads, inside, D, BLOCK_D, DTYPE)
        else:
            heads = (block - q_blocks - kv_blocks) * HEADS + tl.arange(0, HEADS)
            inside = heads < N_KV_HEADS
            kept = head_tile(
                v + token * v_token, heads, inside, D, k_weight, cos, sin, eps, limit,
                D, 0, False, V_NORM, False, HAS_LIMIT, BLOCK_D,
            )  # fmt: skip
            store = store_of(stores, sequence, VALUES, DTYPE)
            keep_heads(kept, store, position, capacity, heads, inside, D, BLOCK_D, DTYPE)
