"""Gated activations as Metal kernels: every activation and dtype, around every edge of what a thread takes."""

from typing import Any

import numpy as np
import pytest

import coterie
from array_kinds import floats, give, take
from coterie.ops.activations import ACTIVATIONS, glu_fused_reference, glu_reference
from tolerance import EPS

pytestmark = pytest.mark.usefixtures("engine")

SHAPES = [(1, 1), (1, 3), (1, 4), (2, 5), (3, 255), (2, 256), (1, 257), (5, 1023), (3, 2816), (70_000, 1)]
SMALLEST = {"float32": 1e-14, "bfloat16": 1e-14, "float16": 2.0**-24}
"""Where a difference has no meaning: in the float64 reference 1 + tanh cancels far below; a subnormal f16 has steps."""
FEW = [("silu", "float16"), ("gelu_tanh", "bfloat16")]


def assert_each_close(found: np.ndarray, reference: np.ndarray, gate: np.ndarray) -> None:
    """Element by element. An exponential is off by its argument's rounding: up to 11 eps at -4, 100 eps before zero."""
    dtype = found.dtype.name
    steps = np.where(gate.astype(np.float64) < -4, 512, 64) * EPS["float32"]
    rounding = 0.0 if dtype == "float32" else EPS[dtype] / 2
    assert found.shape == reference.shape
    far = ~(np.abs(found.astype(np.float64) - reference) <= (steps + rounding) * np.abs(reference) + SMALLEST[dtype])
    assert not far.any(), f"{far.sum()} are off, the first at {np.argwhere(far)[0]}"


def check(gate: np.ndarray, up: np.ndarray, activation: str) -> None:
    found = take(coterie.glu(give(gate, "mlx"), give(up, "mlx"), activation), "mlx", gate.dtype.name)
    assert_each_close(found, glu_reference(gate, up, activation), gate)


def check_fused(gate_up: np.ndarray, activation: str) -> None:
    found = take(coterie.glu_fused(give(gate_up, "mlx"), activation), "mlx", gate_up.dtype.name)
    assert_each_close(found, glu_fused_reference(gate_up, activation), gate_up[..., : gate_up.shape[-1] // 2])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_in_f32(activation: str, rng: Any) -> None:
    for shape in ((2, 704), (1, 257)):
        check(floats(rng, shape, scale=4), floats(rng, shape), activation)


@pytest.mark.parametrize(("activation", "dtype"), [("gelu_tanh", "float32"), *FEW])
def test_separate_halves_of_every_size(activation: str, dtype: str, rng: Any) -> None:
    for shape in SHAPES:
        check(floats(rng, shape, dtype, 2), floats(rng, shape, dtype), activation)


@pytest.mark.parametrize(("activation", "dtype"), [("gelu_tanh", "float32"), *FEW])
def test_fused_halves_of_every_size(activation: str, dtype: str, rng: Any) -> None:
    for rows, columns in SHAPES:
        check_fused(floats(rng, (rows, 2 * columns), dtype, 2), activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_finite_for_every_finite_gate(activation: str) -> None:
    """Far above an activation is its gate, far below it is zero; nothing becomes NaN on the way."""
    largest = np.finfo(np.float32).max
    gate = np.array([largest, 1e13, 88.8, 40.0, 0.0, -0.0, 1e-40, -40.0, -88.8, -104.0, -1e13, -largest], np.float32)
    check(gate, np.ones_like(gate), activation)


def test_leading_axes_scalars_and_strides(rng: Any) -> None:
    both = floats(rng, (2, 3, 4, 96))
    assert tuple(coterie.glu_fused(give(both, "mlx"), "gelu_tanh").shape) == (2, 3, 4, 48)
    one = floats(rng, ())
    assert tuple(coterie.glu(give(one, "mlx"), give(one, "mlx"), "gelu_tanh").shape) == ()
    strided = give(both, "mlx")[:, ::2, 1:, ::3]
    found = take(coterie.glu(strided, strided, "gelu_tanh"), "mlx", "float32")
    values = both[:, ::2, 1:, ::3]
    assert_each_close(found, glu_reference(values, values, "gelu_tanh"), values)
