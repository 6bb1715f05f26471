"""What grouped-query attention does with projected rows, in two jobs: norms, limits, rotation and a place in the cache
for the heads of a token, then attention (`attention`).
"""

from typing import Any

import numpy as np
from numba import carray

from coterie.backends.cpu.atoms import f32_pointer, i64_pointer, load_f32, load_i64
from coterie.backends.cpu.decoder import attention as a
from coterie.backends.cpu.decoder.frames import Frame, Frames, make_frame, optional_address
from coterie.backends.cpu.decoder.recorded_step import recorded_step
from coterie.backends.cpu.decoder.residual import inverse_rms
from coterie.backends.cpu.jit import njit
from coterie.backends.cpu.pool import Pool, address_of, get_pool, run_phases
from coterie.backends.cpu.prepare import job

# Words of both jobs: those of attention, and behind them these. Addresses: of the projections, 0 for no new keys and
# values; of the tables, f32 [T, PAIRS]; of the norms' weights, or 0; of f32 [2]: an epsilon and a limit.
NEW_QUERIES, NEW_KEYS, NEW_VALUES, COS, SIN, PAIRS, INTERLEAVED, QUERY_NORM, KEY_NORM, BY_HEAD = range(32, 42)
NORMALIZE_VALUES, HAS_LIMIT, NUMBERS = range(42, 45)
N_WORDS = 45
_WORDS = 8
"""Where the words begin in a frame."""
_WORTH_SHARING = 1 << 15
"""Numbers from which a second thread gains more than it costs to wake."""


def attend_rows(
    frames: Frames,
    queries: np.ndarray,
    new: tuple[np.ndarray, np.ndarray] | None,
    spec: Any,
    vectors: Any,
    rows: Any,
    layer: int,
    eps: float,
) -> np.ndarray:
    """`coterie.models.grouped.attend_rows`."""
    projected = np.ascontiguousarray(queries, np.float32)
    keys, values = (None, None) if new is None else (np.ascontiguousarray(part, np.float32) for part in new)
    out = np.empty((len(projected), spec.n_heads * spec.head_dim), np.float32)
    tables = rows.tables[spec.rope]
    for own, start, cache in rows.parts:
        store = cache.layers[layer]
        if new is not None:
            store.reserve(own.stop - own.start)
        parts = (out[own], projected[own], *(None if part is None else part[own] for part in (keys, values)))
        _attend_part(frames, parts, [table[own] for table in tables], store.stores, start, spec, vectors, layer, eps)
    return out


def _attend_part(
    frames: Frames,
    parts: tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None],
    tables: list[np.ndarray],
    stores: tuple[np.ndarray, np.ndarray],
    start: int,
    spec: Any,
    vectors: Any,
    layer: int,
    eps: float,
) -> None:
    """The rows of one sequence, from position `start` on: parts are out, and the projections."""
    out, projected, keys, values = parts
    pool, shape = get_pool(), (len(projected), spec.n_heads, spec.head_dim)
    seen = min(start + len(projected), spec.window or start + len(projected))
    worth = a.worth_sharing(shape, spec.head_dim, seen)
    key = ("heads", shape[0], id(spec), id(vectors.query_norm), id(vectors.key_norm), id(vectors.sinks), eps, worth)
    with pool.lock:
        own = recorded_step()
        position = own.position if own is not None else None
        frame = frames.get(
            pool, key, shape[0], lambda: _make(pool, shape, spec, vectors, eps, tables[0].shape[1], worth, position)
        )
        new_keys, new_values = (projected, projected) if keys is None or values is None else (keys, values)
        _launch(
            pool.block, frame.memory, out, projected, new_keys, new_values, *tables, *stores, keys is not None, start
        )
        frame.record(parts, tables)
        if own is not None:
            own.stores[layer] = frame.memory


def _make(
    pool: Pool,
    shape: tuple[int, int, int],
    spec: Any,
    vectors: Any,
    eps: float,
    n_pairs: int,
    worth: bool,
    position: np.ndarray | None,
) -> Frame:
    n_rows, _, dims = shape
    factors = a.factors_of(spec.scale, spec.n_heads, vectors.sinks)
    function, words, n_units = a.attention_job(pool, shape, (spec.n_kv_heads, 0, dims), spec.window, factors)
    norms = [
        None if vector is None else np.ascontiguousarray(vector, np.float32)
        for vector in (vectors.query_norm, vectors.key_norm)
    ]
    numbers = np.array([eps, 0 if spec.clip is None else spec.clip], np.float32)
    cell = np.zeros(1, np.int64) if position is None else position
    words[a.POSITION] = address_of(cell)
    words += [
        0, 0, 0, 0, 0, n_pairs, spec.rope.interleaved, *map(optional_address, norms), spec.norm_span == "head",
        spec.normalize_values, spec.clip is not None, address_of(numbers),
    ]  # fmt: skip
    jobs = [
        (job("turn_heads", lambda: _turn_heads), words, n_rows, n_rows * spec.n_heads * dims >= _WORTH_SHARING),
        (function, words, n_units, worth),
    ]
    return make_frame(jobs, (factors, numbers, cell, *norms, spec, vectors))


