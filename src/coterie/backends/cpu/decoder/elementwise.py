"""RMS norm (Zhang and Sennrich, 2019), rotary embedding (Su et al., 2021), limits and soft caps, in f32."""

import functools
import math

import numpy as np

from coterie.backends.cpu.jit import njit

# Sums may be reordered, which is what lets them run in vector lanes; NaN and infinity keep their meaning.
_REORDERED = {"reassoc", "contract", "nsz"}


def rms_norm(x: np.ndarray, weight: np.ndarray | None, eps: float) -> np.ndarray:
    rows = np.ascontiguousarray(x, np.float32).reshape(-1, x.shape[-1])
    out = np.empty_like(rows)
    _rms_norm_rows(rows, _ones(x.shape[-1]) if weight is None else weight, np.float32(eps), out)
    return out.reshape(x.shape)


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
    out = np.ascontiguousarray(x, np.float32)
    pairs = cos.shape[1]
    # A pair is (i * step, i * step + apart).
    step, apart = (2, 1) if interleaved else (1, pairs)
    _rotate(out, cos, sin, step, apart)
    return out


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
    return np.clip(x, np.float32(-limit), np.float32(limit))


def softcap(x: np.ndarray, cap: float) -> np.ndarray:
    out = x / np.float32(cap)
    np.tanh(out, out=out)
    out *= np.float32(cap)
    return out
