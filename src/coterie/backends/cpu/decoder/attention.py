"""Causal grouped-query attention over a cache, in f32, on the pool.

A unit of work is a key-value head and some queries: their rows, one for each query and head of the group, meet the keys
and values block by block, with a softmax that is corrected as larger scores turn up (Milakov and Gimelshein, 2018; Dao
et al., FlashAttention, 2022). So scores exist for a block only, and each unit reads its keys and values once.

Position p stands at slot p % capacity of the cache. A store that holds everything is never so full that this wraps; a
sliding window's store is a ring, whose blocks end where it wraps.
"""

import functools
import math
from typing import Any

import numba
import numpy as np
from numba import types

from coterie.backends.cpu import isa
from coterie.backends.cpu.atoms import load_f32, load_i64, store_f32
from coterie.backends.cpu.gathered import WORTH_WAKING
from coterie.backends.cpu.isa import ISAS
from coterie.backends.cpu.kernels.attend import (
    DOT_ROWS,
    TILE_ROWS,
    dot_rows,
    exponentials,
    highest_of,
    outer_tile,
    scale_row,
    tile_width,
    transpose_square,
)
from coterie.backends.cpu.pool import Pool, address_of, get_pool
from coterie.backends.cpu.prepare import job
from coterie.backends.cpu.recording import not_recorded

QUERIES, KEYS, KEYS_HEAD, KEYS_SLOT, VALUES, VALUES_HEAD, VALUES_SLOT = range(7)
OUT, KEY_DIMS, VALUE_DIMS, CAPACITY, N_HEADS, GROUP, N_TOKENS, POSITION, WINDOW = range(7, 16)
TOKENS_A_UNIT, N_UNITS, N_KV_HEADS, FACTORS, SCRATCH, SCRATCH_STRIDE = range(16, 22)
ROWS, SCORES, MIXED, STATE, PANEL, COPY = range(22, 28)
LANES, WIDTH, BLOCK_WIDTH, PADDED_VALUES = range(28, 32)
N_WORDS = 32

_BLOCK = 64
"""Keys that are met at a time."""
_MOST_ROWS, _ROW_NUMBERS = 192, 24_576
"""Rows of a unit, and the numbers in them: enough to be worth a block's transposition, few enough for a cache."""
_EVERYTHING = 1 << 62
_LOWEST = -1e30
"""Where the highest score begins: finite, so that rows that have seen nothing yet make no NaN."""


