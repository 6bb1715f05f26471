"""The residual stream between two branches of a layer: what is added, and the norms that are read next."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import carray

from coterie.backends.cpu.atoms import f32_pointer, load_f32
from coterie.backends.cpu.decoder.frames import Frame, Frames, make_frame, optional_address
from coterie.backends.cpu.jit import njit
from coterie.backends.cpu.pool import address_of, get_pool, run_phases
from coterie.backends.cpu.prepare import job

# Words of the job. Addresses: FIRST and SECOND of the branches, each with the weight of its norm behind it, NORMS of
# up to three weights. The new stream and its norms stand one behind the other at OUT; 0 is an array that is not there.
N_ROWS, ROWS_A_UNIT, SIZE, EPS, STREAM, OUT, FIRST, FIRST_NORM, SECOND, SECOND_NORM, AFTER, SCALAR = range(12)
N_NORMS, NORMS = 12, 13
_MOST_NORMS = 3
_WORDS = 4
"""Where the job's words begin in the frame."""

_WORTH_SHARING = 1 << 15
"""Numbers from which a second thread gains more than it costs to wake."""
_UNIT = 1 << 13
"""Numbers in a unit of work."""

Branch = tuple[np.ndarray, np.ndarray | None]


def add_norms(
    frames: Frames,
    h: np.ndarray,
    branches: Sequence[Branch],
    after: np.ndarray | None,
    scalar: np.ndarray | None,
    befores: Sequence[np.ndarray],
    eps: float,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """`coterie.models.launches.add_norms`."""
    n_rows, size = h.shape
    weights = (*(weight for _, weight in branches), after, scalar, *befores)
    key = ("add_norms", h.shape, len(branches), eps, *map(id, weights))
    out = np.empty((1 + len(befores), n_rows, size), np.float32)
    stream, first, second = (np.ascontiguousarray(x, np.float32) for x in (h, branches[0][0], branches[-1][0]))
    pool = get_pool()
    with pool.lock:
        frame = frames.get(pool, key, n_rows, lambda: _make(n_rows, size, branches, after, scalar, befores, eps))
        _launch(pool.block, frame.memory, stream, first, second, out)
        frame.record(stream, first, second, out)
    return out[0], list(out[1:])


def _make(
    n_rows: int,
    size: int,
    branches: Sequence[Branch],
    after: np.ndarray | None,
    scalar: np.ndarray | None,
    befores: Sequence[np.ndarray],
    eps: float,
) -> Frame:
    vectors = [_vector(weight) for weight in (*(norm for _, norm in branches), after, scalar, *befores)]
    places = [optional_address(vector) for vector in vectors]
    norms, (after_at, scalar_at), befores_at = (
        places[: len(branches)],
        places[len(branches) : len(branches) + 2],
        places[len(branches) + 2 :],
    )
    rows_a_unit, epsilon = max(1, _UNIT // size), np.array([eps], np.float32)
    second_norm = norms[1] if len(norms) > 1 else 0
    words = [n_rows, rows_a_unit, size, address_of(epsilon), 0, 0, 0, norms[0], len(norms) - 1, second_norm]
    words += [after_at, scalar_at, len(befores_at), *befores_at, *[0] * (_MOST_NORMS - len(befores_at))]
    # The originals too: the frame is found by their identities.
    owners = (*vectors, epsilon, branches[0][1], branches[-1][1], after, scalar, *befores)
    units, worth = -(-n_rows // rows_a_unit), n_rows * size >= _WORTH_SHARING
    return make_frame([(job("add_norms", lambda: _add_norms), words, units, worth)], owners)


def _vector(weight: np.ndarray | None) -> np.ndarray | None:
    return None if weight is None else np.ascontiguousarray(weight, np.float32)


@njit
def _launch(block, frame, h, first, second, out):
    """Run the frame's job for these arrays; there is a second branch where its word was not 0."""
    frame[_WORDS + STREAM], frame[_WORDS + OUT] = h.ctypes.data, out.ctypes.data
    frame[_WORDS + FIRST] = first.ctypes.data
    if frame[_WORDS + SECOND] != 0:
        frame[_WORDS + SECOND] = second.ctypes.data
    run_phases(block, frame.ctypes.data, 1)


def _add_norms(a: Any, unit: int, _thread: int) -> None:
    first, size = unit * a[ROWS_A_UNIT], a[SIZE]
    for row in range(first, min(first + a[ROWS_A_UNIT], a[N_ROWS])):
        at, eps = 4 * row * size, load_f32(a[EPS], 0)
        h, out = carray(f32_pointer(a[STREAM] + at), (size,)), carray(f32_pointer(a[OUT] + at), (size,))
        _put(carray(f32_pointer(a[FIRST] + at), (size,)), a[FIRST_NORM], eps, out)
        if a[SECOND] != 0:
            _add(carray(f32_pointer(a[SECOND] + at), (size,)), a[SECOND_NORM], eps, out)
        if a[AFTER] != 0:
            _put(out, a[AFTER], eps, out)
        for i in range(size):
            out[i] += h[i]
        if a[SCALAR] != 0:
            factor = load_f32(a[SCALAR], 0)
            for i in range(size):
                out[i] *= factor
        if a[N_NORMS] > 0:
            factor = inverse_rms(out, eps)
            for norm in range(a[N_NORMS]):
                weight = carray(f32_pointer(a[NORMS + norm]), (size,))
                place = a[OUT] + 4 * a[N_ROWS] * size * (norm + 1) + at
                _scale(out, factor, weight, carray(f32_pointer(place), (size,)))


# Sums may be reordered, which is what lets them run in vector lanes; NaN and infinity keep their meaning.
@functools.partial(njit, fastmath={"reassoc", "contract", "nsz"})
def inverse_rms(x, eps):
    """1 / sqrt(mean(x^2) + eps) of f32 [n]."""
    total = np.float32(0)
    for i in range(x.size):
        total += x[i] * x[i]
    return np.float32(1) / np.float32(math.sqrt(total / np.float32(x.size) + eps))


@njit
def _put(x, norm, eps, out):
    """out = x, or its norm with the weight at address `norm`; out may be x."""
    if norm == 0:
        out[:] = x
    else:
        _scale(x, inverse_rms(x, eps), carray(f32_pointer(norm), (x.size,)), out)


@njit
def _add(x, norm, eps, out):
    """out += x, or its norm."""
    if norm == 0:
        for i in range(x.size):
            out[i] += x[i]
    else:
        factor, weight = inverse_rms(x, eps), carray(f32_pointer(norm), (x.size,))
        for i in range(x.size):
            out[i] += x[i] * factor * weight[i]


@njit
def _scale(x, factor, weight, out):
    for i in range(x.size):
        out[i] = x[i] * factor * weight[i]
