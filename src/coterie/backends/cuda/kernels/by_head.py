"""Attention over latents: each head's own matrix before and behind it, and latents kept in the cache."""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.heads import CAPACITY, KEYS, N_COLUMNS, VALUES, store_of
from coterie.backends.cuda.kernels.tiles import product
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit(do_not_specialize=["n_rows"])
def multiply_by_head_kernel(
    x, weights, out, n_rows, x_row, x_head,
    N_HEADS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Program: BLOCK_M rows of a head, BLOCK_N of its columns. x [rows, heads, K] times weights [heads, N, K], in f32,
    into out [rows, heads, N]; a row's bits do not depend on the other rows.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    head = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_inside, column_inside = (rows < n_rows)[:, None], columns < N
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    lines = x + rows.to(tl.int64)[:, None] * x_row + head * x_head
    for first in range(0, K, BLOCK_K):
        depth = first + tl.arange(0, BLOCK_K)
        inside = depth < K
        some = tl.load(lines + depth[None, :], mask=row_inside & inside[None, :], other=0.0)
        matrix = tl.load(
            weights + (head * N + columns)[None, :] * K + depth[:, None],
            mask=inside[:, None] & column_inside[None, :], other=0.0,
        )  # fmt: skip
        total += product(some, matrix)
    place = out + (rows.to(tl.int64)[:, None] * N_HEADS + head) * N + columns[None, :]
    tl.store(place, total, mask=row_inside & column_inside[None, :])


@triton.jit
def keep_latents_kernel(
    latents, keys, positions, sequences, stores, RANK: tl.constexpr, D: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_RANK: tl.constexpr, BLOCK_D: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Program: the latent [RANK] and the turned key [D] of a token go where they belong in its sequence's stores."""
    token = tl.program_id(0).to(tl.int64)
    of_latent, of_key = tl.arange(0, BLOCK_RANK), tl.arange(0, BLOCK_D)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    position = tl.load(positions + token)
    if position >= 0:
        sequence = tl.load(sequences + token)
        slot = position % tl.load(stores + sequence * N_COLUMNS + CAPACITY)
        latent = tl.load(latents + token * RANK + of_latent, mask=of_latent < RANK, other=0.0)
        key = tl.load(keys + token * D + of_key, mask=of_key < D, other=0.0)
        kept = store_of(stores, sequence, KEYS, DTYPE) + slot * RANK + of_latent
        tl.store(kept, latent.to(DTYPE), mask=of_latent < RANK)
        kept = store_of(stores, sequence, VALUES, DTYPE) + slot * D + of_key
        tl.store(kept, key.to(DTYPE), mask=of_key < D)
