"""Gated activations: a row in a job's hands, and whole arrays."""

import math
from typing import Any

import numba
import numpy as np
from numba import types

from coterie.backends.cpu import isa
from coterie.backends.cpu.atoms import load_f32, store_f32
from coterie.backends.cpu.isa import ISAS
from coterie.backends.cpu.kernels.activation import VECTOR_ACTIVATIONS, glu_vectors
from coterie.backends.cpu.pool import address_of, get_pool
from coterie.backends.cpu.prepare import job
from coterie.backends.cpu.recording import not_recorded

ACTIVATION_INDEX = {name: index for index, name in enumerate((*VECTOR_ACTIVATIONS, "gelu"))}
GELU = ACTIVATION_INDEX["gelu"]

ACTIVATION, GATE, UP, OUT, COUNT = range(5)

_CHUNK = 8192
"""Numbers in a unit."""


@numba.njit
def gelu_row(gate: Any, up: Any, out: Any, count: Any) -> None:
    """out[i] = gelu(gate[i]) * up[i]; the complementary error function keeps large negative gates exact."""
    for index in range(count):
        value = types.float64(load_f32(gate, index))
        share = 0.5 * math.erfc(value * -0.7071067811865476)
        store_f32(out, index, types.float32(value * share * load_f32(up, index)))


def _make_job(isa_index: int) -> Any:
    def glu_chunk(a: Any, unit: int, _thread: int) -> None:
        first = unit * _CHUNK
        count = min(_CHUNK, a[COUNT] - first)
        gate, up, out = a[GATE] + 4 * first, a[UP] + 4 * first, a[OUT] + 4 * first
        if a[ACTIVATION] == GELU:
            gelu_row(gate, up, out, count)
        else:
            glu_vectors(isa_index, a[ACTIVATION], gate, up, out, count)

    return glu_chunk


def glu(gate: np.ndarray, up: np.ndarray, activation: str) -> np.ndarray:
    """activation(gate) * up for dense arrays of one shape and dtype; the same shape and dtype."""
    not_recorded()
    count = gate.size
    padded = whole_vectors(count)
    first, second = _padded(gate, padded), _padded(up, padded)
    out = np.empty(padded, np.float32)
    words = [ACTIVATION_INDEX[activation], address_of(first), address_of(second), address_of(out), padded]
    arguments = np.array(words, np.int64)
    get_pool().run((glu_job(), address_of(arguments), glu_units(padded), True))
    return out[:count].reshape(gate.shape).astype(gate.dtype, copy=False)


def glu_job() -> int:
    """The address of the job whose words are ACTIVATION to COUNT; COUNT is whole vectors of numbers."""
    index = ISAS.index(isa.current())
    return job(f"glu.{index}", lambda: _make_job(index))


def glu_units(count: int) -> int:
    """The job's units for so many numbers."""
    return -(-count // _CHUNK)


def whole_vectors(count: int) -> int:
    """`count` rounded up to whole vectors."""
    lanes = isa.current().lanes
    return -(-count // lanes) * lanes


def glu_fused(gate_up: np.ndarray, activation: str) -> np.ndarray:
    """`glu` of the first and the second half of the last axis."""
    half = gate_up.shape[-1] // 2
    return glu(np.ascontiguousarray(gate_up[..., :half]), np.ascontiguousarray(gate_up[..., half:]), activation)


def _padded(array: np.ndarray, padded: int) -> np.ndarray:
    """The numbers as flat f32, with zeros behind them up to whole vectors; the array's own memory where it can be."""
    flat = np.ascontiguousarray(array, np.float32).reshape(-1)
    return flat if flat.size == padded else np.concatenate([flat, np.zeros(padded - flat.size, np.float32)])
