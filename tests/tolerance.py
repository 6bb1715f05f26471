"""How far a result may be from its float64 reference, derived and not tuned.

Two figures a case, both relative to the root mean square (RMS) of the reference: the worst row's RMS error over that
row's RMS, because real faults are whole rows wrong inside of a good average, and the RMS error over everything. A sum
of K products in f32 may be off by c * eps * sqrt(K), c = 4; rounding the result to its dtype costs half a unit in the
last place on top.

Activations of 16 bits are off by at most 1 / 65534 of the largest of their group, which costs a layer 4e-5 to 7e-5
where activations are normal and 1e-4 where they have heavy tails.
"""

import math

import numpy as np
import pytest

EPS = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}

ROUNDED = 1e-4
"""What activations of 16 bits may add to the relative error of a layer."""

_SPLIT = 2.0**-17 / math.sqrt(3)
"""What the sum of two bf16 numbers leaves of an f32, in RMS: GPUs multiply such sums."""


def bound(dtype: str, *depths: int) -> float:
    """The relative error allowed for a result of `dtype` behind f32 sums of the given lengths, one after the other."""
    sums = 4 * EPS["float32"] * sum(math.sqrt(depth) for depth in depths)
    return sums + (0.0 if dtype == "float32" else EPS[dtype] / 2)


def split(kind: str, n_roundings: int) -> float:
    """What a GPU may add where f32 numbers meet so many times: a single row is off by up to twice the RMS."""
    return 2 * math.sqrt(n_roundings) * _SPLIT if kind == "cuda" else 0.0


def errors(found: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """(worst row, overall): RMS errors relative to the RMS of the reference. A row of zeros must be met exactly."""
    found, reference = np.atleast_2d(np.asarray(found, np.float64)), np.atleast_2d(reference)
    difference = _rms(found - reference, -1)
    scale = _rms(reference, -1)
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = np.where(difference == 0, 0.0, difference / scale)
        overall = _rms(found - reference, None) / _rms(reference, None) if difference.any() else 0.0
    return float(np.max(rows, initial=0.0)), float(overall)


def assert_close(found: np.ndarray, reference: np.ndarray, limit: float, *, may_be_exact: bool = False) -> None:
    """Fail unless shapes agree, everything is finite, and both errors are within `limit`.

    An error of exactly zero over many sums is as suspect as a large one: it says that the reference was compared with
    itself. `may_be_exact` is for small integers and selections, where zero is the right answer.
    """
    if found.shape != reference.shape:
        pytest.fail(f"found shape {found.shape}, expected {reference.shape}")
    if not np.isfinite(np.asarray(found, np.float64)).all():
        rows = np.argwhere(~np.isfinite(np.asarray(found, np.float64)))
        pytest.fail(f"{len(rows)} values are not finite, the first at {rows[0].tolist()}")
    worst, overall = errors(found, reference)
    if not worst <= limit or not overall <= limit:
        pytest.fail(f"worst row {worst:.3g}, overall {overall:.3g}, allowed {limit:.3g}")
    if worst == 0 and reference.size >= 256 and not may_be_exact:
        pytest.fail("the result equals the reference exactly: was it compared with itself?")


def _rms(values: np.ndarray, axis: int | None) -> np.ndarray:
    return np.sqrt(np.mean(np.square(values), axis=axis)) if values.size else np.zeros(values.shape[:-1])
