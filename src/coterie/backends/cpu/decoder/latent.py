"""Attention over a cache of latents, in f32.

A latent of R numbers stands for the keys and values of all heads. A few queries come to the latents: each is taken
through its head's key matrix the other way round, meets the latents themselves, and the mixed latents become values at
the end. For many queries R numbers a pair cost more than making keys and values once, so there they are made, head by
head. Both ways compute the same sums in another order.
"""

import math
from collections.abc import Iterator

import numpy as np

from coterie.backends.cpu.columns import multiply_columns
from coterie.backends.cpu.decoder.matrices import dense_part
from coterie.backends.cpu.gathered import gathered
from coterie.backends.cpu.matrix import matrix_for
from coterie.backends.cpu.recording import not_recorded
from coterie.formats import Packed

Weight = Packed | np.ndarray

_SCORES = 1 << 21
"""Scores held at a time: 8 MiB of f32."""


def attend_latent(
    queries: np.ndarray,
    turned: np.ndarray,
    latents: np.ndarray,
    keys: np.ndarray,
    key_up: Weight,
    value_up: Weight,
    start: int,
    scale: float,
    *,
    key_transposed: bool,
) -> np.ndarray:
    not_recorded()
    seen = start + len(queries)
    latents, keys = latents[0, :seen], keys[0, :seen]
    queries, turned = queries * np.float32(scale), turned * np.float32(scale)
    plain, value_dim, rank = queries.shape[-1], value_up.shape[-2], latents.shape[-1]
    # A pair of query and key costs 2 * rank products among latents and plain + value_dim among keys and values, which
    # cost rank times as many to make.
    if len(queries) * (2 * rank - plain - value_dim) > rank * (plain + value_dim):
        return _expanded(queries, turned, latents, keys, key_up, value_up, start, key_transposed)
    absorbed = _by_head(queries, key_up, transpose=key_transposed)
    return _by_head(_among_latents(absorbed, turned, latents, keys, start), value_up, transpose=True)


def _by_head(x: np.ndarray, weight: Weight, *, transpose: bool) -> np.ndarray:
    """x [T, H, K] times each head's own matrix [H, N, K] transposed, or [H, K, N] as it is: f32 [T, H, N]."""
    n_tokens, n_heads = x.shape[:2]
    rows, heads = np.arange(n_tokens * n_heads), np.tile(np.arange(n_heads), n_tokens)
    flat = np.ascontiguousarray(x).reshape(n_tokens * n_heads, -1)
    out = gathered(flat, matrix_for(weight), rows, heads) if transpose else multiply_columns(flat, weight, rows, heads)
    return out.reshape(n_tokens, n_heads, -1)


def _among_latents(
    absorbed: np.ndarray, turned: np.ndarray, latents: np.ndarray, keys: np.ndarray, start: int
) -> np.ndarray:
    """Mixed latents [T, H, R] of queries that speak of latents."""
    n_tokens, n_heads, rank = absorbed.shape
    out = np.empty(absorbed.shape, np.float32)
    for begin, end in _blocks(n_tokens, start, n_heads):
        seen = slice(0, start + end)
        scores = absorbed[begin:end].reshape(-1, rank) @ latents[seen].T
        scores += np.ascontiguousarray(turned[begin:end]).reshape(len(scores), -1) @ keys[seen].T
        shares = _shares(scores.reshape(end - begin, n_heads, -1), start + begin)
        out[begin:end] = (shares.reshape(scores.shape) @ latents[seen]).reshape(end - begin, n_heads, rank)
    return out


def _expanded(
    queries: np.ndarray,
    turned: np.ndarray,
    latents: np.ndarray,
    keys: np.ndarray,
    key_up: Weight,
    value_up: Weight,
    start: int,
    key_transposed: bool,
) -> np.ndarray:
    n_tokens, n_heads = queries.shape[:2]
    out = np.empty((n_tokens, n_heads, value_up.shape[-2]), np.float32)
    for head in range(n_heads):
        to_key, to_value = dense_part(key_up, head), dense_part(value_up, head)
        head_keys = latents @ (to_key if key_transposed else to_key.T)
        head_values = latents @ to_value.T
        for begin, end in _blocks(n_tokens, start, 1):
            seen = slice(0, start + end)
            scores = queries[begin:end, head] @ head_keys[seen].T
            scores += turned[begin:end, head] @ keys[seen].T
            shares = _shares(scores[:, None], start + begin)
            out[begin:end, head] = shares[:, 0] @ head_values[seen]
    return out


def _shares(scores: np.ndarray, position: int) -> np.ndarray:
    """The softmax of scores [t, heads, j] of queries at `position` and after, which do not see what comes later."""
    n_queries, _, n_seen = scores.shape
    hidden = np.arange(n_seen) > position + np.arange(n_queries)[:, None, None]
    np.copyto(scores, -np.inf, where=hidden)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def _blocks(n_tokens: int, start: int, group: int) -> Iterator[tuple[int, int]]:
    """Runs of queries, few enough that their scores fit: b queries have b * group * (before them + b)."""
    begin = 0
    while begin < n_tokens:
        half = (start + begin) / 2
        end = min(n_tokens, begin + max(1, int(math.sqrt(half * half + _SCORES / group) - half)))
        yield begin, end
        begin = end
