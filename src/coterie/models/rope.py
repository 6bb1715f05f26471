"""Frequencies of rotary embeddings, and the table of cosines and sines that a pass over some positions needs.

Frequencies are float32 numbers and angles are float32 products, as in the implementations that models are trained with:
an angle of 100,000 radians is then off by 4e-3, and a more exact one would differ from what the model has learnt.
"""

import numpy as np

from coterie.models.architecture import Rope


def default_rope(theta: float, head_dim: int) -> Rope:
    """theta^(-2i / head_dim) for every pair i of the head."""
    return proportional_rope(theta, head_dim, 1.0)


def proportional_rope(theta: float, head_dim: int, proportion: float) -> Rope:
    """The first `proportion` of the pairs turn as in `default_rope` of the whole head; the others keep still."""
    turning = int(proportion * head_dim // 2)
    exponents = 2.0 * np.arange(turning, dtype=np.float64) / head_dim
    frequencies = np.zeros(head_dim // 2, np.float32)
    frequencies[:turning] = theta**-exponents
    return Rope(tuple(map(float, frequencies)))


def rotation_table(frequencies: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, each f32 [T, n], of frequencies f32 [n] at positions int64 [T]."""
    angles = (positions.astype(np.float32)[:, None] * frequencies).astype(np.float64)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
