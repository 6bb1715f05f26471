"""The jobs of a layer of experts: gate and up with the activation, down, and the sum of what the experts give.

Each has two ways. With many tokens an expert, a unit is some hidden values from gate, up and the activation, and some
columns of the output for all experts, added up as they come. With few, a unit is some rows of one matrix, so that a
thread reads it in one linear stream, and the activation and the sum are jobs of their own. Both ways compute the same
to the last bit, and add in the order of experts.
"""

from typing import Any

from numba import types

from coterie.backends.cpu import product as p
from coterie.backends.cpu import scratch as s
from coterie.backends.cpu.atoms import load_f32, load_i64, load_u32, store_f32, store_i64
from coterie.backends.cpu.glu import GELU, gelu_row
from coterie.backends.cpu.jit import njit
from coterie.backends.cpu.kernels.activation import glu_vectors
from coterie.backends.cpu.kernels.combine import add_scaled
from coterie.backends.cpu.kernels.rounding import round_activations

# Words of gate and up.
GATE, UP, GROUPS, N_CHUNKS, CHUNK, N_HIDDEN, INPUTS = 0, 1, 2, 3, 4, 5, 6
HIDDEN, HIDDEN_STRIDE, PLACES, FACTORS, BLOCK, SUMS_GROUP = 7, 8, 9, 10, 11, 12
SCRATCH, SCRATCH_STRIDE, SUMS, ACTIVATION, LAST_GROUP, UP_INPUTS = 13, 14, 15, 16, 17, 18
BOTH, BOTH_STRIDE, HALF = 19, 20, 21  # f32 [R, 2, I]: gate and up of each row, as the other way holds them

# Words of down, of its other way, and of the sum; the same places where the names are those above.
DOWN, N_GROUPS, N_OUT, OUT, OUT_STRIDE, TOKENS, WEIGHTS, N_TOKENS = 0, 1, 5, 9, 10, 11, 12, 16
HIDDEN_ROWS, TOKEN_PLACES, TOP_K = 6, 11, 1

SUM_COLUMNS = 512
"""Columns of one token in a unit of the sum."""


