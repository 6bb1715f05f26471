"""From one call's arrays to the words of its jobs, and the jobs run.

It is compiled, because a token's whole layer takes half a millisecond, and the same in Python took a tenth of it.

A frame, int64 [ROWS, WORDS], holds for one layer and one shape of routing what stays the same from call to call: the
words of each job, and the sizes and addresses that all share. `launch` fills in the rest.
"""

from typing import Any

import numpy as np

from coterie.backends.cpu import layer_jobs as j
from coterie.backends.cpu import prepare
from coterie.backends.cpu import scratch as s
from coterie.backends.cpu.atoms import load_i64
from coterie.backends.cpu.gathered import WORTH_WAKING, chunk_rows
from coterie.backends.cpu.isa import ISAS
from coterie.backends.cpu.jit import njit
from coterie.backends.cpu.layer_groups import inputs_of, places_of, plan, rows_of
from coterie.backends.cpu.pool import Pool, address_of, aligned, run_phases
from coterie.backends.cpu.prepare import Preparation, job
from coterie.backends.cpu.product import MAX_ROWS

SIZES, PREPARE, UP_PREPARE, GATE_UP, DOWN, EACH, SUM, PHASES, ROWS = range(9)
WORDS = 24
MOST_PHASES = WORDS // 4
"""Room for the phases of a layer."""

# Words of SIZES. Addresses: of the frame itself, of the jobs' functions, and of tables.
AT, N_TOKENS, TOP_K, N_EXPERTS, N_THREADS, SMALLEST, COUNTS, TOKENS, WEIGHTS, TOKEN_PLACES = range(10)
PREPARE_JOB, UP_PREPARE_JOB, GATE_UP_JOB, DOWN_JOB, EACH_JOB, SUM_JOB, BOTH_JOB, ACTIVATE_JOB = range(10, 18)
UNITS, UP_UNITS, WORTH_PREPARING, WORTH, WORTH_ADDING = range(18, 23)

FEW_ROWS = 4
"""Up to so many rows an expert, on average, its weights are read in one stream."""
_CHUNKS_A_THREAD = 32


