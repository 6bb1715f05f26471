"""Products of the same rows of activations with one matrix or several, in one launch of the pool.

The rows of all matrices are one list of units, so that short matrices do not wait for each other; activations are made
ready once for all matrices that take them alike. What each matrix gives has the bits that it has in a call of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coterie.backends.cpu import product as p
from coterie.backends.cpu import scratch as s
from coterie.backends.cpu.atoms import load_f32, load_i64, store_f32
from coterie.backends.cpu.gathered import MAX_PREPARED, WORTH_WAKING, chunk_rows
from coterie.backends.cpu.jit import njit
from coterie.backends.cpu.matrix import Matrix
from coterie.backends.cpu.pool import Pool, address_of, get_pool, run_phases
from coterie.backends.cpu.prepare import WORTH_WAKING as WORTH_PREPARING
from coterie.backends.cpu.prepare import X_STRIDE, X, job
from coterie.backends.cpu.recording import recording

_MOST_REMEMBERED = 8
"""Frames of so many rows at most are remembered."""

# A frame: words that all share, among them those of the job `_project`, then the words of the preparations, of the
# matrices, of the phases, and the tables of prepared rows, one a preparation.
PARTS, N_PARTS, N_ROWS, CHUNK, SCRATCH, SCRATCH_STRIDE, SUMS, PHASES, PREPARATIONS, N_PREPARATIONS = range(10)
_HEAD, _PREPARATION_WORDS, _PHASE_WORDS = 16, 16, 4

# Words of a matrix in a frame. COLUMN: the columns of the matrices before it. ADDED: f32 [N] or 0.
FIRST_UNIT, MATRIX, N_COLUMNS, COLUMN, INPUTS, ADDED, OUT = range(7)
_PART_WORDS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Matrices:
    """Matrices [N, K] of one K that the same rows meet, and f32 [N] to add to what each gives, or None.

    frames: what is remembered of calls, by the number of rows, with the generation of the pool's buffers.
    """

    all: tuple[Matrix, ...]
    added: tuple[np.ndarray | None, ...]
    frames: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict)

    @property
    def n_columns(self) -> int:
        """Columns of all products together."""
        return sum(matrix.n_rows for matrix in self.all)


def linear(x: np.ndarray, matrix: Matrix) -> np.ndarray:
    """x [R, K] times one matrix [N, K]; f32 [R, N]."""
    return linears(x, Matrices((matrix,), (None,), matrix.frames))[0]


def linears(x: np.ndarray, matrices: Matrices) -> list[np.ndarray]:
    """x [R, K] times each of the matrices [N, K], plus what is to be added; f32 [R, N] each."""
    rows = np.ascontiguousarray(x, np.float32)
    n_rows = len(rows)
    out = np.empty(n_rows * matrices.n_columns, np.float32)
    out_at, x_at, pool = address_of(out), address_of(rows), get_pool()
    # Whole calls of a product, so that the kernel that a row meets does not depend on where parts begin.
    step = max(1, MAX_PREPARED // (p.MAX_TOKENS * sum(matrix.preparation.row_bytes for matrix in matrices.all)))
    step *= p.MAX_TOKENS
    with pool.lock:
        for begin in range(0, n_rows, step):
            frame = frame_for(pool, matrices, min(step, n_rows - begin))
            launch(pool.block, frame, x_at + begin * rows.strides[0], rows.strides[0], out_at, begin, n_rows)
            record(frame, matrices, rows, out)
    products, begin = [], 0
    for matrix in matrices.all:
        end = begin + n_rows * matrix.n_rows
        products.append(out[begin:end].reshape(n_rows, matrix.n_rows))
        begin = end
    return products


def frame_for(pool: Pool, matrices: Matrices, n_rows: int) -> np.ndarray:
    """What stays the same from call to call with so many rows, remembered for few of them: a token's matrices take some
    tens of microseconds each, and putting the words together in Python took as long.
    """
    held = matrices.frames.get(n_rows)
    if held is not None and held[0] == pool.generation and recording() is None:
        return held[1]
    frame = _make_frame(pool, matrices, n_rows)
    if n_rows <= _MOST_REMEMBERED and recording() is None:
        matrices.frames[n_rows] = (pool.generation, frame)
    return frame


def _make_frame(pool: Pool, matrices: Matrices, n_rows: int) -> np.ndarray:
    preparations = list(dict.fromkeys(matrix.preparation for matrix in matrices.all))
    kind, n_inputs = matrices.all[0].layout.isa, matrices.all[0].n_inputs
    scratch = pool.buffer("scratch", pool.n_threads * s.thread_bytes(kind))
    n_parts, n_preparations = len(matrices.all), len(preparations)
    parts_at = _HEAD + _PREPARATION_WORDS * n_preparations
    phases_at = parts_at + _PART_WORDS * n_parts
    tables_at = phases_at + _PHASE_WORDS * (n_preparations + 1)
    frame = np.zeros(tables_at + n_rows * n_preparations, np.int64)
    at = address_of(frame)
    chunk = chunk_rows(matrices.n_columns, 1, pool.n_threads)
    tables, phases = {}, []
    for index, preparation in enumerate(preparations):
        prepared = pool.buffer(f"prepared {index}" if index else "prepared", n_rows * preparation.row_bytes)
        table, words_at = tables_at + n_rows * index, _HEAD + _PREPARATION_WORDS * index
        frame[table : table + n_rows] = prepared + preparation.row_bytes * np.arange(n_rows)
        tables[preparation] = at + 8 * table
        _put(frame, words_at, preparation.words(0, 0, prepared, n_rows))
        worth = n_rows * n_inputs >= WORTH_PREPARING
        phases += [preparation.function, at + 8 * words_at, -(-n_rows // preparation.rows_a_unit), worth]
    unit, column = 0, 0
    for index, (matrix, added) in enumerate(zip(matrices.all, matrices.added, strict=True)):
        words = [
            unit, matrix.at, matrix.n_rows, column, tables[matrix.preparation],
            0 if added is None else address_of(added), 0,
        ]  # fmt: skip
        _put(frame, parts_at + _PART_WORDS * index, words)
        unit, column = unit + -(-matrix.n_rows // chunk), column + matrix.n_rows
    worth = n_rows * column * n_inputs >= WORTH_WAKING
    _put(frame, phases_at, [*phases, job("project_parts", lambda: _project_parts), at, unit, worth])
    _put(frame, 0, [
        at + 8 * parts_at, n_parts, n_rows, chunk, scratch, s.thread_bytes(kind), s.sums_offset(kind),
        at + 8 * phases_at, at + 8 * _HEAD, n_preparations,
    ])  # fmt: skip
    return frame


def record(frame: np.ndarray, *kept: Any) -> None:
    """Add the jobs of a frame that has just run to the recording that is on, if one is."""
    own = recording()
    if own is not None:
        own.add(int(frame[PHASES]), int(frame[N_PREPARATIONS]) + 1, frame, *kept)


def _put(frame: np.ndarray, place: int, words: Sequence[int]) -> None:
    frame[place : place + len(words)] = words


@njit
def launch(block, frame, x, x_stride, out, begin, n_rows):
    """Run the jobs of a frame for its rows from `begin` on, of n_rows; all but it are integers: the pool's block,
    addresses, strides in bytes. The products stand one behind the other at `out`.
    """
    for index in range(frame[N_PREPARATIONS]):
        words = _HEAD + _PREPARATION_WORDS * index
        frame[words + X], frame[words + X_STRIDE] = x, x_stride
    parts = _HEAD + _PREPARATION_WORDS * frame[N_PREPARATIONS]
    for index in range(frame[N_PARTS]):
        part = parts + _PART_WORDS * index
        frame[part + OUT] = out + 4 * (frame[part + COLUMN] * n_rows + begin * frame[part + N_COLUMNS])
    run_phases(block, frame[PHASES], frame[N_PREPARATIONS] + 1)


@njit
def _part_of(parts, n_parts, unit):
    """The address of the words of the matrix that has this unit."""
    index = n_parts - 1
    while load_i64(parts, _PART_WORDS * index + FIRST_UNIT) > unit:
        index -= 1
    return parts + 8 * _PART_WORDS * index


def _project_parts(a: Any, unit: int, thread: int) -> None:
    """Unit: one chunk of the rows of one matrix."""
    part = _part_of(a[PARTS], a[N_PARTS], unit)
    row = (unit - load_i64(part, FIRST_UNIT)) * a[CHUNK]
    n_columns = load_i64(part, N_COLUMNS)
    count = min(a[CHUNK], n_columns - row)
    scratch = a[SCRATCH] + thread * a[SCRATCH_STRIDE]
    tile = scratch + s.TILE
    following = _part_of(a[PARTS], a[N_PARTS], unit + 1)
    following_row = (unit + 1 - load_i64(following, FIRST_UNIT)) * a[CHUNK]
    s.expect(scratch, load_i64(following, MATRIX), 0, following_row)
    inputs, added = load_i64(part, INPUTS), load_i64(part, ADDED)
    for begin in range(0, a[N_ROWS], p.MAX_TOKENS):
        n_tokens = min(p.MAX_TOKENS, a[N_ROWS] - begin)
        matrix = load_i64(part, MATRIX)
        s.multiply(scratch, scratch + a[SUMS], matrix, 0, row, count, inputs + 8 * begin, n_tokens, tile)
        for token in range(n_tokens):
            out = load_i64(part, OUT) + 4 * ((begin + token) * n_columns + row)
            line = tile + 4 * p.MAX_ROWS * token
            if added == 0:
                for index in range(count):
                    store_f32(out, index, load_f32(line, index))
            else:
                for index in range(count):
                    store_f32(out, index, load_f32(line, index) + load_f32(added, row + index))
