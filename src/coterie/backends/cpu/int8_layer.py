"""The experts of a layer with activations of 8 bits: the same three jobs as in `layer`, on rounded activations.

Tokens are rounded by the first job, hidden values by the job that computes them: a unit of it owns whole groups.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from coterie.backends.cpu import layer as w
from coterie.backends.cpu import product as p
from coterie.backends.cpu import scratch as s
from coterie.backends.cpu.atoms import load_i64
from coterie.backends.cpu.glu import ACTIVATION_INDEX, GELU, gelu_row
from coterie.backends.cpu.int8_product import int8_product, scratch_bytes, why_not
from coterie.backends.cpu.isa import ISAS
from coterie.backends.cpu.kernels.activation import glu_vectors
from coterie.backends.cpu.kernels.int8_round import FACTOR_BYTES, prepared_bytes, round_groups
from coterie.backends.cpu.layer import Layer
from coterie.backends.cpu.layout import Layout
from coterie.backends.cpu.matrix import Matrix, layout_of, matrix_of
from coterie.backends.cpu.pool import Phase, Pool, address_of
from coterie.backends.cpu.prepare import WORTH_WAKING, job
from coterie.errors import UnsupportedError
from coterie.formats import Packed

X, X_STRIDE, N_GROUPS, PREPARED, PREPARED_STRIDE, N_ROWS, ROWS_A_UNIT = range(7)


def _make_round(key: int) -> Any:
    def round_rows(a: Any, unit: int, _thread: int) -> None:
        """Unit: some rows of activations."""
        first = unit * a[ROWS_A_UNIT]
        for row in range(first, min(first + a[ROWS_A_UNIT], a[N_ROWS])):
            round_groups(key, a[X] + row * a[X_STRIDE], a[PREPARED] + row * a[PREPARED_STRIDE], a[N_GROUPS])

    return round_rows


def _make_gate_up(key: int, group: int, isa_index: int) -> Any:
    input_bytes = group + FACTOR_BYTES

    def gate_up(a: Any, unit: int, thread: int) -> None:
        """Unit: one chunk of an expert's hidden values, for all tokens of its group, rounded for the down weights."""
        group_index, chunk = unit // a[w.N_CHUNKS], unit % a[w.N_CHUNKS]
        expert, first, count = s.group_at(a[w.GROUPS], group_index)
        row = chunk * a[w.CHUNK]
        n_rows = min(a[w.CHUNK], a[w.N_HIDDEN] - row)
        scratch = a[w.SCRATCH] + thread * a[w.SCRATCH_STRIDE]
        sums, tile, up_tile = scratch + a[w.SUMS], scratch + s.TILE, scratch + s.SECOND_TILE
        up, up_row = (a[w.UP], row) if a[w.UP] != 0 else (a[w.GATE], a[w.N_HIDDEN] + row)
        for begin in range(first, first + count, p.MAX_TOKENS):
            n_tokens = min(p.MAX_TOKENS, first + count - begin)
            inputs = a[w.INPUTS] + 8 * begin
            s.expect(scratch, up, expert, up_row)
            s.multiply(scratch, sums, a[w.GATE], expert, row, n_rows, inputs, n_tokens, tile)
            # By the time this unit is done, each other thread has probably taken one.
            following = unit + a[w.N_THREADS]
            following_expert = load_i64(a[w.GROUPS], 3 * min(following // a[w.N_CHUNKS], a[w.LAST_GROUP]))
            s.expect(scratch, a[w.GATE], following_expert, following % a[w.N_CHUNKS] * a[w.CHUNK])
            s.multiply(scratch, sums, up, expert, up_row, n_rows, inputs, n_tokens, up_tile)
            for token in range(n_tokens):
                line = tile + 4 * p.MAX_ROWS * token
                up_line = up_tile + 4 * p.MAX_ROWS * token
                if a[w.ACTIVATION] == GELU:
                    gelu_row(line, up_line, line, n_rows)
                else:
                    glu_vectors(isa_index, a[w.ACTIVATION], line, up_line, line, n_rows)
                hidden = a[w.HIDDEN] + (begin + token) * a[w.HIDDEN_STRIDE] + row // group * input_bytes
                round_groups(key, line, hidden, n_rows // group)

    return gate_up


def int8_layer(experts: Any) -> Layer:
    """What `moe` derives from an `Experts` record for activations of 8 bits; `UnsupportedError` where there is no
    kernel.
    """
    down = _matrix_of(experts.down, experts.down_bias, "down")
    gate = _matrix_of(experts.gate, experts.gate_bias, "gate")
    up = None if experts.up is None else _matrix_of(experts.up, experts.up_bias, "up")
    if up is not None and _rounding(up.layout) != _rounding(gate.layout):
        raise _refusal(f"gate is {experts.gate.format} and up is {experts.up.format}, expected one format for both")
    kind, key = down.layout.isa, down.layout.key
    gate_up = job(f"int8_gate_up.{key}", lambda: _make_gate_up(key, down.layout.group, ISAS.index(kind)))
    return Layer(
        gate, up, down, ACTIVATION_INDEX[experts.activation], experts.n_experts, experts.intermediate, gate_up,
        (0, 0, 0, 0), _round_phase, -(-(s.PANEL + scratch_bytes(kind)) // 4096) * 4096, 0,
    )  # fmt: skip


def _matrix_of(weight: Packed | np.ndarray, added: np.ndarray | None, name: str) -> Matrix:
    if not isinstance(weight, Packed):
        raise _refusal(f"{name} is a plain array of {weight.dtype}, expected packed weights")
    reason = why_not(layout_of(weight.format, weight.scales.dtype))
    if reason:
        raise _refusal(f"{name} is {weight.format}, {reason}")
    matrix = matrix_of(weight, added, int8_product)
    layout, n_inputs = matrix.layout, matrix.n_inputs
    stride = prepared_bytes(layout, n_inputs)
    fixed = [layout.key, n_inputs // layout.group, stride, max(1, min(16, 8192 // n_inputs))]
    return replace(matrix, prepare=fixed, prepared_bytes=stride)


def _refusal(found: str) -> UnsupportedError:
    return UnsupportedError(
        f'precision="int8" was asked for, but {found}; use precision="default" or another format', code="int8"
    )


def _rounding(layout: Layout) -> tuple[str, int, int]:
    """What prepared activations depend on."""
    return layout.kind, layout.bits, layout.group


def _round_phase(pool: Pool, fixed: list[int], x: np.ndarray, prepared: int) -> Phase:
    """The job that rounds x f32 [R, K] to address `prepared`."""
    key, n_groups, stride, rows_a_unit = fixed
    words = [address_of(x), x.strides[0], n_groups, prepared, stride, len(x), rows_a_unit]
    function = job(f"int8_round.{key}", lambda: _make_round(key))
    return function, pool.place(words), -(-len(x) // rows_a_unit), x.size >= WORTH_WAKING
