"""Combining the outputs of the experts of a token: weighted sums in f32.

A slot whose |weight| is below 1e-10 is skipped and its weight is given to nobody: whatever stands in its output,
infinity and NaN included, does not reach the sum.
"""

import math

import numpy as np

from coterie.arrays import Array, as_numpy, common_kind
from coterie.errors import ArgumentError
from coterie.ops import checks, dispatch
from coterie.ops.forms import FORMS, Form

SKIPPED_BELOW = 1e-10
"""Slots with a smaller |weight| are skipped."""


def weighted_sum(expert_out: Array, weights: Array) -> Array:
    """The sum over k of weights[..., k] * expert_out[..., k, :], in f32.

    expert_out: [..., k, H] in f32, f16 or bf16; weights: floats [..., k]. Returns f32 [..., H], whatever the input's
    dtype.
    """
    form = FORMS[dispatch.kind_of_both(expert_out, weights, ("expert_out", "weights"))]
    checks.float_dtype(expert_out, "expert_out")
    checks.float_dtype(weights, "weights")
    shape = tuple(expert_out.shape)
    if len(shape) < 2 or tuple(weights.shape) != shape[:-1]:
        raise checks.shape_error(
            f"expert_out is {list(shape)} and weights {list(weights.shape)}, expected [..., k, H] and [..., k]"
        )
    out_shape = (*shape[:-2], shape[-1])
    if 0 in shape:
        return form.zeros(out_shape, "float32", expert_out)
    outputs = form.rows(form.dense(expert_out), *shape[-2:])
    slot_weights = form.rows(form.widened(weights), shape[-2])
    return form.back(form.verb("weighted_sum")(outputs, slot_weights), out_shape)


def accumulate(accumulator: Array, expert_out: Array, weight: float | Array) -> Array:
    """accumulator += weight * expert_out, in f32; returns the accumulator.

    accumulator: f32 [...], changed in place for NumPy, PyTorch and CuPy (strided views too) and must not overlap
    expert_out; arrays of MLX and JAX do not change, there the sum is a new array. expert_out: the same shape in f32,
    f16 or bf16. weight: a number, or an array of one float. Start from zeros.
    """
    form = FORMS[dispatch.kind_of_both(accumulator, expert_out, ("accumulator", "expert_out"))]
    if checks.float_dtype(accumulator, "accumulator") != "float32":
        raise ArgumentError(
            f"accumulator is {checks.float_dtype(accumulator, 'accumulator')}, expected float32: sums are in f32",
            code="dtype",
        )
    checks.float_dtype(expert_out, "expert_out")
    if tuple(accumulator.shape) != tuple(expert_out.shape):
        raise checks.shape_error(
            f"accumulator is {list(accumulator.shape)} and expert_out {list(expert_out.shape)}, expected one shape"
        )
    factor = _factor(weight, accumulator, form)
    if 0 in tuple(accumulator.shape):
        return accumulator
    return form.add_to(accumulator, expert_out, factor)


def weighted_sum_reference(expert_out: Array, weights: Array) -> np.ndarray:
    """`weighted_sum` in float64."""
    w = as_numpy(weights).astype(np.float64)[..., None]
    outputs = as_numpy(expert_out).astype(np.float64)
    skipped = np.abs(w) < SKIPPED_BELOW
    total: np.ndarray = (np.where(skipped, 0, w) * np.where(skipped, 0, outputs)).sum(-2)
    return total


def accumulate_reference(accumulator: Array, expert_out: Array, weight: float) -> np.ndarray:
    """`accumulate` in float64, as a new array."""
    start = as_numpy(accumulator).astype(np.float64)
    if abs(weight) < SKIPPED_BELOW:
        return start
    return start + weight * as_numpy(expert_out).astype(np.float64)


def _factor(weight: float | Array, accumulator: Array, form: Form) -> float | Array:
    if isinstance(weight, int | float | np.floating | np.integer) and not isinstance(weight, bool):
        return float(weight)
    common_kind(accumulator=accumulator, weight=weight)
    if math.prod(tuple(weight.shape)) != 1:
        raise checks.shape_error(f"weight is {list(weight.shape)}, expected one number")
    factor: float | Array = form.scalar(weight)
    return factor