@njit
def place_stores(frame, keys, values):
    """Say where the stores f32 [Hkv, capacity, D] are."""
    words = frame[_WORDS:]
    words[a.KEYS], words[a.VALUES], words[a.CAPACITY] = keys.ctypes.data, values.ctypes.data, keys.shape[1]
    words[a.KEYS_SLOT], words[a.VALUES_SLOT] = 4 * keys.shape[2], 4 * values.shape[2]
    words[a.KEYS_HEAD] = words[a.KEYS_SLOT] * keys.shape[1]
    words[a.VALUES_HEAD] = words[a.VALUES_SLOT] * values.shape[1]


@njit
def _launch(block, frame, out, queries, new_keys, new_values, cos, sin, keys, values, has_new, start):
    words = frame[_WORDS:]
    place_stores(frame, keys, values)
    # Queries are turned into the place of the results, where each unit of attention reads its own before it writes.
    words[a.QUERIES] = words[a.OUT] = out.ctypes.data
    words[NEW_QUERIES], words[COS], words[SIN] = queries.ctypes.data, cos.ctypes.data, sin.ctypes.data
    words[NEW_KEYS] = new_keys.ctypes.data if has_new else 0
    words[NEW_VALUES] = new_values.ctypes.data if has_new else 0
    cell = carray(i64_pointer(words[a.POSITION]), (1,))
    cell[0] = start
    run_phases(block, frame.ctypes.data, 2)


def _turn_heads(w: Any, unit: int, _thread: int) -> None:
    """Unit: the heads of one token. Values come first: where keys serve as values, both are one array."""
    dims, pairs = w[a.KEY_DIMS], w[PAIRS]
    eps, limit = load_f32(w[NUMBERS], 0), load_f32(w[NUMBERS], 1)
    cos = carray(f32_pointer(w[COS] + 4 * pairs * unit), (pairs,))
    sin = carray(f32_pointer(w[SIN] + 4 * pairs * unit), (pairs,))
    slot = (load_i64(w[a.POSITION], 0) + unit) % w[a.CAPACITY]
    if w[NEW_KEYS] != 0:
        at = 4 * unit * w[a.N_KV_HEADS] * dims
        for head in range(w[a.N_KV_HEADS]):
            stored = w[a.VALUES] + head * w[a.VALUES_HEAD] + slot * w[a.VALUES_SLOT]
            out = carray(f32_pointer(stored), (dims,))
            _copy(carray(f32_pointer(w[NEW_VALUES] + at + 4 * head * dims), (dims,)), out)
            if w[NORMALIZE_VALUES] != 0:
                _scale(out, inverse_rms(out, eps))
            if w[HAS_LIMIT] != 0:
                _limit(out, limit)
        x = carray(f32_pointer(w[NEW_KEYS] + at), (w[a.N_KV_HEADS] * dims,))
        _normalise(x, w[KEY_NORM], w[BY_HEAD], dims, eps)
        if w[HAS_LIMIT] != 0:
            _limit(x, limit)
        for head in range(w[a.N_KV_HEADS]):
            stored = w[a.KEYS] + head * w[a.KEYS_HEAD] + slot * w[a.KEYS_SLOT]
            _turn(x[head * dims : (head + 1) * dims], cos, sin, w[INTERLEAVED], carray(f32_pointer(stored), (dims,)))
    at, size = 4 * unit * w[a.N_HEADS] * dims, w[a.N_HEADS] * dims
    x, out = carray(f32_pointer(w[NEW_QUERIES] + at), (size,)), carray(f32_pointer(w[a.QUERIES] + at), (size,))
    _normalise(x, w[QUERY_NORM], w[BY_HEAD], dims, eps)
    if w[HAS_LIMIT] != 0:
        _limit(x, limit)
    for head in range(w[a.N_HEADS]):
        part = slice(head * dims, (head + 1) * dims)
        _turn(x[part], cos, sin, w[INTERLEAVED], out[part])


@njit
def _normalise(x, weight, by_head, dims, eps):
    """The norm of all of x, or of each head, in place; `weight` is an address, 0 for no norm."""
    if weight == 0:
        return
    size = dims if by_head != 0 else x.size
    scale = carray(f32_pointer(weight), (size,))
    for begin in range(0, x.size, size):
        part = x[begin : begin + size]
        factor = inverse_rms(part, eps)
        for i in range(size):
            part[i] = part[i] * factor * scale[i]


@njit
def _turn(x, cos, sin, interleaved, out):
    """out is x [D] with its pairs turned; what no pair has passes through."""
    pairs = cos.size
    if interleaved != 0:
        for i in range(pairs):
            first, second = x[2 * i], x[2 * i + 1]
            out[2 * i] = first * cos[i] - second * sin[i]
            out[2 * i + 1] = second * cos[i] + first * sin[i]
    else:
        for i in range(pairs):
            first, second = x[i], x[i + pairs]
            out[i] = first * cos[i] - second * sin[i]
            out[i + pairs] = second * cos[i] + first * sin[i]
    for i in range(2 * pairs, x.size):
        out[i] = x[i]


@njit
def _copy(x, out):
    for i in range(x.size):
        out[i] = x[i]


@njit
def _scale(x, factor):
    for i in range(x.size):
        x[i] *= factor


@njit
def _limit(x, limit):
    """x between -limit and limit; NaN stays NaN."""
    for i in range(x.size):
        if x[i] > limit:
            x[i] = limit
        elif x[i] < -limit:
            x[i] = -limit
