"""The experts of a layer in one go: prepare, gate and up with the activation, down with the weighted sum.

Three jobs run back to back in the pool. Rows are grouped by expert, so that an expert's weights are read once for all
tokens that chose it; one token and a thousand take the same way. Between gate and down the hidden values are stored
directly in the order that the down weights are decoded in, so nothing is prepared twice. Every result element is summed
by one thread in the order of experts: the outcome does not depend on the number of threads.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import types

from coterie.backends.cpu import isa
from coterie.backends.cpu import product as p
from coterie.backends.cpu import scratch as s
from coterie.backends.cpu.atoms import load_f32, load_i64, load_u32, store_f32, store_i64
from coterie.backends.cpu.glu import ACTIVATION_INDEX, GELU, gelu_row
from coterie.backends.cpu.isa import ISAS
from coterie.backends.cpu.jit import njit
from coterie.backends.cpu.kernels.activation import glu_vectors
from coterie.backends.cpu.kernels.combine import add_scaled
from coterie.backends.cpu.layout import activation_order
from coterie.backends.cpu.linear import WORTH_WAKING, chunk_rows
from coterie.backends.cpu.matrix import Matrix, matrix_of
from coterie.backends.cpu.pool import Phase, Pool, address_of, get_pool
from coterie.backends.cpu.prepare import job, prepare_phase, sums_group

GATE, UP, GROUPS, N_CHUNKS, CHUNK, N_HIDDEN, INPUTS = 0, 1, 2, 3, 4, 5, 6
HIDDEN, HIDDEN_STRIDE, PLACES, FACTORS, BLOCK, SUMS_GROUP = 7, 8, 9, 10, 11, 12
SCRATCH, SCRATCH_STRIDE, SUMS, ACTIVATION, N_THREADS, LAST_GROUP, UP_INPUTS = 13, 14, 15, 16, 17, 18, 19

DOWN, N_GROUPS, OUT, OUT_STRIDE, TOKENS, WEIGHTS, N_TOKENS, N_OUT = 0, 1, 9, 10, 11, 12, 16, 5

_MAX_HIDDEN = 256 << 20
"""Bytes of hidden values at a time; more tokens go through in parts."""


def _make_gate_up(isa_index: int) -> Any:
    def gate_up(a: Any, unit: int, thread: int) -> None:
        """Unit: one chunk of an expert's hidden values, for all tokens of its group."""
        group, chunk = unit // a[N_CHUNKS], unit % a[N_CHUNKS]
        expert, first, count = s.group_at(a[GROUPS], group)
        row = chunk * a[CHUNK]
        n_rows = min(a[CHUNK], a[N_HIDDEN] - row)
        scratch = a[SCRATCH] + thread * a[SCRATCH_STRIDE]
        sums, tile, up_tile = scratch + a[SUMS], scratch + s.TILE, scratch + s.SECOND_TILE
        # One stack may hold the up rows of an expert behind its gate rows.
        up, up_row = (a[UP], row) if a[UP] != 0 else (a[GATE], a[N_HIDDEN] + row)
        for begin in range(first, first + count, p.MAX_TOKENS):
            n_tokens = min(p.MAX_TOKENS, first + count - begin)
            s.multiply(scratch, sums, a[GATE], expert, row, n_rows, a[INPUTS] + 8 * begin, n_tokens, tile)
            s.multiply(scratch, sums, up, expert, up_row, n_rows, a[UP_INPUTS] + 8 * begin, n_tokens, up_tile)
            for token in range(n_tokens):
                line = tile + 4 * p.MAX_ROWS * token
                up_line = up_tile + 4 * p.MAX_ROWS * token
                if a[ACTIVATION] == GELU:
                    gelu_row(line, up_line, line, n_rows)
                else:
                    glu_vectors(isa_index, a[ACTIVATION], line, up_line, line, n_rows)
                _store_hidden(a, line, row, n_rows, a[HIDDEN] + (begin + token) * a[HIDDEN_STRIDE])

    return gate_up


