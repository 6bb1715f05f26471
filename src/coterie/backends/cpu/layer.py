"""The experts of a layer in one go: prepare, gate and up with the activation, down with the weighted sum.

A few jobs run back to back in the pool. Rows are grouped by expert, so that an expert's weights are read once for all
tokens that chose it; one token and a thousand take the same way. Between gate and down the hidden values are stored
directly as the down weights meet them, so nothing is prepared twice. Every result element is summed by one thread in
the order of experts: the outcome does not depend on the number of threads.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from coterie.backends.cpu import isa
from coterie.backends.cpu import layer_groups as g
from coterie.backends.cpu import layer_jobs as jobs
from coterie.backends.cpu import product as p
from coterie.backends.cpu import scratch as s
from coterie.backends.cpu.arithmetic import F32
from coterie.backends.cpu.glu import ACTIVATION_INDEX
from coterie.backends.cpu.isa import ISAS
from coterie.backends.cpu.layout import activation_order
from coterie.backends.cpu.linear import WORTH_WAKING, chunk_rows
from coterie.backends.cpu.matrix import Matrix, matrix_of
from coterie.backends.cpu.pool import Phase, Pool, address_of, get_pool
from coterie.backends.cpu.prepare import job, sums_group

_MAX_HIDDEN = 256 << 20
"""Bytes of hidden values at a time; more tokens go through in parts."""

FEW_ROWS = 4
"""Up to so many rows an expert, on average, its down weights are read in one stream."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """What `moe` derives from an `Experts` record once.

    gate_up: address of the job. hidden_order: its words PLACES to SUMS_GROUP, for down weights that meet f32.
    """

    gate: Matrix
    up: Matrix | None
    down: Matrix
    activation: int
    n_experts: int
    n_hidden: int
    gate_up: int
    hidden_order: tuple[int, int, int, int]


@functools.cache
def _hidden_places(key: int) -> tuple[np.ndarray, np.ndarray]:
    """(places, factors) of a block's hidden values, by their order in the row: the inverse of `activation_order`."""
    order, factors = activation_order(key)
    places = np.empty_like(order)
    places[order] = np.arange(len(order), dtype=order.dtype)
    return places, factors[places]


def _layer_of(experts: Any, precision: str) -> Layer:
    gate = matrix_of(experts.gate, experts.gate_bias, precision, "gate")
    up = None if experts.up is None else matrix_of(experts.up, experts.up_bias, precision, "up")
    down = matrix_of(experts.down, experts.down_bias, precision, "down")
    layout, arithmetic = down.layout, down.arithmetic
    places, factors = _hidden_places(layout.key)
    order = (address_of(places), address_of(factors), layout.block, sums_group(layout))
    index = ISAS.index(layout.isa)
    name = f"gate_up.{index}" if arithmetic is F32 else f"gate_up.{arithmetic.name}.{layout.key}"
    return Layer(
        gate, up, down, ACTIVATION_INDEX[experts.activation], experts.n_experts, experts.intermediate,
        job(name, lambda: jobs.make_gate_up(index, jobs.store_of(layout, arithmetic))), order,
    )  # fmt: skip


