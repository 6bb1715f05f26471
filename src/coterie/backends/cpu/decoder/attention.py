"""Causal grouped-query attention over a cache, in f32.

One query reads the cache once, in compiled code. Many queries (a part of a prompt) go through matrix products in
blocks, so that the scores in memory never exceed a few MiB however long the prompt is.

Position p stands at slot p % capacity of the cache. A store that holds everything is never so full that this wraps; a
sliding window's store is a ring, and softmax does not care in which order its slots are visited.
"""

import functools
import math

import numpy as np

from coterie.backends.cpu.jit import njit

_SCORES = 1 << 21
"""Scores held at a time for one key-value head: 8 MiB of f32. Each block of queries reads all keys and values once."""


def attend(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    start: int,
    window: int | None,
    scale: float,
    sinks: np.ndarray | None = None,
) -> np.ndarray:
    sinks = _no_sinks(queries.shape[1]) if sinks is None else sinks
    if len(queries) != 1:
        return _attend_many(queries, keys, values, start, window, scale, sinks)
    out = np.empty_like(queries)
    first = 0 if window is None else max(0, start + 1 - window)
    _attend_one(queries[0], keys, values, first, start + 1, np.float32(scale), sinks, out[0])
    return out


@functools.cache
def _no_sinks(n_heads: int) -> np.ndarray:
    """Sinks that take no share of any softmax."""
    return np.full(n_heads, -np.inf, np.float32)


@functools.partial(njit, fastmath={"reassoc", "contract", "nsz"})
def _attend_one(queries, keys, values, first, last, scale, sinks, out):
    """queries [Hq, D] see positions first ... last - 1; out [Hq, D]."""
    n_heads, dims = queries.shape
    n_kv_heads, capacity = keys.shape[0], keys.shape[1]
    group = n_heads // n_kv_heads
    scores = np.empty((group, last - first), np.float32)
    for kv_head in range(n_kv_heads):
        slot = first % capacity
        for j in range(last - first):
            for g in range(group):
                total = np.float32(0)
                for i in range(dims):
                    total += queries[kv_head * group + g, i] * keys[kv_head, slot, i]
                scores[g, j] = total * scale
            slot = slot + 1 if slot + 1 < capacity else 0
        for g in range(group):
            _softmax(scores[g], sinks[kv_head * group + g])
        mixed = out[kv_head * group : (kv_head + 1) * group]
        mixed[:] = np.float32(0)
        slot = first % capacity
        for j in range(last - first):
            for g in range(group):
                share = scores[g, j]
                for i in range(dims):
                    mixed[g, i] += share * values[kv_head, slot, i]
            slot = slot + 1 if slot + 1 < capacity else 0


@njit
def _softmax(scores, sink):
    highest = max(scores.max(), sink)
    total = np.float32(math.exp(sink - highest))
    for j in range(scores.size):
        scores[j] = np.float32(math.exp(scores[j] - highest))
        total += scores[j]
    for j in range(scores.size):
        scores[j] /= total


def _attend_many(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    start: int,
    window: int | None,
    scale: float,
    sinks: np.ndarray,
) -> np.ndarray:
    n_tokens, n_heads, dims = queries.shape
    n_kv_heads = len(keys)
    group = n_heads // n_kv_heads
    out = np.empty((n_tokens, n_kv_heads, group, dims), np.float32)
    by_kv_head = sinks.reshape(n_kv_heads, group, 1)
    grouped = (queries * np.float32(scale)).reshape(n_tokens, n_kv_heads, group, dims)
    begin = 0
    while begin < n_tokens:
        first = _first_seen(start + begin, window)
        end = min(n_tokens, begin + block_length(start + begin - first, group))
        hidden = hidden_pairs(start + begin, start + end, first, window)
        for kv_head in range(n_kv_heads):
            seen_keys = _positions(keys[kv_head], first, start + end)
            seen_values = _positions(values[kv_head], first, start + end)
            rows = np.ascontiguousarray(grouped[begin:end, kv_head]).reshape(-1, dims)
            shares = masked_softmax((rows @ seen_keys.T).reshape(end - begin, group, -1), hidden, by_kv_head[kv_head])
            mixed = shares.reshape(len(rows), -1) @ seen_values
            out[begin:end, kv_head] = mixed.reshape(end - begin, group, dims)
        begin = end
    return out.reshape(n_tokens, n_heads, dims)


def _first_seen(position: int, window: int | None) -> int:
    return 0 if window is None else max(0, position + 1 - window)


def block_length(n_before: int, group: int) -> int:
    """How many queries b to take, the first of which sees n_before positions: b * group * (n_before + b) scores."""
    half = n_before / 2
    return max(1, int(math.sqrt(half * half + _SCORES / group) - half))


def hidden_pairs(begin: int, end: int, first: int, window: int | None) -> np.ndarray:
    """True where the query at position begin + t does not see position first + j: [t, 1, j]."""
    distance = np.arange(begin, end)[:, None, None] - np.arange(first, end)
    return (distance < 0) if window is None else (distance < 0) | (distance >= window)


def _positions(store: np.ndarray, first: int, last: int) -> np.ndarray:
    """Rows of positions first ... last - 1 of a [capacity, D] store in order; a view unless the ring wraps there."""
    capacity = len(store)
    begin, end = first % capacity, (last - 1) % capacity + 1
    return store[begin:end] if begin < end else np.concatenate((store[begin:], store[:end]))


def masked_softmax(scores: np.ndarray, hidden: np.ndarray, sinks: np.ndarray) -> np.ndarray:
    """Shares of scores [t, group, j] with sinks [group, 1] in every sum; in place."""
    np.copyto(scores, -np.inf, where=hidden)
    highest = np.maximum(scores.max(axis=-1, keepdims=True), sinks)
    scores -= highest
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True) + np.exp(sinks - highest)
    return scores