def attend(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    start: int,
    window: int | None,
    scale: float,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    not_recorded()
    n_tokens, n_heads, _ = queries.shape
    queries, position = np.ascontiguousarray(queries, np.float32), np.array([start], np.int64)
    out = np.empty((n_tokens, n_heads, values.shape[-1]), np.float32)
    pool, factors = get_pool(), factors_of(scale, n_heads, sinks)
    seen = min(start + n_tokens, window or start + n_tokens)
    with pool.lock:
        function, words, n_units = attention_job(pool, queries.shape, values.shape, window, factors)
        words[QUERIES], words[OUT], words[POSITION] = address_of(queries), address_of(out), address_of(position)
        words[KEYS : VALUES_SLOT + 1] = [
            address_of(keys), *keys.strides[:2], address_of(values), *values.strides[:2],
        ]  # fmt: skip
        pool.run((function, pool.place(words), n_units, worth_sharing(queries.shape, values.shape[-1], seen)))
    return out


def attention_job(
    pool: Pool,
    queries: tuple[int, int, int],
    values: tuple[int, int, int],
    window: int | None,
    factors: np.ndarray,
) -> tuple[int, list[int], int]:
    """The job, its words but for the places of arrays and the position, and its units: for queries [T, Hq, D] and a
    store of values [Hkv, capacity, Dv]. POSITION is the address of an int64; the pool must be held.
    """
    (n_tokens, n_heads, key_dims), (n_kv_heads, capacity, value_dims) = queries, values
    group, current = n_heads // n_kv_heads, isa.current()
    tokens_a_unit = max(1, min(n_tokens, min(_MOST_ROWS, _ROW_NUMBERS // key_dims) // group))
    n_units = -(-n_tokens // tokens_a_unit) * n_kv_heads
    width, index = tile_width(current), ISAS.index(current)
    places, stride = _scratch(tokens_a_unit * group, key_dims, value_dims, width)
    words = [
        0, 0, 0, 0, 0, 0, 0, 0, key_dims, value_dims, capacity, n_heads, group, n_tokens, 0, window or _EVERYTHING,
        tokens_a_unit, n_units, n_kv_heads, address_of(factors), pool.buffer("attention", pool.n_threads * stride),
        stride, *places, current.lanes, width, _padded(_BLOCK, width), _padded(value_dims, width),
    ]  # fmt: skip
    return job(f"attend.{index}", lambda: _make_job(index)), words, n_units


def worth_sharing(queries: tuple[int, int, int], value_dims: int, seen: int) -> bool:
    """Whether a second thread gains more by helping queries [T, Hq, D] with so many positions than it costs to wake."""
    n_tokens, n_heads, key_dims = queries
    return n_tokens * n_heads * seen * (key_dims + value_dims) >= WORTH_WAKING


def factors_of(scale: float, n_heads: int, sinks: np.ndarray | None) -> np.ndarray:
    """f32 [Hq + 1]: sinks, which take no share of any softmax where there are none, and the scale behind them."""
    if sinks is None:
        return _without_sinks(scale, n_heads)
    return np.append(sinks, np.float32(scale)).astype(np.float32)


@functools.cache
def _without_sinks(scale: float, n_heads: int) -> np.ndarray:
    return np.append(np.full(n_heads, -np.inf, np.float32), np.float32(scale))


@functools.cache
def _scratch(n_rows: int, key_dims: int, value_dims: int, width: int) -> tuple[tuple[int, ...], int]:
    """Where a thread's parts begin (rows, scores, mixed values, state, panel, copy of values), and all their bytes."""
    block, padded = _padded(_BLOCK, width), _padded(value_dims, width)
    sizes = (n_rows * key_dims, n_rows * block, n_rows * padded, 2 * n_rows, key_dims * block, _BLOCK * padded)
    places = [0]
    for size in sizes:
        places.append(places[-1] + _padded(4 * size, 64))
    return tuple(places[:-1]), _padded(places[-1], 4096)


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@numba.njit
def _score(index: Any, a: Any, n_rows: Any, keys: Any, count: Any, scratch: Any) -> None:
    """Scores of all rows with `count` keys, whose rows begin at `keys`."""
    numba.literally(index)
    lanes, width, block_width = a[LANES], a[WIDTH], a[BLOCK_WIDTH]
    rows, scores, panel = scratch + a[ROWS], scratch + a[SCORES], scratch + a[PANEL]
    dims, stride = a[KEY_DIMS], 4 * a[KEY_DIMS]
    if n_rows <= 2 * DOT_ROWS or dims % lanes != 0:
        for key in range(count):
            for row in range(0, n_rows, DOT_ROWS):
                dot_rows(
                    index, min(DOT_ROWS, n_rows - row), rows + row * stride, stride, keys + key * a[KEYS_SLOT],
                    dims, scores + 4 * (row * block_width + key), 4 * block_width,
                )  # fmt: skip
        return
    for key in range(0, count, lanes):
        # The last square may begin earlier: keys behind the block are not there to be read.
        first = min(key, max(0, count - lanes))
        for dim in range(0, dims, lanes):
            if count < lanes:
                for i in range(dim, dim + lanes):
                    for j in range(count):
                        store_f32(panel, i * block_width + j, load_f32(keys + j * a[KEYS_SLOT], i))
            else:
                source = keys + first * a[KEYS_SLOT] + 4 * dim
                transpose_square(index, source, a[KEYS_SLOT], panel + 4 * (dim * block_width + first), 4 * block_width)
    for row in range(0, n_rows, TILE_ROWS):
        for column in range(0, count, width):
            outer_tile(
                index, min(TILE_ROWS, n_rows - row), rows + row * stride, stride, panel + 4 * column,
                4 * block_width, scores + 4 * (row * block_width + column), 4 * block_width, dims, 1,
            )  # fmt: skip


@numba.njit
def _share(
    index: Any, a: Any, n_rows: Any, first_token: Any, position: Any, count: Any, scratch: Any, fresh: Any
) -> None:
    """Scores of `count` positions from `position` on become shares; what was mixed before is scaled to match."""
    numba.literally(index)
    lanes, block_width, mixed_stride = a[LANES], a[BLOCK_WIDTH], 4 * a[PADDED_VALUES]
    scores, mixed, state = scratch + a[SCORES], scratch + a[MIXED], scratch + a[STATE]
    start = load_i64(a[POSITION], 0)
    n_padded = (count + lanes - 1) // lanes * lanes
    for row in range(n_rows):
        line = scores + 4 * row * block_width
        query = start + first_token + row // a[GROUP]
        hidden_before = max(0, min(count, query + 1 - a[WINDOW] - position))
        visible = max(hidden_before, min(count, query + 1 - position))
        for j in range(hidden_before):
            store_f32(line, j, types.float32(-np.inf))
        for j in range(visible, n_padded):
            store_f32(line, j, types.float32(-np.inf))
        before = load_f32(state, 2 * row)
        highest = highest_of(index, line, n_padded, before)
        total = exponentials(index, line, n_padded, highest)
        if highest > before and fresh == 0:
            correction = types.float32(math.exp(before - highest))
            total += correction * load_f32(state, 2 * row + 1)
            scale_row(index, mixed + row * mixed_stride, mixed_stride // 4, correction, mixed + row * mixed_stride)
        elif fresh == 0:
            total += load_f32(state, 2 * row + 1)
        store_f32(state, 2 * row, highest)
        store_f32(state, 2 * row + 1, total)


@numba.njit
def _mix(index: Any, a: Any, n_rows: Any, values: Any, count: Any, scratch: Any, fresh: Any) -> None:
    """Add the shares of `count` values, whose rows begin at `values`."""
    numba.literally(index)
    width, block_width, padded = a[WIDTH], a[BLOCK_WIDTH], a[PADDED_VALUES]
    scores, mixed, copy = scratch + a[SCORES], scratch + a[MIXED], scratch + a[COPY]
    source, source_stride = values, a[VALUES_SLOT]
    if padded != a[VALUE_DIMS]:
        for j in range(count):
            for i in range(padded):
                inside = i < a[VALUE_DIMS]
                value = load_f32(values + j * a[VALUES_SLOT], i) if inside else types.float32(0.0)
                store_f32(copy, j * padded + i, value)
        source, source_stride = copy, 4 * padded
    for column in range(0, padded, width):
        for row in range(0, n_rows, TILE_ROWS):
            outer_tile(
                index, min(TILE_ROWS, n_rows - row), scores + 4 * row * block_width, 4 * block_width,
                source + 4 * column, source_stride, mixed + 4 * (row * padded + column), 4 * padded, count, fresh,
            )  # fmt: skip


@numba.njit
def _begin_rows(index: Any, a: Any, n_rows: Any, first_token: Any, head: Any, scratch: Any) -> None:
    numba.literally(index)
    rows, state, stride = scratch + a[ROWS], scratch + a[STATE], 4 * a[KEY_DIMS]
    scale = load_f32(a[FACTORS], a[N_HEADS])
    for row in range(n_rows):
        token = first_token + row // a[GROUP]
        source = a[QUERIES] + stride * (token * a[N_HEADS] + head * a[GROUP] + row % a[GROUP])
        scale_row(index, source, a[KEY_DIMS], scale, rows + row * stride)
        store_f32(state, 2 * row, types.float32(_LOWEST))
        store_f32(state, 2 * row + 1, types.float32(0.0))


@numba.njit
def _end_rows(index: Any, a: Any, n_rows: Any, first_token: Any, head: Any, scratch: Any) -> None:
    numba.literally(index)
    mixed, state, padded = scratch + a[MIXED], scratch + a[STATE], a[PADDED_VALUES]
    for row in range(n_rows):
        token, query_head = first_token + row // a[GROUP], head * a[GROUP] + row % a[GROUP]
        highest, total = load_f32(state, 2 * row), load_f32(state, 2 * row + 1)
        sink = load_f32(a[FACTORS], query_head)
        factor = types.float32(1.0)
        if sink > highest:
            factor = types.float32(math.exp(highest - sink))
            total = total * factor + types.float32(1.0)
        else:
            total += types.float32(math.exp(sink - highest))
        out = a[OUT] + 4 * a[VALUE_DIMS] * (token * a[N_HEADS] + query_head)
        scale_row(index, mixed + 4 * row * padded, a[VALUE_DIMS], factor / total, out)


def _make_job(index: int) -> Any:
    def unit_of_attention(a: Any, unit: int, thread: int) -> None:
        """Unit: a key-value head and some queries; the last queries, which see most, come first."""
        turned = a[N_UNITS] - 1 - unit
        head, first_token = turned % a[N_KV_HEADS], turned // a[N_KV_HEADS] * a[TOKENS_A_UNIT]
        n_tokens = min(a[TOKENS_A_UNIT], a[N_TOKENS] - first_token)
        n_rows, scratch = n_tokens * a[GROUP], a[SCRATCH] + thread * a[SCRATCH_STRIDE]
        _begin_rows(index, a, n_rows, first_token, head, scratch)
        start = load_i64(a[POSITION], 0)
        position = max(0, start + first_token + 1 - a[WINDOW])
        end, fresh = start + first_token + n_tokens, 1
        while position < end:
            slot = position % a[CAPACITY]
            count = min(_BLOCK, min(end - position, a[CAPACITY] - slot))
            _score(index, a, n_rows, a[KEYS] + head * a[KEYS_HEAD] + slot * a[KEYS_SLOT], count, scratch)
            _share(index, a, n_rows, first_token, position, count, scratch, fresh)
            _mix(index, a, n_rows, a[VALUES] + head * a[VALUES_HEAD] + slot * a[VALUES_SLOT], count, scratch, fresh)
            position, fresh = position + count, 0
        _end_rows(index, a, n_rows, first_token, head, scratch)

    return unit_of_attention