def moe(x: np.ndarray, routing: Any, experts: Any, precision: str = "default") -> np.ndarray:
    """The experts of each token: x [T, H], ids and weights [T, k], to [T, H] in x's dtype.

    precision: "exact" is products in f32, "default" activations of 16 bits where there is a kernel for them, "int8"
    activations of 8 bits.
    """
    name = f"cpu.layer.{precision}.{isa.current().name}"
    layer = experts.derived.get(name)
    if layer is None:
        layer = experts.derived.setdefault(name, _layer_of(experts, precision))
    tokens = np.ascontiguousarray(x, np.float32)
    ids, weights = np.ascontiguousarray(routing.ids, np.uint32), np.ascontiguousarray(routing.weights, np.float32)
    out = np.empty((len(tokens), layer.down.n_rows), np.float32)
    step = max(1, _MAX_HIDDEN // (ids.shape[1] * layer.down.preparation.row_bytes))
    pool = get_pool()
    with pool.lock:
        for begin in range(0, len(tokens), step):
            part = slice(begin, begin + step)
            _run_layer(pool, layer, tokens[part], ids[part], weights[part], out[part])
    return out.astype(x.dtype, copy=False)


@dataclass(slots=True)
class _Call:
    """One call's sizes, and the addresses of its tables in the pool's buffers."""

    pool: Pool
    layer: Layer
    n_tokens: int
    top_k: int
    groups: int
    tokens: int
    inputs: int
    weights: int
    n_groups: int = 0
    hidden: int = 0
    scratch: int = 0
    worth: bool = False

    @property
    def n_rows(self) -> int:
        return self.n_tokens * self.top_k


def _run_layer(pool: Pool, layer: Layer, x: np.ndarray, ids: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    n_rows = ids.size
    call = _Call(
        pool, layer, *ids.shape, pool.buffer("groups", 24 * min(layer.n_experts, n_rows)),
        pool.buffer("tokens", 8 * n_rows), pool.buffer("inputs", 8 * n_rows), pool.buffer("weights", 4 * n_rows),
    )  # fmt: skip
    stride = layer.gate.preparation.row_bytes
    prepared = pool.buffer("prepared", len(x) * stride)
    call.n_groups = g.plan(
        address_of(ids), address_of(weights), n_rows, call.top_k, layer.n_experts,
        pool.buffer("counts", 8 * layer.n_experts), call.groups, call.tokens, call.inputs, call.weights, prepared,
        stride,
    )  # fmt: skip
    if call.n_groups == 0:
        out[...] = 0
        return
    call.hidden = pool.buffer("hidden", n_rows * layer.down.preparation.row_bytes)
    call.scratch = pool.buffer("scratch", pool.n_threads * s.thread_bytes(layer.down.layout.isa))
    call.worth = n_rows * layer.n_hidden * layer.gate.n_inputs >= WORTH_WAKING
    phases = [layer.gate.preparation.phase(pool, layer.gate.preparation, x, prepared)]
    up_inputs = call.inputs
    if layer.up is not None and layer.up.preparation != layer.gate.preparation:
        # The up weights are in another format and decode in another order.
        up_prepared = pool.buffer("up_prepared", len(x) * layer.up.preparation.row_bytes)
        up_inputs = pool.buffer("up_inputs", 8 * n_rows)
        g.inputs_of(call.tokens, call.groups, call.n_groups, up_prepared, layer.up.preparation.row_bytes, up_inputs)
        phases.append(layer.up.preparation.phase(pool, layer.up.preparation, x, up_prepared))
    phases.append(_gate_up(call, up_inputs))
    few = n_rows <= FEW_ROWS * call.n_groups
    phases += _down_by_expert(call, out) if few else [_down(call, out)]
    pool.run(*phases)


def _gate_up(call: _Call, up_inputs: int) -> Phase:
    layer, kind = call.layer, call.layer.down.layout.isa
    chunk = _hidden_chunk(layer, call.n_groups, call.pool.n_threads)
    n_chunks = -(-layer.n_hidden // chunk)
    words = [
        layer.gate.at, 0 if layer.up is None else layer.up.at, call.groups, n_chunks, chunk, layer.n_hidden,
        call.inputs, call.hidden, layer.down.preparation.row_bytes, *layer.hidden_order, call.scratch,
        s.thread_bytes(kind), s.sums_offset(kind), layer.activation, call.n_groups - 1, up_inputs,
    ]  # fmt: skip
    return layer.gate_up, call.pool.place(words), call.n_groups * n_chunks, call.worth


def _hidden_chunk(layer: Layer, n_groups: int, n_threads: int) -> int:
    """Hidden values in a unit: whole groups of the down weights, so that their sums are one thread's work."""
    smallest = max(32, layer.down.layout.group)
    wanted = layer.n_hidden * n_groups // (32 * n_threads)
    return max(smallest, min(p.MAX_ROWS, wanted // smallest * smallest))


def _down(call: _Call, out: np.ndarray) -> Phase:
    """The outputs of all experts, added up as they come."""
    layer, kind = call.layer, call.layer.down.layout.isa
    chunk = chunk_rows(layer.down.n_rows, 1, call.pool.n_threads)
    words = [
        layer.down.at, call.n_groups, call.groups, 0, chunk, layer.down.n_rows, 0, call.hidden,
        layer.down.preparation.row_bytes, address_of(out), out.strides[0], call.tokens, call.weights, call.scratch,
        s.thread_bytes(kind), s.sums_offset(kind), call.n_tokens,
    ]  # fmt: skip
    index = ISAS.index(kind)
    function = job(f"down.{index}", lambda: jobs.make_down(index))
    return function, call.pool.place(words), -(-layer.down.n_rows // chunk), call.worth


def _down_by_expert(call: _Call, out: np.ndarray) -> list[Phase]:
    """The outputs of each expert by themselves, then their sums."""
    pool, layer, kind = call.pool, call.layer, call.layer.down.layout.isa
    n_out, row_bytes = layer.down.n_rows, layer.down.preparation.row_bytes
    hidden_rows = pool.buffer("hidden_rows", 8 * call.n_rows)
    g.rows_of(call.hidden, row_bytes, hidden_rows, call.n_rows)
    places = pool.buffer("places", 8 * call.n_tokens * (call.top_k + 1))
    g.places_of(call.tokens, call.groups, call.n_groups, call.n_tokens, call.top_k, places)
    outputs = pool.buffer("outputs", 4 * call.n_rows * n_out)
    chunk = chunk_rows(n_out, call.n_groups, pool.n_threads)
    n_chunks = -(-n_out // chunk)
    words = [
        layer.down.at, 0, call.groups, n_chunks, chunk, n_out, hidden_rows, 0, 0, outputs, 4 * n_out, 0, 0,
        call.scratch, s.thread_bytes(kind), s.sums_offset(kind), 0, call.n_groups - 1,
    ]  # fmt: skip
    each = job("down_each", lambda: jobs.down_each), pool.place(words), call.n_groups * n_chunks, call.worth
    n_chunks = -(-n_out // jobs.SUM_COLUMNS)
    words = [0, call.top_k, 0, n_chunks, 0, n_out, 0, outputs, 4 * n_out, address_of(out), out.strides[0], places]
    words.append(call.weights)
    index = ISAS.index(kind)
    function = job(f"add_experts.{index}", lambda: jobs.make_sum(index))
    return [each, (function, pool.place(words), call.n_tokens * n_chunks, call.n_rows * n_out >= WORTH_WAKING)]
