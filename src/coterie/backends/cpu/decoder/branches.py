"""The branches of a layer, each in one call: routed experts with their router, and a dense MLP.

That is for the rows of a decoding step. More rows are worth the verbs that a branch is made of, one after the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import carray

from coterie.backends.cpu import layer, linear
from coterie.backends.cpu.atoms import f32_pointer, i64_pointer, load_f32, store_i64, u32_pointer
from coterie.backends.cpu.decoder.frames import Frame, Frames, make_frame, optional_address
from coterie.backends.cpu.decoder.matrices import Weight, matrices_for, remembered
from coterie.backends.cpu.decoder.recorded_step import recorded_step
from coterie.backends.cpu.glu import ACTIVATION_INDEX, GATE, glu_job, glu_units, whole_vectors
from coterie.backends.cpu.glu import OUT as ACTIVATED
from coterie.backends.cpu.jit import njit
from coterie.backends.cpu.layer_launch import MOST_PHASES, PHASES, ROWS, WORDS, plan_layer
from coterie.backends.cpu.linear import Matrices
from coterie.backends.cpu.pool import Pool, address_of, get_pool, run_phases
from coterie.backends.cpu.prepare import job
from coterie.backends.cpu.recording import recording
from coterie.backends.cpu.routing import check_routed, route_rows, settings_of
from coterie.ops import RouteSpec

MOST_ROWS = 8
"""Up to so many rows a branch is one call."""

# Words of the two jobs between a router and the experts. Addresses: of logits, ids, weights, x and out, of the vectors
# of a spec, or 0, of its factors, f32 [2], and of the experts' own frame. FOUND: the first row that cannot be routed;
# if there is one it is stored at UNUSABLE, too.
N_ROWS, N_EXPERTS, TOP_K, LOGITS, IDS, WEIGHTS, X, N_INPUTS, OUT, N_OUTPUTS, EXPERTS = range(11)
SIGMOID, RENORMALIZE, BIAS, SCALE, N_GROUPS, TOP_GROUPS, BY_TOP2, FACTORS, FOUND, UNUSABLE = range(11, 21)
_ROUTING = 8
"""Where these words begin in the frame of the two jobs."""


@dataclass(frozen=True, slots=True, eq=False)
class Routed:
    """The frames of routed experts: the router's, that of what comes between, the experts' own."""

    router: np.ndarray
    between: Frame
    experts: np.ndarray

    @property
    def experts_phases(self) -> int:
        """Where the phases are that the second job between writes."""
        return address_of(self.experts) + 8 * WORDS * PHASES


def routed_experts(
    frames: Frames,
    x: np.ndarray,
    seen: np.ndarray,
    router: Weight,
    bias: np.ndarray | None,
    spec: RouteSpec,
    experts: Any,
    precision: str,
) -> np.ndarray:
    """`coterie.models.launches.routed_experts` for few rows."""
    tokens, looked_at = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(seen, np.float32)
    matrices, made = matrices_for((router,), (bias,), "exact"), layer.layer_for(experts, precision)
    n_rows = len(tokens)
    logits, out = np.empty((n_rows, experts.n_experts), np.float32), np.empty((n_rows, made.down.n_rows), np.float32)
    ids, weights = np.empty((n_rows, spec.top_k), np.uint32), np.empty((n_rows, spec.top_k), np.float32)
    pool = get_pool()

    def all_frames() -> Routed:
        own = layer.frame_for(pool, made, n_rows, spec.top_k)
        key = ("routed", n_rows, id(spec), id(made), id(own))
        between = frames.get(pool, key, n_rows, lambda: _between(n_rows, made, spec, own))
        return Routed(linear.frame_for(pool, matrices, n_rows), between, own)

    with pool.lock:
        found = steady(pool, all_frames)
        bad = _launch_routed(
            pool.block, found.router, found.between.memory, found.experts, looked_at, tokens, logits, ids, weights, out
        )
        linear.record(found.router, matrices, looked_at, logits)
        found.between.record(tokens, ids, weights, out, found.experts)
        own = recording()
        if own is not None:
            own.add(found.experts_phases, MOST_PHASES)
    check_routed(bad)
    return out


def _between(n_rows: int, made: layer.Layer, spec: RouteSpec, own: np.ndarray) -> Frame:
    sigmoid, renormalize, bias, scale, n_groups, top_groups, by_top2, factor, floor = settings_of(spec)
    factors = np.array([factor, floor], np.float32)
    step = recorded_step()
    unusable = np.zeros(1, np.int64) if step is None else step.unusable
    vectors = [np.ascontiguousarray(vector, np.float32) if vector.size else None for vector in (bias, scale)]
    words = [
        n_rows, made.n_experts, spec.top_k, 0, 0, 0, 0, made.gate.n_inputs, 0, made.down.n_rows, address_of(own),
        sigmoid, renormalize, *map(optional_address, vectors), n_groups, top_groups, by_top2, address_of(factors), -1,
        address_of(unusable),
    ]  # fmt: skip
    jobs = [
        (job("route", lambda: _route), words, 1, False),
        (job("plan_experts", lambda: _plan), words, 1, False),
    ]
    return make_frame(jobs, (factors, unusable, *vectors, spec, made, own))


@njit
def _launch_routed(block, router, between, experts, seen, x, logits, ids, weights, out):
    """The first row whose logits are unusable, or -1."""
    linear.launch(block, router, seen.ctypes.data, 4 * seen.shape[1], logits.ctypes.data, 0, x.shape[0])
    words = between[_ROUTING:]
    words[LOGITS], words[IDS], words[WEIGHTS] = logits.ctypes.data, ids.ctypes.data, weights.ctypes.data
    words[X], words[OUT] = x.ctypes.data, out.ctypes.data
    run_phases(block, between.ctypes.data, 2)
    run_phases(block, experts.ctypes.data + 8 * WORDS * PHASES, MOST_PHASES)
    return words[FOUND]


def _route(a: Any, _unit: int, _thread: int) -> None:
    n_rows, n_experts, top_k = a[N_ROWS], a[N_EXPERTS], a[TOP_K]
    bias = carray(f32_pointer(a[BIAS]), (n_experts if a[BIAS] != 0 else 0,))
    scale = carray(f32_pointer(a[SCALE]), (n_experts if a[SCALE] != 0 else 0,))
    found = route_rows(
        carray(f32_pointer(a[LOGITS]), (n_rows, n_experts)), carray(u32_pointer(a[IDS]), (n_rows, top_k)),
        carray(f32_pointer(a[WEIGHTS]), (n_rows, top_k)), a[SIGMOID] != 0, a[RENORMALIZE] != 0, bias, scale,
        a[N_GROUPS], a[TOP_GROUPS], a[BY_TOP2] != 0, load_f32(a[FACTORS], 0), load_f32(a[FACTORS], 1),
    )  # fmt: skip
    a[FOUND] = found
    if found >= 0:
        store_i64(a[UNUSABLE], 0, found)


def _plan(a: Any, _unit: int, _thread: int) -> None:
    """Write the phases of the experts; those that they do not need have no units."""
    frame, n_phases = carray(i64_pointer(a[EXPERTS]), (ROWS, WORDS)), 0
    if a[FOUND] < 0:
        n_phases = plan_layer(
            frame, a[X], 4 * a[N_INPUTS], a[IDS], a[WEIGHTS], a[OUT], 4 * a[N_OUTPUTS]
        )  # fmt: skip
    for phase in range(n_phases, MOST_PHASES):
        frame[PHASES, 4 * phase + 2] = 0
    if n_phases == 0:
        out = carray(f32_pointer(a[OUT]), (a[N_ROWS] * a[N_OUTPUTS],))
        out[:] = np.float32(0)


@dataclass(frozen=True, slots=True, eq=False)
class _Dense:
    """A dense MLP: what rows meet first, and what their hidden values meet."""

    gate_up: Matrices
    down: Matrices


_WORTH_SHARING = 1 << 13
"""Hidden values from which a second thread gains more than it costs to wake."""
_GLU, _STRIDE = 4, 5
"""Where the words of the activation begin in its frame, and, among them, the bytes of a row of hidden values."""


def mlp(
    frames: Frames, x: np.ndarray, gate: Weight, up: Weight, down: Weight, activation: str, precision: str
) -> np.ndarray:
    """`coterie.models.launches.mlp` for few rows."""

    def make() -> _Dense:
        return _Dense(matrices_for((gate, up), (None, None), precision), matrices_for((down,), (None,), precision))

    dense = remembered(f"cpu.mlp.{precision}", (gate, up, down), make)
    rows, pool = np.ascontiguousarray(x, np.float32), get_pool()
    n_rows = len(rows)
    out = np.empty((n_rows, dense.down.n_columns), np.float32)
    n_hidden = dense.down.all[0].n_inputs

    def all_frames() -> tuple[np.ndarray, Frame, np.ndarray]:
        key = ("glu", n_rows, n_hidden, activation)
        between = frames.get(pool, key, n_rows, lambda: _activation(pool, n_rows, n_hidden, activation))
        first = linear.frame_for(pool, dense.gate_up, n_rows)
        return first, between, linear.frame_for(pool, dense.down, n_rows)

    with pool.lock:
        first, between, second = steady(pool, all_frames)
        _launch_mlp(pool.block, first, between.memory, second, rows, out)
        linear.record(first, dense, rows)
        between.record()
        linear.record(second, out)
    return out


def _activation(pool: Pool, n_rows: int, n_hidden: int, activation: str) -> Frame:
    count = n_rows * n_hidden
    padded = whole_vectors(count)
    gates = pool.buffer("dense", 12 * padded)
    words = [ACTIVATION_INDEX[activation], gates, gates + 4 * count, gates + 8 * padded, padded, 4 * n_hidden]
    return make_frame([(glu_job(), words, glu_units(padded), count >= _WORTH_SHARING)], ())


@njit
def _launch_mlp(block, gate_up, activation, down, x, out):
    n_rows = x.shape[0]
    linear.launch(block, gate_up, x.ctypes.data, 4 * x.shape[1], activation[_GLU + GATE], 0, n_rows)
    run_phases(block, activation.ctypes.data, 1)
    hidden, stride = activation[_GLU + ACTIVATED], activation[_GLU + _STRIDE]
    linear.launch(block, down, hidden, stride, out.ctypes.data, 0, n_rows)


def steady(pool: Pool, make: Callable[[], Any]) -> Any:
    """Frames that hold together: making one may move the buffers that another speaks of."""
    while True:
        generation, frames = pool.generation, make()
        if pool.generation == generation:
            return frames
