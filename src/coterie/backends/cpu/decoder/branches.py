"""The branches of a layer, each in one call: routed experts with their router, and a dense MLP.

That is for the rows of a decoding step. More rows are worth the verbs that a branch is made of, one after the other.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coterie.backends.cpu import layer, linear
from coterie.backends.cpu.decoder.matrices import Weight, matrices_for, remembered
from coterie.backends.cpu.glu import ACTIVATION_INDEX, GATE, glu_job, glu_units, whole_vectors
from coterie.backends.cpu.glu import OUT as ACTIVATED
from coterie.backends.cpu.jit import njit
from coterie.backends.cpu.layer_launch import launch as launch_experts
from coterie.backends.cpu.linear import Matrices
from coterie.backends.cpu.pool import Pool, address_of, get_pool, run_phases
from coterie.backends.cpu.routing import check_routed, route_rows, settings_of
from coterie.ops import RouteSpec

MOST_ROWS = 8
"""Up to so many rows a branch is one call."""


def routed_experts(
    x: np.ndarray,
    seen: np.ndarray,
    router: Weight,
    bias: np.ndarray | None,
    spec: RouteSpec,
    experts: Any,
    precision: str,
) -> np.ndarray:
    """`coterie.models.launches.routed_experts` for few rows."""
    matrices, made = matrices_for((router,), (bias,), "exact"), layer.layer_for(experts, precision)
    tokens, looked_at = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(seen, np.float32)
    n_tokens, top_k = len(tokens), spec.top_k
    logits = np.empty((n_tokens, experts.n_experts), np.float32)
    ids, weights = np.empty((n_tokens, top_k), np.uint32), np.empty((n_tokens, top_k), np.float32)
    out, pool = np.empty((n_tokens, made.down.n_rows), np.float32), get_pool()
    with pool.lock:
        frames = steady(pool, lambda: (
            linear.frame_for(pool, matrices, n_tokens), layer.frame_for(pool, made, n_tokens, top_k)
        ))  # fmt: skip
        bad = _launch_routed(pool.block, *frames, looked_at, tokens, logits, ids, weights, out, *settings_of(spec))
    check_routed(bad)
    return out


@njit
def _launch_routed(
    block, router_frame, experts_frame, seen, x, logits, ids, weights, out, sigmoid, renormalize, bias, scale, n_groups,
    top_groups, by_top2, factor, floor,
):  # fmt: skip
    """The first row whose logits are unusable, or -1."""
    n_rows = x.shape[0]
    linear.launch(block, router_frame, seen.ctypes.data, 4 * seen.shape[1], logits.ctypes.data, 0, n_rows)
    bad = route_rows(
        logits, ids, weights, sigmoid, renormalize, bias, scale, n_groups, top_groups, by_top2, factor, floor
    )
    if bad < 0:
        has_weight = launch_experts(
            block, experts_frame, x.ctypes.data, 4 * x.shape[1], ids.ctypes.data, weights.ctypes.data, out.ctypes.data,
            4 * out.shape[1],
        )  # fmt: skip
        if not has_weight:
            out[:] = np.float32(0)
    return bad


@dataclass(frozen=True, slots=True, eq=False)
class _Dense:
    """A dense MLP: what rows meet first, and what their hidden values meet.

    frames: phase and words of the activation, by the number of rows, with the generation of the pool's buffers.
    """

    gate_up: Matrices
    down: Matrices
    activation: int
    frames: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict)


_WORTH_SHARING = 1 << 13
"""Hidden values from which a second thread gains more than it costs to wake."""
_WORDS, _STRIDE = 4, 5
"""Where the words of the activation begin in its frame, and, among them, the bytes of a row of hidden values."""


def mlp(x: np.ndarray, gate: Weight, up: Weight, down: Weight, activation: str, precision: str) -> np.ndarray:
    """`coterie.models.launches.mlp` for few rows."""

    def make() -> _Dense:
        first, second = matrices_for((gate, up), (None, None), precision), matrices_for((down,), (None,), precision)
        return _Dense(first, second, ACTIVATION_INDEX[activation])

    dense = remembered(f"cpu.mlp.{precision}.{activation}", (gate, up, down), make)
    rows, pool = np.ascontiguousarray(x, np.float32), get_pool()
    n_rows = len(rows)
    out = np.empty((n_rows, dense.down.n_columns), np.float32)
    with pool.lock:
        frames = steady(pool, lambda: (
            linear.frame_for(pool, dense.gate_up, n_rows), _activation_for(pool, dense, n_rows),
            linear.frame_for(pool, dense.down, n_rows),
        ))  # fmt: skip
        _launch_mlp(pool.block, *frames, rows, out)
    return out


def _activation_for(pool: Pool, dense: _Dense, n_rows: int) -> np.ndarray:
    held = dense.frames.get(n_rows)
    if held is None or held[0] != pool.generation:
        n_hidden = dense.down.all[0].n_inputs
        count = n_rows * n_hidden
        padded = whole_vectors(count)
        gates = pool.buffer("dense", 4 * (2 * padded + padded))
        frame = np.zeros(_WORDS + 8, np.int64)
        phase = [glu_job(), address_of(frame) + 8 * _WORDS, glu_units(padded), count >= _WORTH_SHARING]
        words = [dense.activation, gates, gates + 4 * count, gates + 8 * padded, padded, 4 * n_hidden]
        frame[: _WORDS + len(words)] = [*phase, *words]
        held = dense.frames[n_rows] = (pool.generation, frame)
    return held[1]


@njit
def _launch_mlp(block, gate_up, activation, down, x, out):
    n_rows = x.shape[0]
    linear.launch(block, gate_up, x.ctypes.data, 4 * x.shape[1], activation[_WORDS + GATE], 0, n_rows)
    run_phases(block, activation.ctypes.data, 1)
    hidden, stride = activation[_WORDS + ACTIVATED], activation[_WORDS + _STRIDE]
    linear.launch(block, down, hidden, stride, out.ctypes.data, 0, n_rows)


def steady(pool: Pool, make: Callable[[], Any]) -> Any:
    """Frames that hold together: making one may move the buffers that another speaks of."""
    while True:
        generation, frames = pool.generation, make()
        if pool.generation == generation:
            return frames
