"""RMS norm, rotary embedding, limits and soft caps, in f32."""

import mlx.core as mx
import numpy as np


def rms_norm(x: mx.array, weight: mx.array | None, eps: float) -> mx.array:
    return mx.fast.rms_norm(x, weight, eps)


def rotary(x: mx.array, cos: np.ndarray, sin: np.ndarray, interleaved: bool = False) -> mx.array:
    n = cos.shape[1]
    c, s = mx.array(cos)[:, None], mx.array(sin)[:, None]
    turned, rest = x[..., : 2 * n], x[..., 2 * n :]
    if interleaved:
        pairs = turned.reshape(*x.shape[:-1], n, 2)
        first, second = pairs[..., 0], pairs[..., 1]
        both = mx.stack([first * c - second * s, second * c + first * s], axis=-1).reshape(turned.shape)
        return mx.concatenate([both, rest], axis=-1)
    first, second = turned[..., :n], turned[..., n:]
    return mx.concatenate([first * c - second * s, second * c + first * s, rest], axis=-1)


def clip(x: mx.array, limit: float) -> mx.array:
    return mx.clip(x, -limit, limit)


def softcap(x: mx.array, cap: float) -> mx.array:
    return cap * mx.tanh(x / cap)
