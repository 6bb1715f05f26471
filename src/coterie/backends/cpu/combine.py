"""Sums of expert outputs in f32, column chunks in parallel."""

from typing import Any

import numpy as np
from numba import types

from coterie.backends.cpu.atoms import load_f32, store_f32
from coterie.backends.cpu.pool import address_of, get_pool
from coterie.backends.cpu.prepare import job

OUTPUTS, WEIGHTS, TOTALS, TOP_K, N_COLUMNS, COUNT = range(6)
_CHUNK = 16384

_SKIPPED_BELOW = np.float32(1e-10)


def _weighted_sum_token(a: Any, unit: int, _thread: int) -> None:
    total = a[TOTALS] + 4 * unit * a[N_COLUMNS]
    for column in range(a[N_COLUMNS]):
        store_f32(total, column, types.float32(0.0))
    for slot in range(unit * a[TOP_K], (unit + 1) * a[TOP_K]):
        weight = load_f32(a[WEIGHTS], slot)
        if abs(weight) < _SKIPPED_BELOW:
            continue
        output = a[OUTPUTS] + 4 * slot * a[N_COLUMNS]
        for column in range(a[N_COLUMNS]):
            store_f32(total, column, load_f32(total, column) + weight * load_f32(output, column))


def _accumulate_chunk(a: Any, unit: int, _thread: int) -> None:
    first = unit * _CHUNK
    weight = load_f32(a[WEIGHTS], 0)
    for place in range(first, min(first + _CHUNK, a[COUNT])):
        store_f32(a[TOTALS], place, load_f32(a[TOTALS], place) + weight * load_f32(a[OUTPUTS], place))


def weighted_sum(expert_out: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """f32 [T, H]: the sum over k of weights f32 [T, k] * expert_out [T, k, H]; slots of weight next to zero are
    skipped.
    """
    outputs = np.ascontiguousarray(expert_out, np.float32)
    slot_weights = np.ascontiguousarray(weights, np.float32)
    n_tokens, top_k, n_columns = outputs.shape
    totals = np.empty((n_tokens, n_columns), np.float32)
    words = [address_of(outputs), address_of(slot_weights), address_of(totals), top_k, n_columns]
    arguments = np.array(words, np.int64)
    phase = (job("weighted_sum", lambda: _weighted_sum_token), address_of(arguments), n_tokens, outputs.size >= _CHUNK)
    get_pool().run(phase)
    return totals


def accumulate(accumulator: np.ndarray, expert_out: np.ndarray, weight: float) -> np.ndarray:
    """accumulator f32 += weight * expert_out, in place, for dense arrays of one shape."""
    if abs(weight) >= _SKIPPED_BELOW or weight != weight:
        outputs = np.ascontiguousarray(expert_out, np.float32)
        factor = np.array([weight], np.float32)
        words = [address_of(outputs), address_of(factor), address_of(accumulator), 0, 0, accumulator.size]
        arguments = np.array(words, np.int64)
        units = -(-accumulator.size // _CHUNK)
        get_pool().run((job("accumulate", lambda: _accumulate_chunk), address_of(arguments), units, True))
    return accumulator
