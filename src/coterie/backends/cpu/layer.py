"""The experts of a layer in one go: prepare, gate and up with the activation, down with the weighted sum.

A few jobs run back to back in the pool. Rows are grouped by expert, so that an expert's weights are read once for all
tokens that chose it. Between gate and down the hidden values are stored
directly as the down weights meet them, so nothing is prepared twice. Every result element is summed by one thread in
the order of experts: the outcome does not depend on the number of threads.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coterie.backends.cpu import isa
from coterie.backends.cpu import layer_jobs as jobs
from coterie.backends.cpu.arithmetic import F32
from coterie.backends.cpu.glu import ACTIVATION_INDEX
from coterie.backends.cpu.isa import ISAS
from coterie.backends.cpu.layer_launch import launch, make_frame
from coterie.backends.cpu.layout import activation_order
from coterie.backends.cpu.matrix import Matrix, matrix_of
from coterie.backends.cpu.pool import Pool, address_of, get_pool
from coterie.backends.cpu.prepare import job, sums_group
from coterie.backends.cpu.recording import recording

_MAX_HIDDEN = 256 << 20
"""Bytes of hidden values at a time; more tokens go through in parts."""

_MOST_FRAMES = 64


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """What `moe` derives from an `Experts` record once.

    gate_up, activate: addresses of jobs. hidden_order: its words PLACES to SUMS_GROUP, for down weights that meet f32.
    frames: what `launch` reads, by the shape of routing, with the generation of the pool's buffers.
    """

    gate: Matrix
    up: Matrix | None
    down: Matrix
    activation: int
    n_experts: int
    n_hidden: int
    gate_up: int
    activate: int
    hidden_order: tuple[int, int, int, int]
    frames: dict[tuple[int, ...], tuple[int, np.ndarray]] = field(default_factory=dict)


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
    key, group = (0, 0) if arithmetic is F32 else (layout.key, layout.group)
    name, parts = f"{index}.{arithmetic.bits}.{key}", (index, arithmetic.bits, key, group)
    return Layer(
        gate, up, down, ACTIVATION_INDEX[experts.activation], experts.n_experts, experts.intermediate,
        job(f"gate_up.{name}", lambda: jobs.make_gate_up(*parts)),
        job(f"activate.{name}", lambda: jobs.make_activate(*parts)), order,
    )  # fmt: skip


def moe(x: np.ndarray, routing: Any, experts: Any, precision: str = "default") -> np.ndarray:
    """The experts of each token: x [T, H], ids and weights [T, k], to [T, H] in x's dtype.

    precision: "exact" is products in f32, "default" activations of 16 bits where there is a kernel for them, "int8"
    activations of 8 bits.
    """
    layer = layer_for(experts, precision)
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


def layer_for(experts: Any, precision: str) -> Layer:
    """What is derived from an `Experts` record, remembered by it."""
    name = f"cpu.layer.{precision}.{isa.current().name}"
    layer: Layer | None = experts.derived.get(name)
    if layer is None:
        layer = experts.derived.setdefault(name, _layer_of(experts, precision))
    return layer


def frame_for(pool: Pool, layer: Layer, n_tokens: int, top_k: int) -> np.ndarray:
    """What `launch` reads, remembered by the layer; the pool must be held."""
    held = layer.frames.get((n_tokens, top_k))
    if recording() is not None:
        return make_frame(pool, layer, n_tokens, top_k)
    if held is None or held[0] != pool.generation:
        frame = make_frame(pool, layer, n_tokens, top_k)
        if len(layer.frames) >= _MOST_FRAMES:
            layer.frames.clear()
        held = layer.frames[n_tokens, top_k] = (pool.generation, frame)
    return held[1]


def _run_layer(pool: Pool, layer: Layer, x: np.ndarray, ids: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    frame = frame_for(pool, layer, *ids.shape)
    if not launch(
        pool.block, frame, address_of(x), x.strides[0], address_of(ids), address_of(weights), address_of(out),
        out.strides[0],
    ):  # fmt: skip
        out[...] = 0
