"""Products with packed or plain matrices: rows of activations, each with the matrix that it meets."""

from typing import Any

import numpy as np

from coterie.backends.cpu import product as p
from coterie.backends.cpu import scratch as s
from coterie.backends.cpu.atoms import load_f32, load_i64, store_f32
from coterie.backends.cpu.matrix import Matrix, matrix_of
from coterie.backends.cpu.pool import Pool, address_of, get_pool
from coterie.backends.cpu.prepare import job, prepare_phase, row_bytes
from coterie.formats import Packed

MATRIX, GROUPS, N_CHUNKS, CHUNK, N_ROWS, INPUTS, OUTPUTS, SCRATCH, SCRATCH_STRIDE, SUMS = range(10)

_MAX_PREPARED = 256 << 20
"""Bytes of prepared activations at a time; longer inputs go through in parts."""


def _project(a: Any, unit: int, thread: int) -> None:
    """Unit: one chunk of the matrix's rows for one group. Groups are (expert, first place, count); INPUTS and OUTPUTS
    hold an address for each place.
    """
    group, chunk = unit // a[N_CHUNKS], unit % a[N_CHUNKS]
    expert, first, count = (
        load_i64(a[GROUPS], 3 * group),
        load_i64(a[GROUPS], 3 * group + 1),
        load_i64(a[GROUPS], 3 * group + 2),
    )
    row = chunk * a[CHUNK]
    n_rows = min(a[CHUNK], a[N_ROWS] - row)
    scratch = a[SCRATCH] + thread * a[SCRATCH_STRIDE]
    tile = scratch + s.TILE
    for begin in range(first, first + count, p.MAX_TOKENS):
        n_tokens = min(p.MAX_TOKENS, first + count - begin)
        s.multiply(scratch, scratch + a[SUMS], a[MATRIX], expert, row, n_rows, a[INPUTS] + 8 * begin, n_tokens, tile)
        for token in range(n_tokens):
            out = load_i64(a[OUTPUTS], begin + token) + 4 * row
            line = tile + 4 * p.MAX_ROWS * token
            for index in range(n_rows):
                store_f32(out, index, load_f32(line, index))


def chunk_rows(n_rows: int, n_groups: int, n_threads: int) -> int:
    """Rows in a unit: small enough that every thread has several units, large enough that panels pay."""
    wanted = n_rows * n_groups // (8 * n_threads)
    return max(16, min(p.MAX_ROWS, wanted // 16 * 16))


def project(
    pool: Pool, matrix: Matrix, x: np.ndarray, out: np.ndarray, groups: np.ndarray, lhs: np.ndarray, places: np.ndarray
) -> None:
    """out[places[i]] = x[lhs[i]] times the matrix of i's group.

    x f32 [B, K], out f32 [R, N] contiguous; groups int64 [G, 3] of (expert, first, count) over i; lhs, places integers
    [R].
    """
    prepared_stride = row_bytes(matrix.layout, matrix.n_inputs)
    prepared = pool.buffer("prepared", len(x) * prepared_stride)
    inputs = prepared + prepared_stride * lhs.astype(np.int64)
    outputs = address_of(out) + out.strides[0] * places.astype(np.int64)
    chunk = chunk_rows(matrix.n_rows, len(groups), pool.n_threads)
    n_chunks = -(-matrix.n_rows // chunk)
    scratch_stride = s.thread_bytes(matrix.layout.isa)
    arguments = np.array(
        [
            address_of(matrix.words), address_of(groups), n_chunks, chunk, matrix.n_rows, address_of(inputs),
            address_of(outputs), pool.buffer("scratch", pool.n_threads * scratch_stride), scratch_stride,
            s.sums_offset(matrix.layout.isa),
        ],
        np.int64,
    )  # fmt: skip
    units = len(groups) * n_chunks
    pool.run(prepare_phase(matrix.layout, x, prepared), (job("project", lambda: _project), arguments, units))


def linear(x: np.ndarray, matrix: Matrix) -> np.ndarray:
    """x [R, K] times one matrix [N, K]; f32 [R, N]."""
    rows = np.ascontiguousarray(x, np.float32)
    out = np.empty((len(rows), matrix.n_rows), np.float32)
    pool = get_pool()
    step = max(1, _MAX_PREPARED // row_bytes(matrix.layout, matrix.n_inputs))
    with pool.hold():
        for begin in range(0, len(rows), step):
            part = rows[begin : begin + step]
            every = np.arange(len(part))
            groups = np.array([[0, 0, len(part)]], np.int64)
            project(pool, matrix, part, out[begin : begin + step], groups, every, every)
    return out


def matrix_for(weight: Packed | np.ndarray) -> Matrix:
    """`matrix_of`, remembered by a Packed for the next call."""
    if not isinstance(weight, Packed):
        return matrix_of(weight)
    from coterie.backends.cpu import isa

    name = f"cpu.matrix.{isa.current().name}"
    matrix = weight.derived.get(name)
    if matrix is None:
        matrix = weight.derived.setdefault(name, matrix_of(weight))
    return matrix


def group_rows(experts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order [R], groups int64 [G, 3]) of the experts [R] that rows want; experts without rows have no group."""
    order = np.argsort(experts, kind="stable")
    chosen, first, counts = np.unique(experts[order], return_index=True, return_counts=True)
    return order, np.ascontiguousarray(np.stack([chosen, first, counts], 1), np.int64)


def gathered(x: np.ndarray, matrix: Matrix, rows: np.ndarray, experts: np.ndarray) -> np.ndarray:
    out = np.empty((len(rows), matrix.n_rows), np.float32)
    pool = get_pool()
    step = max(1, _MAX_PREPARED // row_bytes(matrix.layout, matrix.n_inputs))
    with pool.hold():
        for begin in range(0, len(rows), step):
            part = slice(begin, begin + step)
            order, groups = group_rows(experts[part])
            # Only the rows of x that this part needs are prepared.
            needed, local = np.unique(rows[part], return_inverse=True)
            needed_x = np.ascontiguousarray(x if len(needed) == len(x) else x[needed], np.float32)
            project(pool, matrix, needed_x, out[part], groups, local[order], order)
    return out