def make_frame(pool: Pool, layer: Any, n_tokens: int, top_k: int) -> np.ndarray:
    """The frame of a `Layer` for so many tokens; valid while the pool's buffers stay where they are."""
    n_rows, kind = n_tokens * top_k, layer.down.layout.isa
    n_hidden, n_out, index = layer.n_hidden, layer.down.n_rows, ISAS.index(kind)
    frame = np.zeros((ROWS, WORDS), np.int64)
    groups, inputs = pool.buffer("groups", 24 * min(layer.n_experts, n_rows)), pool.buffer("inputs", 8 * n_rows)
    tokens, weights = pool.buffer("tokens", 8 * n_rows), pool.buffer("weights", 4 * n_rows)
    hidden_bytes = layer.down.preparation.row_bytes
    hidden = pool.buffer("hidden", n_rows * hidden_bytes)
    scratch = (pool.buffer("scratch", pool.n_threads * s.thread_bytes(kind)), s.thread_bytes(kind), s.sums_offset(kind))
    few = n_rows <= FEW_ROWS * layer.n_experts
    outputs = pool.buffer("outputs", 4 * n_rows * n_out) if few else 0
    half = aligned(4 * n_hidden)
    both = pool.buffer("both", 2 * n_rows * half) if few else 0
    places, hidden_rows = pool.buffer("places", 8 * (n_rows + n_tokens)), pool.buffer("hidden_rows", 8 * n_rows)
    frame[SIZES, : TOKEN_PLACES + 1] = [
        address_of(frame), n_tokens, top_k, layer.n_experts, pool.n_threads, max(32, layer.down.layout.group),
        pool.buffer("counts", 8 * layer.n_experts), tokens, weights, places,
    ]  # fmt: skip
    frame[SIZES, GATE_UP_JOB : ACTIVATE_JOB + 1] = [
        layer.gate_up, job(f"down.{index}", lambda: j.make_down(index)), job("down_each", lambda: j.down_each),
        job(f"add_experts.{index}", lambda: j.make_sum(index)), job("gate_up_each", lambda: j.gate_up_each),
        layer.activate,
    ]  # fmt: skip
    frame[SIZES, WORTH:] = 0
    frame[SIZES, WORTH] = n_rows * n_hidden * layer.gate.n_inputs >= WORTH_WAKING
    frame[SIZES, WORTH_ADDING] = n_rows * n_out >= WORTH_WAKING
    gate, up = layer.gate.preparation, None if layer.up is None else layer.up.preparation
    prepared = _place_preparation(frame, pool, "prepared", PREPARE, gate, n_tokens)
    frame[SIZES, WORTH_PREPARING] = n_tokens * gate.n_inputs >= prepare.WORTH_WAKING
    up_inputs = inputs
    if up is not None and up != gate:
        # The up weights are in another format and decode in another order.
        _place_preparation(frame, pool, "up_prepared", UP_PREPARE, up, n_tokens)
        up_inputs = pool.buffer("up_inputs", 8 * n_rows)
    _put(frame[GATE_UP], [
        layer.gate.at, 0 if layer.up is None else layer.up.at, groups, 0, 0, n_hidden, inputs, hidden, hidden_bytes,
        *layer.hidden_order, *scratch, layer.activation, 0, up_inputs, both, 2 * half, half,
    ])  # fmt: skip
    _put(frame[DOWN], [
        layer.down.at, 0, groups, 0, 0, n_out, 0, hidden, hidden_bytes, 0, 0, tokens, weights, *scratch, n_tokens,
    ])  # fmt: skip
    _put(frame[EACH], [
        layer.down.at, 0, groups, 0, 0, n_out, hidden_rows, hidden, hidden_bytes, outputs, 4 * n_out, 0, 0, *scratch,
        0, 0, 0,
    ])  # fmt: skip
    n_chunks = -(-n_out // j.SUM_COLUMNS)
    _put(frame[SUM], [0, top_k, 0, n_chunks, 0, n_out, 0, outputs, 4 * n_out, 0, 0, places, weights])
    assert prepared == frame[PREPARE, prepare.PREPARED]
    return frame


def _put(row: np.ndarray, words: list[int]) -> None:
    row[: len(words)] = words


def _place_preparation(
    frame: np.ndarray, pool: Pool, name: str, row: int, preparation: Preparation, n_tokens: int
) -> int:
    at = pool.buffer(name, n_tokens * preparation.row_bytes)
    _put(frame[row], preparation.words(0, 0, at, n_tokens))
    frame[SIZES, PREPARE_JOB + row - PREPARE] = preparation.function
    frame[SIZES, UNITS + row - PREPARE] = -(-n_tokens // preparation.rows_a_unit)
    return at


@njit
def launch(block, frame, x, x_stride, ids, weights, out, out_stride):
    """Run a layer; False, and nothing run, if no row has any weight. The arguments are those of `plan_layer`."""
    n_phases = plan_layer(frame, x, x_stride, ids, weights, out, out_stride)
    run_phases(block, frame[SIZES, AT] + 8 * WORDS * PHASES, n_phases)
    return n_phases > 0


@njit
def plan_layer(frame, x, x_stride, ids, weights, out, out_stride):
    """Write the words and phases of a layer's jobs; the number of phases, 0 if no row has any weight.

    All but the frame are integers: the addresses of x f32 [T, H], ids u32 and weights f32 [T, k] and
    out f32 [T, N], strides in bytes.
    """
    sizes, first = frame[SIZES], frame[PREPARE]
    n_rows = sizes[N_TOKENS] * sizes[TOP_K]
    inputs = frame[GATE_UP, j.INPUTS]
    n_groups = plan(
        ids, weights, n_rows, sizes[TOP_K], sizes[N_EXPERTS], sizes[COUNTS], frame[GATE_UP, j.GROUPS], sizes[TOKENS],
        inputs, sizes[WEIGHTS], first[prepare.PREPARED], first[prepare.PREPARED_STRIDE],
    )  # fmt: skip
    if n_groups == 0:
        return 0
    n_phases = _prepare(frame, x, x_stride, n_groups)
    if n_rows <= FEW_ROWS * n_groups:
        n_phases = _gate_up_each(frame, n_phases, n_groups)
        return _down_by_expert(frame, n_phases, n_groups, out, out_stride)
    n_phases = _gate_up(frame, n_phases, n_groups)
    return _down(frame, n_phases, n_groups, out, out_stride)


@njit
def _phase(frame, n_phases, function, row, units, worth):
    """Add a job whose words are a row of the frame; the new number of jobs."""
    place = 4 * n_phases
    frame[PHASES, place] = frame[SIZES, function]
    frame[PHASES, place + 1] = frame[SIZES, AT] + 8 * WORDS * row
    frame[PHASES, place + 2] = units
    frame[PHASES, place + 3] = frame[SIZES, worth]
    return n_phases + 1


@njit
def _prepare(frame, x, x_stride, n_groups):
    sizes = frame[SIZES]
    frame[PREPARE, prepare.X], frame[PREPARE, prepare.X_STRIDE] = x, x_stride
    n_phases = _phase(frame, 0, PREPARE_JOB, PREPARE, sizes[UNITS], WORTH_PREPARING)
    if sizes[UP_PREPARE_JOB] == 0:
        return n_phases
    frame[UP_PREPARE, prepare.X], frame[UP_PREPARE, prepare.X_STRIDE] = x, x_stride
    up = frame[UP_PREPARE]
    inputs_of(
        sizes[TOKENS], frame[GATE_UP, j.GROUPS], n_groups, up[prepare.PREPARED], up[prepare.PREPARED_STRIDE],
        frame[GATE_UP, j.UP_INPUTS],
    )  # fmt: skip
    return _phase(frame, n_phases, UP_PREPARE_JOB, UP_PREPARE, sizes[UP_UNITS], WORTH_PREPARING)


@njit
def _gate_up(frame, n_phases, n_groups):
    """A unit is whole groups of the down weights, so that their scales are one thread's work."""
    sizes, words = frame[SIZES], frame[GATE_UP]
    smallest, n_hidden = sizes[SMALLEST], words[j.N_HIDDEN]
    wanted = n_hidden * n_groups // (_CHUNKS_A_THREAD * sizes[N_THREADS])
    chunk = max(smallest, min(MAX_ROWS, wanted // smallest * smallest))
    words[j.CHUNK], words[j.N_CHUNKS] = chunk, (n_hidden + chunk - 1) // chunk
    words[j.LAST_GROUP] = n_groups - 1
    return _phase(frame, n_phases, GATE_UP_JOB, GATE_UP, n_groups * words[j.N_CHUNKS], WORTH)


@njit
def _gate_up_each(frame, n_phases, n_groups):
    """The rows of each matrix by themselves, then the activation."""
    sizes, words = frame[SIZES], frame[GATE_UP]
    chunk = chunk_rows(2 * words[j.N_HIDDEN], n_groups, sizes[N_THREADS])
    words[j.CHUNK], words[j.N_CHUNKS] = chunk, (words[j.N_HIDDEN] + chunk - 1) // chunk
    words[j.LAST_GROUP] = n_groups - 1
    n_phases = _phase(frame, n_phases, BOTH_JOB, GATE_UP, 2 * n_groups * words[j.N_CHUNKS], WORTH)
    n_rows = load_i64(words[j.GROUPS], 3 * n_groups - 2) + load_i64(words[j.GROUPS], 3 * n_groups - 1)
    return _phase(frame, n_phases, ACTIVATE_JOB, GATE_UP, n_rows, WORTH)


@njit
def _down(frame, n_phases, n_groups, out, out_stride):
    """The outputs of all experts, added up as they come."""
    words = frame[DOWN]
    chunk = chunk_rows(words[j.N_OUT], 1, frame[SIZES, N_THREADS])
    words[j.CHUNK], words[j.N_GROUPS], words[j.OUT], words[j.OUT_STRIDE] = chunk, n_groups, out, out_stride
    return _phase(frame, n_phases, DOWN_JOB, DOWN, (words[j.N_OUT] + chunk - 1) // chunk, WORTH)


@njit
def _down_by_expert(frame, n_phases, n_groups, out, out_stride):
    """The outputs of each expert by themselves, then their sums."""
    sizes, words = frame[SIZES], frame[EACH]
    rows_of(words[j.HIDDEN], words[j.HIDDEN_STRIDE], words[j.HIDDEN_ROWS], sizes[N_TOKENS] * sizes[TOP_K])
    places_of(sizes[TOKENS], words[j.GROUPS], n_groups, sizes[N_TOKENS], sizes[TOP_K], sizes[TOKEN_PLACES])
    chunk = chunk_rows(words[j.N_OUT], n_groups, sizes[N_THREADS])
    words[j.CHUNK], words[j.N_CHUNKS] = chunk, (words[j.N_OUT] + chunk - 1) // chunk
    words[j.LAST_GROUP] = n_groups - 1
    n_phases = _phase(frame, n_phases, EACH_JOB, EACH, n_groups * words[j.N_CHUNKS], WORTH)
    frame[SUM, j.OUT], frame[SUM, j.OUT_STRIDE] = out, out_stride
    return _phase(frame, n_phases, SUM_JOB, SUM, sizes[N_TOKENS] * frame[SUM, j.N_CHUNKS], WORTH_ADDING)