@njit
def _store_hidden(a, line, row, n_rows, hidden):
    """Hidden values row..row + n_rows of one routed row, to their places; the sums of the groups that they fill; zeros
    at the end.
    """
    block = a[BLOCK]
    for index in range(n_rows):
        value = load_f32(line, index)
        inside = (row + index) % block
        place = row + index - inside + load_u32(a[PLACES], inside)
        store_f32(hidden, place, value * load_f32(a[FACTORS], inside))
    padded = (a[N_HIDDEN] + block - 1) // block * block
    if row + n_rows == a[N_HIDDEN]:
        for index in range(a[N_HIDDEN], padded):
            inside = index % block
            store_f32(hidden, index - inside + load_u32(a[PLACES], inside), types.float32(0.0))
    group = a[SUMS_GROUP]
    if group > 0:
        for index in range(n_rows // group):
            total = types.float32(0.0)
            for place in range(index * group, index * group + group):
                total += load_f32(line, place)
            store_f32(hidden, padded + row // group + index, total)


def _make_down(isa_index: int) -> Any:
    def down(a: Any, unit: int, thread: int) -> None:
        """Unit: one chunk of the output's columns, for all tokens and all experts."""
        row = unit * a[CHUNK]
        n_rows = min(a[CHUNK], a[N_OUT] - row)
        scratch = a[SCRATCH] + thread * a[SCRATCH_STRIDE]
        sums, tile, table = scratch + a[SUMS], scratch + s.TILE, scratch + s.TABLE
        for token in range(a[N_TOKENS]):
            out = a[OUT] + token * a[OUT_STRIDE]
            for index in range(row, row + n_rows):
                store_f32(out, index, types.float32(0.0))
        for group in range(a[N_GROUPS]):
            expert, first, count = s.group_at(a[GROUPS], group)
            for begin in range(first, first + count, p.MAX_TOKENS):
                n_tokens = min(p.MAX_TOKENS, first + count - begin)
                for token in range(n_tokens):
                    store_i64(table, token, a[HIDDEN] + (begin + token) * a[HIDDEN_STRIDE])
                if group + 1 < a[N_GROUPS]:
                    s.expect(scratch, a[DOWN], load_i64(a[GROUPS], 3 * group + 3), row)
                else:
                    s.expect(scratch, a[DOWN], load_i64(a[GROUPS], 0), row + a[CHUNK] * a[N_THREADS])
                s.multiply(scratch, sums, a[DOWN], expert, row, n_rows, table, n_tokens, tile)
                for token in range(n_tokens):
                    line = tile + 4 * p.MAX_ROWS * token
                    weight = load_f32(a[WEIGHTS], begin + token)
                    out = a[OUT] + load_i64(a[TOKENS], begin + token) * a[OUT_STRIDE] + 4 * row
                    add_scaled(isa_index, out, line, weight, n_rows)

    return down


@njit
def _plan(ids, weights, n_rows, top_k, n_experts, counts, groups, tokens, inputs, sorted_weights, prepared, stride):
    """Sort the routed rows by expert, leaving out those whose weight is next to nothing; the number of groups.

    All arguments but the sizes are addresses: ids u32 [R], weights f32 [R]; counts i64 [E], groups i64 [min(E, R), 3],
    tokens and inputs i64 [R], sorted_weights f32 [R] are written.
    """
    for expert in range(n_experts):
        store_i64(counts, expert, 0)
    for row in range(n_rows):
        if abs(load_f32(weights, row)) >= types.float32(1e-10):
            expert = load_u32(ids, row)
            store_i64(counts, expert, load_i64(counts, expert) + 1)
    n_groups, first = 0, 0
    for expert in range(n_experts):
        count = load_i64(counts, expert)
        if count > 0:
            store_i64(groups, 3 * n_groups, expert)
            store_i64(groups, 3 * n_groups + 1, first)
            store_i64(groups, 3 * n_groups + 2, count)
            n_groups += 1
        store_i64(counts, expert, first)
        first += count
    for row in range(n_rows):
        weight = load_f32(weights, row)
        if abs(weight) >= types.float32(1e-10):
            expert = load_u32(ids, row)
            place = load_i64(counts, expert)
            store_i64(counts, expert, place + 1)
            token = row // top_k
            store_i64(tokens, place, token)
            store_i64(inputs, place, prepared + token * stride)
            store_f32(sorted_weights, place, weight)
    return n_groups


@njit
def _inputs_of(tokens, groups, n_groups, prepared, stride, inputs):
    """inputs i64 [R]: where the prepared row of each sorted row's token lies; all arguments but n_groups and stride are
    addresses.
    """
    last = 3 * (n_groups - 1)
    for place in range(load_i64(groups, last + 1) + load_i64(groups, last + 2)):
        store_i64(inputs, place, prepared + load_i64(tokens, place) * stride)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """What `moe` derives from an `Experts` record once.

    gate_up: address of the job. hidden_order: its words PLACES to SUMS_GROUP. prepare: makes the job that prepares
    tokens for the gate matrix. thread_bytes, sums: bytes of a thread's scratch, and where in it sums begin.
    """

    gate: Matrix
    up: Matrix | None
    down: Matrix
    activation: int
    n_experts: int
    n_hidden: int
    gate_up: int
    hidden_order: tuple[int, int, int, int]
    prepare: Callable[[Pool, list[int], np.ndarray, int], Phase]
    thread_bytes: int
    sums: int


@functools.cache
def _hidden_places(key: int) -> tuple[np.ndarray, np.ndarray]:
    """(places, factors) of a block's hidden values, by their order in the row: the inverse of `activation_order`."""
    order, factors = activation_order(key)
    places = np.empty_like(order)
    places[order] = np.arange(len(order), dtype=order.dtype)
    return places, factors[places]


def _layer_of(experts: Any, precision: str) -> Layer:
    if precision == "int8":
        # Its kernels are found only when they are asked for.
        from coterie.backends.cpu.int8_layer import int8_layer

        return int8_layer(experts)
    gate = matrix_of(experts.gate, experts.gate_bias)
    up = None if experts.up is None else matrix_of(experts.up, experts.up_bias)
    down = matrix_of(experts.down, experts.down_bias)
    layout = down.layout
    places, factors = _hidden_places(layout.key)
    order = (address_of(places), address_of(factors), layout.block, sums_group(layout))
    index = ISAS.index(layout.isa)
    return Layer(
        gate, up, down, ACTIVATION_INDEX[experts.activation], experts.n_experts, experts.intermediate,
        job(f"gate_up.{index}", lambda: _make_gate_up(index)), order, prepare_phase, s.thread_bytes(layout.isa),
        s.sums_offset(layout.isa),
    )  # fmt: skip


def moe(x: np.ndarray, routing: Any, experts: Any, precision: str = "default") -> np.ndarray:
    """The experts of each token: x [T, H], ids and weights [T, k], to [T, H] in x's dtype.

    precision: "int8" rounds activations to 8 bits; "default" and "exact" are products in f32.
    """
    name = f"cpu.layer.{'int8' if precision == 'int8' else 'f32'}.{isa.current().name}"
    layer = experts.derived.get(name)
    if layer is None:
        layer = experts.derived.setdefault(name, _layer_of(experts, precision))
    tokens = np.ascontiguousarray(x, np.float32)
    ids, weights = np.ascontiguousarray(routing.ids, np.uint32), np.ascontiguousarray(routing.weights, np.float32)
    out = np.empty((len(tokens), layer.down.n_rows), np.float32)
    step = max(1, _MAX_HIDDEN // (ids.shape[1] * layer.down.prepared_bytes))
    pool = get_pool()
    with pool.lock:
        for begin in range(0, len(tokens), step):
            part = slice(begin, begin + step)
            _run_layer(pool, layer, tokens[part], ids[part], weights[part], out[part])
    return out.astype(x.dtype, copy=False)


def _run_layer(pool: Pool, layer: Layer, x: np.ndarray, ids: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    n_rows, top_k = ids.size, ids.shape[1]
    stride = layer.gate.prepared_bytes
    prepared = pool.buffer("prepared", len(x) * stride)
    groups = pool.buffer("groups", 24 * min(layer.n_experts, n_rows))
    tokens, inputs = pool.buffer("tokens", 8 * n_rows), pool.buffer("inputs", 8 * n_rows)
    sorted_weights = pool.buffer("weights", 4 * n_rows)
    n_groups = _plan(
        address_of(ids), address_of(weights), n_rows, top_k, layer.n_experts,
        pool.buffer("counts", 8 * layer.n_experts), groups, tokens, inputs, sorted_weights, prepared, stride,
    )  # fmt: skip
    if n_groups == 0:
        out[...] = 0
        return
    prepare = [layer.prepare(pool, layer.gate.prepare, x, prepared)]
    up_inputs = inputs
    if layer.up is not None and layer.up.prepare != layer.gate.prepare:
        # The up weights are in another format and decode in another order.
        up_prepared = pool.buffer("up_prepared", len(x) * layer.up.prepared_bytes)
        up_inputs = pool.buffer("up_inputs", 8 * n_rows)
        _inputs_of(tokens, groups, n_groups, up_prepared, layer.up.prepared_bytes, up_inputs)
        prepare.append(layer.prepare(pool, layer.up.prepare, x, up_prepared))
    hidden_stride = layer.down.prepared_bytes
    hidden = pool.buffer("hidden", n_rows * hidden_stride)
    scratch_stride, sums = layer.thread_bytes, layer.sums
    scratch = pool.buffer("scratch", pool.n_threads * scratch_stride)
    chunk = _hidden_chunk(layer, n_groups, pool.n_threads)
    n_chunks = -(-layer.n_hidden // chunk)
    gate_up = [
        layer.gate.at, 0 if layer.up is None else layer.up.at, groups, n_chunks, chunk,
        layer.n_hidden, inputs, hidden, hidden_stride, *layer.hidden_order, scratch, scratch_stride, sums,
        layer.activation, pool.n_threads, n_groups - 1, up_inputs,
    ]  # fmt: skip
    index = ISAS.index(layer.down.layout.isa)
    down_chunk = chunk_rows(layer.down.n_rows, 1, pool.n_threads)
    down = [
        layer.down.at, n_groups, groups, 0, down_chunk, layer.down.n_rows, 0, hidden, hidden_stride,
        address_of(out), out.strides[0], tokens, sorted_weights, scratch, scratch_stride, sums, len(x),
        pool.n_threads,
    ]  # fmt: skip
    worth = n_rows * layer.n_hidden * layer.gate.n_inputs >= WORTH_WAKING
    pool.run(
        *prepare,
        (layer.gate_up, pool.place(gate_up), n_groups * n_chunks, worth),
        (job(f"down.{index}", lambda: _make_down(index)), pool.place(down), -(-layer.down.n_rows // down_chunk), worth),
    )


def _hidden_chunk(layer: Layer, n_groups: int, n_threads: int) -> int:
    """Hidden values in a unit: whole groups of the down weights, so that their sums are one thread's work."""
    smallest = max(32, layer.down.layout.group)
    wanted = layer.n_hidden * n_groups // (8 * n_threads)
    return max(smallest, min(p.MAX_ROWS, wanted // smallest * smallest))
