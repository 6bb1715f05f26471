"""RMS norm (Zhang and Sennrich, 2019), rotary embedding (Su et al., 2021), limits and soft caps, in f32."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, types

from coterie.backends.cpu import isa
from coterie.backends.cpu.atoms import f32_pointer, load_f32, store_f32
from coterie.backends.cpu.decoder.frames import make_frame
from coterie.backends.cpu.isa import ISAS
from coterie.backends.cpu.jit import njit
from coterie.backends.cpu.kernels.activation import softcap_vectors
from coterie.backends.cpu.pool import address_of, get_pool
from coterie.backends.cpu.prepare import job
from coterie.backends.cpu.recording import not_recorded, recording

# Sums may be reordered, which is what lets them run in vector lanes; NaN and infinity keep their meaning.
_REORDERED = {"reassoc", "contract", "nsz"}


_WORTH_SHARING = 1 << 17
"""Numbers from which a second thread gains more than it costs to wake."""
_UNIT = 1 << 15
"""Numbers in a unit of work."""


def rms_norm(x: np.ndarray, weight: np.ndarray | None, eps: float) -> np.ndarray:
    size = x.shape[-1]
    rows = np.ascontiguousarray(x, np.float32).reshape(-1, size)
    weight = _ones(size) if weight is None else np.ascontiguousarray(weight, np.float32)
    out = np.empty_like(rows)
    arrays = (rows, weight, out, _single(eps))
    _in_units("rms_norm", _norm_job, len(rows), size, [address_of(array) for array in arrays], arrays)
    return out.reshape(x.shape)


def _in_units(
    name: str, make: Callable[[], Any], n_rows: int, row_size: int, words: list[int], owners: tuple[Any, ...]
) -> None:
    """Run a job on the pool; its words begin with n_rows, rows a unit and the size of a row."""
    rows_a_unit = max(1, _UNIT // row_size)
    function, all_words, n_units = job(name, make), [n_rows, rows_a_unit, row_size, *words], -(-n_rows // rows_a_unit)
    worth, pool = n_rows * row_size >= _WORTH_SHARING, get_pool()
    with pool.lock:
        pool.run((function, pool.place(all_words), n_units, worth))
    if recording() is not None:
        # What was placed is overwritten by the next.
        make_frame([(function, all_words, n_units, worth)], owners).record()


@functools.cache
def _single(number: float) -> np.ndarray:
    return np.array([number], np.float32)


def _norm_job() -> Any:
    def norm_some_rows(a: Any, unit: int, _thread: int) -> None:
        first, size = unit * a[1], a[2]
        shape, offset = (min(a[1], a[0] - first), size), 4 * first * size
        rows, out = carray(f32_pointer(a[3] + offset), shape), carray(f32_pointer(a[5] + offset), shape)
        _rms_norm_rows(rows, carray(f32_pointer(a[4]), (size,)), load_f32(a[6], 0), out)

    return norm_some_rows


@functools.cache
def _ones(size: int) -> np.ndarray:
    return np.ones(size, np.float32)


@functools.partial(njit, fastmath=_REORDERED)
def _rms_norm_rows(x, weight, eps, out):
    size = x.shape[1]
    for row in range(x.shape[0]):
        total = np.float32(0)
        for i in range(size):
            total += x[row, i] * x[row, i]
        factor = np.float32(1) / np.float32(math.sqrt(total / np.float32(size) + eps))
        for i in range(size):
            out[row, i] = x[row, i] * factor * weight[i]


def rotary(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool = False) -> np.ndarray:
    not_recorded()
    out = np.ascontiguousarray(x, np.float32)
    pairs = cos.shape[1]
    # A pair is (i * step, i * step + apart).
    step, apart = (2, 1) if interleaved else (1, pairs)
    if out.size < _WORTH_SHARING:
        _rotate(out, cos, sin, step, apart)
    else:
        cos, sin = np.ascontiguousarray(cos, np.float32), np.ascontiguousarray(sin, np.float32)
        words = [address_of(out), address_of(cos), address_of(sin), out.shape[1], out.shape[2], pairs, step, apart]
        _in_units("rotary", _rotary_job, len(out), out.shape[1] * out.shape[2], words, (out, cos, sin))
    return out


def _rotary_job() -> Any:
    def rotate_some_tokens(a: Any, unit: int, _thread: int) -> None:
        first = unit * a[1]
        count, pairs = min(a[1], a[0] - first), a[8]
        x = carray(f32_pointer(a[3] + 4 * first * a[2]), (count, a[6], a[7]))
        cos = carray(f32_pointer(a[4] + 4 * first * pairs), (count, pairs))
        sin = carray(f32_pointer(a[5] + 4 * first * pairs), (count, pairs))
        _rotate(x, cos, sin, a[9], a[10])

    return rotate_some_tokens


@njit
def _rotate(x, cos, sin, step, apart):
    pairs = cos.shape[1]
    for token in range(x.shape[0]):
        for head in range(x.shape[1]):
            for i in range(pairs):
                c, s = cos[token, i], sin[token, i]
                first, second = x[token, head, i * step], x[token, head, i * step + apart]
                x[token, head, i * step] = first * c - second * s
                x[token, head, i * step + apart] = second * c + first * s


def clip(x: np.ndarray, limit: float) -> np.ndarray:
    not_recorded()
    return np.clip(x, np.float32(-limit), np.float32(limit))


def softcap(x: np.ndarray, cap: float) -> np.ndarray:
    numbers = np.ascontiguousarray(x, np.float32)
    out, index = np.empty_like(numbers), ISAS.index(isa.current())
    arrays = (numbers, out, _single(cap))
    words = [address_of(array) for array in arrays]
    _in_units(f"softcap.{index}", lambda: _softcap_job(index, ISAS[index].lanes), x.size, 1, words, arrays)
    return out


def _softcap_job(index: int, lanes: int) -> Any:
    def cap_some(a: Any, unit: int, _thread: int) -> None:
        first, cap = unit * a[1], load_f32(a[5], 0)
        x, out, count = a[3] + 4 * first, a[4] + 4 * first, min(a[1], a[0] - first)
        whole = count // lanes * lanes
        softcap_vectors(index, x, cap, out, whole)
        for place in range(whole, count):
            store_f32(out, place, cap * types.float32(math.tanh(load_f32(x, place) / cap)))

    return cap_some
