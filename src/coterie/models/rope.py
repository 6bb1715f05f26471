"""Frequencies of rotary embeddings, and the table of cosines and sines that a pass over some positions needs.

Frequencies are float32 numbers and angles are float32 products, as in the implementations that models are trained with:
an angle of 100,000 radians is then off by 4e-3, and a more exact one would differ from what the model has learnt.
"""

import math

import numpy as np

from coterie.models.architecture import Rope


def default_rope(theta: float, dims: int) -> Rope:
    """theta^(-2i / dims) for every pair i of the first `dims` dimensions."""
    return _rope(_frequencies(theta, dims))


def proportional_rope(theta: float, head_dim: int, proportion: float, factor: float = 1.0) -> Rope:
    """The first `proportion` of the pairs turn as in `linear_rope` of the whole head; the others keep still."""
    turning = int(proportion * head_dim // 2)
    frequencies = _frequencies(theta, head_dim) / factor
    frequencies[turning:] = 0.0
    return _rope(frequencies)


def linear_rope(theta: float, dims: int, factor: float) -> Rope:
    """`default_rope` of positions divided by `factor`."""
    return _rope(_frequencies(theta, dims) / factor)


def llama3_rope(
    theta: float, dims: int, *, factor: float, low_frequency: float, high_frequency: float, original_length: int
) -> Rope:
    """Pairs that turn less than `low_frequency` times in `original_length` positions are slowed by `factor`; those that
    turn more than `high_frequency` times are kept; between them the two are mixed in proportion.
    """
    frequencies = _frequencies(theta, dims)
    turns = original_length * frequencies / (2 * math.pi)
    kept = np.clip((turns - low_frequency) / (high_frequency - low_frequency), 0.0, 1.0)
    return _rope(frequencies * (kept + (1 - kept) / factor))


def yarn_rope(
    theta: float,
    dims: int,
    *,
    factor: float,
    original_length: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    attention_factor: float | None = None,
) -> Rope:
    """YaRN (Peng et al., 2023): pairs that turn more than `beta_fast` times in `original_length` positions are kept,
    those that turn less than `beta_slow` times are slowed by `factor`, and between them a ramp over the pairs' numbers
    mixes the two. truncate: the ramp's ends are rounded outwards to whole pairs. attention_factor: what queries and
    keys are multiplied by; None for the paper's `yarn_magnitude`.
    """
    low, high = (_pair_of(turns, theta, dims, original_length) for turns in (beta_fast, beta_slow))
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    if low == high:
        high += 0.001
    slowed = np.clip((np.arange(dims // 2) - low) / (high - low), 0.0, 1.0)
    frequencies = _frequencies(theta, dims)
    amplitude = yarn_magnitude(factor) if attention_factor is None else attention_factor
    return _rope(frequencies * (slowed / factor + (1 - slowed)), amplitude)


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
    """0.1 * scale * ln(factor) + 1, by which YaRN lets attention grow with the context; 1 for a factor of at most 1."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def rotation_table(
    frequencies: np.ndarray, positions: np.ndarray, amplitude: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin times `amplitude`, each f32 [T, n], of frequencies f32 [n] at positions int64 [T]."""
    angles = (positions.astype(np.float32)[:, None] * frequencies).astype(np.float64)
    return (np.cos(angles) * amplitude).astype(np.float32), (np.sin(angles) * amplitude).astype(np.float32)


def _frequencies(theta: float, dims: int) -> np.ndarray:
    return np.asarray(theta ** -(np.arange(0, dims, 2, dtype=np.float64) / dims))


def _rope(frequencies: np.ndarray, amplitude: float = 1.0) -> Rope:
    return Rope(tuple(map(float, frequencies.astype(np.float32))), amplitude)


def _pair_of(turns: float, theta: float, dims: int, length: int) -> float:
    """The pair, as a fraction, that turns `turns` times in `length` positions."""
    return dims * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))
