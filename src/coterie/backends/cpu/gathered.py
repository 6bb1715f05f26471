"""Products with a stack of packed or plain matrices: rows of activations, each with the matrix that it meets."""

from typing import Any

import numpy as np

from coterie.backends.cpu import product as p
from coterie.backends.cpu import scratch as s
from coterie.backends.cpu.atoms import load_f32, load_i64, store_f32
from coterie.backends.cpu.jit import njit
from coterie.backends.cpu.matrix import Matrix
from coterie.backends.cpu.pool import Pool, address_of, get_pool
from coterie.backends.cpu.prepare import job

MATRIX, GROUPS, N_CHUNKS, CHUNK, N_ROWS, INPUTS, OUTPUTS, SCRATCH, SCRATCH_STRIDE, SUMS, LAST_GROUP = range(11)

WORTH_WAKING = 1 << 18
"""Products from which a second thread gains more than it costs to wake: some five microseconds of work."""

MAX_PREPARED = 256 << 20
"""Bytes of prepared activations at a time; longer inputs go through in parts."""


def _project(a: Any, unit: int, thread: int) -> None:
    """Unit: one chunk of the matrix's rows for one group. Groups are (expert, first place, count); INPUTS and OUTPUTS
    hold an address for each place.
    """
    group, chunk = unit // a[N_CHUNKS], unit % a[N_CHUNKS]
    expert, first, count = s.group_at(a[GROUPS], group)
    row = chunk * a[CHUNK]
    n_rows = min(a[CHUNK], a[N_ROWS] - row)
    scratch = a[SCRATCH] + thread * a[SCRATCH_STRIDE]
    tile = scratch + s.TILE
    following = unit + 1
    following_expert = load_i64(a[GROUPS], 3 * min(following // a[N_CHUNKS], a[LAST_GROUP]))
    s.expect(scratch, a[MATRIX], following_expert, following % a[N_CHUNKS] * a[CHUNK])
    for begin in range(first, first + count, p.MAX_TOKENS):
        n_tokens = min(p.MAX_TOKENS, first + count - begin)
        s.multiply(scratch, scratch + a[SUMS], a[MATRIX], expert, row, n_rows, a[INPUTS] + 8 * begin, n_tokens, tile)
        for token in range(n_tokens):
            out = load_i64(a[OUTPUTS], begin + token) + 4 * row
            line = tile + 4 * p.MAX_ROWS * token
            for index in range(n_rows):
                store_f32(out, index, load_f32(line, index))


@njit
def chunk_rows(n_rows, n_groups, n_threads):
    """Rows in a unit: small enough that every thread has several units, large enough that panels pay."""
    wanted = n_rows * n_groups // (8 * n_threads)
    return max(16, min(p.MAX_ROWS, wanted // 16 * 16))


def _run(
    pool: Pool, matrix: Matrix, x: np.ndarray, n_pairs: int, groups: int, n_groups: int, tables: tuple[int, int]
) -> None:
    """Prepare x and multiply: `tables` are the addresses of INPUTS (into the buffer "prepared") and of OUTPUTS."""
    chunk = chunk_rows(matrix.n_rows, n_groups, pool.n_threads)
    n_chunks = -(-matrix.n_rows // chunk)
    kind = matrix.layout.isa
    scratch_stride = s.thread_bytes(kind)
    scratch = pool.buffer("scratch", pool.n_threads * scratch_stride)
    words = [
        matrix.at, groups, n_chunks, chunk, matrix.n_rows, *tables, scratch, scratch_stride, s.sums_offset(kind),
        n_groups - 1,
    ]  # fmt: skip
    arguments = pool.place(words)
    worth = n_pairs * matrix.n_rows * matrix.n_inputs >= WORTH_WAKING
    prepare = matrix.preparation.phase(pool, x, pool.buffer("prepared", 0))
    pool.run(prepare, (job("project", _the_job), arguments, n_groups * n_chunks, worth))


def _the_job() -> Any:
    return _project


def group_rows(experts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order [R], groups int64 [G, 3]) of the experts [R] that rows want; experts without rows have no group."""
    order = np.argsort(experts, kind="stable")
    chosen, first, counts = np.unique(experts[order], return_index=True, return_counts=True)
    return order, np.ascontiguousarray(np.stack([chosen, first, counts], 1), np.int64)


def gathered(x: np.ndarray, matrix: Matrix, rows: np.ndarray, experts: np.ndarray) -> np.ndarray:
    """x [B, K][rows] times the stack's matrices [experts]: f32 [R, N]; rows and experts int64 [R]."""
    out = np.empty((len(rows), matrix.n_rows), np.float32)
    pool = get_pool()
    step = max(1, MAX_PREPARED // matrix.preparation.row_bytes)
    with pool.lock:
        for begin in range(0, len(rows), step):
            part = slice(begin, begin + step)
            order, groups = group_rows(experts[part])
            # Only the rows of x that this part needs are prepared.
            needed, local = np.unique(rows[part], return_inverse=True)
            needed_x = np.ascontiguousarray(x if len(needed) == len(x) else x[needed], np.float32)
            prepared = pool.buffer("prepared", len(needed) * matrix.preparation.row_bytes)
            inputs = prepared + matrix.preparation.row_bytes * local[order].astype(np.int64)
            outputs = address_of(out) + out.strides[0] * (begin + order.astype(np.int64))
            tables = (address_of(inputs), address_of(outputs))
            _run(pool, matrix, needed_x, len(order), address_of(groups), len(groups), tables)
    return out