def make_gate_up(isa_index: int, bits: int, key: int, weights_a_scale: int) -> Any:
    """The job for down weights that meet activations of so many bits; `key` and `weights_a_scale` are their layout's,
    and 0 for 32 bits, where the words say how hidden values lie.
    """

    def gate_up(a: Any, unit: int, thread: int) -> None:
        """Unit: one chunk of an expert's hidden values, for all tokens of its group."""
        group, chunk = unit // a[N_CHUNKS], unit % a[N_CHUNKS]
        expert, first, count = s.group_at(a[GROUPS], group)
        row = chunk * a[CHUNK]
        n_rows = min(a[CHUNK], a[N_HIDDEN] - row)
        scratch = a[SCRATCH] + thread * a[SCRATCH_STRIDE]
        sums, tile, up_tile = scratch + a[SUMS], scratch + s.TILE, scratch + s.SECOND_TILE
        up, up_row = _gate_or_up(a, 1, row)
        following = unit + 1
        following_expert = load_i64(a[GROUPS], 3 * min(following // a[N_CHUNKS], a[LAST_GROUP]))
        for begin in range(first, first + count, p.MAX_TOKENS):
            n_tokens = min(p.MAX_TOKENS, first + count - begin)
            s.expect(scratch, up, expert, up_row)
            s.multiply(scratch, sums, a[GATE], expert, row, n_rows, a[INPUTS] + 8 * begin, n_tokens, tile)
            s.expect(scratch, a[GATE], following_expert, following % a[N_CHUNKS] * a[CHUNK])
            s.multiply(scratch, sums, up, expert, up_row, n_rows, a[UP_INPUTS] + 8 * begin, n_tokens, up_tile)
            for token in range(n_tokens):
                line = tile + 4 * p.MAX_ROWS * token
                up_line = up_tile + 4 * p.MAX_ROWS * token
                if a[ACTIVATION] == GELU:
                    gelu_row(line, up_line, line, n_rows)
                else:
                    glu_vectors(isa_index, a[ACTIVATION], line, up_line, line, n_rows)
                hidden = a[HIDDEN] + (begin + token) * a[HIDDEN_STRIDE]
                if bits == 32:
                    _store_f32(a, line, row, n_rows, hidden)
                else:
                    # A unit of gate and up owns whole groups.
                    start, count_rounded = row // weights_a_scale, n_rows // weights_a_scale
                    round_activations(bits, key, line, hidden, a[N_HIDDEN], start, count_rounded)

    return gate_up


def gate_up_each(a: Any, unit: int, thread: int) -> None:
    """Unit: one chunk of the rows of an expert's gate or up matrix, for all tokens of its group."""
    matrix, chunk = unit // a[N_CHUNKS], unit % a[N_CHUNKS]
    expert, first, count = s.group_at(a[GROUPS], matrix // 2)
    row = chunk * a[CHUNK]
    n_rows = min(a[CHUNK], a[N_HIDDEN] - row)
    scratch = a[SCRATCH] + thread * a[SCRATCH_STRIDE]
    sums, tile = scratch + a[SUMS], scratch + s.TILE
    following = (unit + 1) // a[N_CHUNKS]
    following_expert = load_i64(a[GROUPS], 3 * min(following // 2, a[LAST_GROUP]))
    following_row = (unit + 1) % a[N_CHUNKS] * a[CHUNK]
    weight, weight_row = _gate_or_up(a, following % 2, following_row)
    s.expect(scratch, weight, following_expert, weight_row)
    weight, weight_row = _gate_or_up(a, matrix % 2, row)
    inputs = a[INPUTS] if matrix % 2 == 0 else a[UP_INPUTS]
    for begin in range(first, first + count, p.MAX_TOKENS):
        n_tokens = min(p.MAX_TOKENS, first + count - begin)
        s.multiply(scratch, sums, weight, expert, weight_row, n_rows, inputs + 8 * begin, n_tokens, tile)
        for token in range(n_tokens):
            line = tile + 4 * p.MAX_ROWS * token
            out = a[BOTH] + (begin + token) * a[BOTH_STRIDE] + matrix % 2 * a[HALF]
            for index in range(n_rows):
                store_f32(out, row + index, load_f32(line, index))


@njit
def _gate_or_up(a, is_up, row):
    """(matrix, row of it): one stack may hold the up rows of an expert behind its gate rows."""
    if is_up == 0:
        return a[GATE], row
    return (a[UP], row) if a[UP] != 0 else (a[GATE], a[N_HIDDEN] + row)


def make_activate(isa_index: int, bits: int, key: int, weights_a_scale: int) -> Any:
    """The job between `gate_up_each` and down; the arguments are those of `make_gate_up`."""

    def activate(a: Any, unit: int, _thread: int) -> None:
        """Unit: the hidden values of one routed row."""
        gate, n_hidden = a[BOTH] + unit * a[BOTH_STRIDE], a[N_HIDDEN]
        if a[ACTIVATION] == GELU:
            gelu_row(gate, gate + a[HALF], gate, n_hidden)
        else:
            glu_vectors(isa_index, a[ACTIVATION], gate, gate + a[HALF], gate, n_hidden)
        hidden = a[HIDDEN] + unit * a[HIDDEN_STRIDE]
        if bits == 32:
            _store_f32(a, gate, 0, n_hidden, hidden)
        else:
            round_activations(bits, key, gate, hidden, n_hidden, 0, n_hidden // weights_a_scale)

    return activate


@njit
def _store_f32(a, line, row, n_rows, hidden):
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


def make_down(isa_index: int) -> Any:
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
                    s.expect(scratch, a[DOWN], load_i64(a[GROUPS], 0), row + a[CHUNK])
                s.multiply(scratch, sums, a[DOWN], expert, row, n_rows, table, n_tokens, tile)
                for token in range(n_tokens):
                    line = tile + 4 * p.MAX_ROWS * token
                    weight = load_f32(a[WEIGHTS], begin + token)
                    out = a[OUT] + load_i64(a[TOKENS], begin + token) * a[OUT_STRIDE] + 4 * row
                    add_scaled(isa_index, out, line, weight, n_rows)

    return down


def down_each(a: Any, unit: int, thread: int) -> None:
    """Unit: one chunk of the rows of one expert's matrix, for all tokens of its group; f32 [R, N] at OUT."""
    group, chunk = unit // a[N_CHUNKS], unit % a[N_CHUNKS]
    expert, first, count = s.group_at(a[GROUPS], group)
    row = chunk * a[CHUNK]
    n_rows = min(a[CHUNK], a[N_OUT] - row)
    scratch = a[SCRATCH] + thread * a[SCRATCH_STRIDE]
    sums, tile = scratch + a[SUMS], scratch + s.TILE
    following = unit + 1
    following_expert = load_i64(a[GROUPS], 3 * min(following // a[N_CHUNKS], a[LAST_GROUP]))
    s.expect(scratch, a[DOWN], following_expert, following % a[N_CHUNKS] * a[CHUNK])
    for begin in range(first, first + count, p.MAX_TOKENS):
        n_tokens = min(p.MAX_TOKENS, first + count - begin)
        s.multiply(scratch, sums, a[DOWN], expert, row, n_rows, a[HIDDEN_ROWS] + 8 * begin, n_tokens, tile)
        for token in range(n_tokens):
            line, out = tile + 4 * p.MAX_ROWS * token, a[OUT] + (begin + token) * a[OUT_STRIDE]
            for index in range(n_rows):
                store_f32(out, row + index, load_f32(line, index))


def make_sum(isa_index: int) -> Any:
    def add_experts(a: Any, unit: int, _thread: int) -> None:
        """Unit: some columns of one token's output, the sum of its rows in f32 [R, N] at HIDDEN; their places, after
        their number, are the token's words in TOKEN_PLACES.
        """
        token, chunk = unit // a[N_CHUNKS], unit % a[N_CHUNKS]
        column = chunk * SUM_COLUMNS
        count = min(SUM_COLUMNS, a[N_OUT] - column)
        out = a[OUT] + token * a[OUT_STRIDE] + 4 * column
        for index in range(count):
            store_f32(out, index, types.float32(0.0))
        places = a[TOKEN_PLACES] + 8 * token * (a[TOP_K] + 1)
        for index in range(load_i64(places, 0)):
            place = load_i64(places, index + 1)
            row = a[HIDDEN] + place * a[HIDDEN_STRIDE] + 4 * column
            add_scaled(isa_index, out, row, load_f32(a[WEIGHTS], place), count)

    return add_experts
