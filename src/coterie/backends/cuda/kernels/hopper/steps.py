"""The products of a tile: copies run several steps ahead, and the next step's weights become numbers while the matrix
units multiply.

Shared memory is a ring of stages. A stage is written again two steps after it was read, when a barrier has shown that
every warp's product with it has ended.
"""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, warpgroup_mma, warpgroup_mma_wait

from coterie.backends.cuda.kernels.copies import barrier, copy_async
from coterie.backends.cuda.kernels.hopper.constants import groups_in_turn, read_constants, turns_of
from coterie.backends.cuda.kernels.hopper.layouts import (
    COLUMNS,
    ROWS,
    as_vectors,
    left,
    product,
    swizzled,
    units_kept,
)
from coterie.backends.cuda.kernels.hopper.numbers import codes_of, weights_of, words_of


@triton.constexpr_function
def stages_for(n_tokens, mode, bits, turns):
    """Stages of the ring, so many that two programs of a multiprocessor have room for them beside the constants.

    Of codes an even number, because numbers have two places in registers, which divides the steps of a turn.
    """
    narrow = {128: 0, 64: 1, 32: 2, 16: 3}[n_tokens]
    if mode == "plain":
        return (3, 4, 5, 6)[narrow]
    return (4, 4 if turns > 1 or bits == 8 else 6, 8, 8)[narrow]


@gluon.jit
def _ring(dtype: gl.constexpr, N: gl.constexpr, M: gl.constexpr, LAYOUT: gl.constexpr, STAGES: gl.constexpr):
    """STAGES tiles [N, M], each an allocation of its own: so the compiler sees which copy meets which read."""
    tile = gl.allocate_shared_memory(dtype, [1, N, M], LAYOUT)
    tiles = (tile,)
    if STAGES > 1:
        tiles += _ring(dtype, N, M, LAYOUT, STAGES - 1)
    return tiles


@gluon.jit
def rings(
    x_dtype: gl.constexpr, w_dtype: gl.constexpr, TOKENS: gl.constexpr, UNITS: gl.constexpr, STAGES: gl.constexpr
):
    """The stages of activations and of units, which may be weights."""
    activations = _ring(x_dtype, TOKENS, COLUMNS, swizzled(), STAGES)
    return activations, _ring(w_dtype, ROWS, UNITS, swizzled() if UNITS == COLUMNS else units_kept(UNITS), STAGES)


@gluon.jit
def fetch_units(rings, w_at, step, STAGE: gl.constexpr):
    """Begin the copies of a step's units."""
    _, units = rings
    copy_async(units[STAGE].index(0), w_at + step * units[STAGE].shape[2])


@gluon.jit
def fetch_activations(rings, x_at, own, step, STAGE: gl.constexpr):
    """Begin the copies of a step's activations, of a block's own rows."""
    activations, _ = rings
    copy_async(activations[STAGE].index(0), x_at + step * COLUMNS, mask=own)


@gluon.jit
def fetch(rings, places, step, STAGE: gl.constexpr):
    """Begin the copies of a step."""
    x_at, w_at, own = places
    fetch_units(rings, w_at, step, STAGE)
    fetch_activations(rings, x_at, own, step, STAGE)


@gluon.jit
def _step(
    acc, before, rings, places, words, place, coming, STAGE: gl.constexpr, STAGES: gl.constexpr, MORE: gl.constexpr,
    MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr,
):  # fmt: skip
    """Step `place` of a turn: acc plus its product, which may still run; `before` are the weights of the last one.

    MORE: copies of step `coming` begin.
    """
    activations, units = rings
    x = activations[STAGE].index(0).permute((1, 0))
    async_copy.wait_group(STAGES - 3)
    barrier()
    if MODE != "plain":
        q, word, next_word = codes_of(units[STAGE].index(0), words, place, G)
    if MORE:
        fetch(rings, places, coming, (STAGE + STAGES - 2) % STAGES)
    async_copy.commit_group()
    if MODE == "plain":
        acc = warpgroup_mma(units[STAGE].index(0), x, acc, is_async=True)
        acc = warpgroup_mma_wait(1, deps=(acc,))
    else:
        weights = weights_of(q, word, next_word, acc.shape[1], MODE, BITS, G)
        acc = warpgroup_mma(weights, x, acc, is_async=True)
        acc, before = warpgroup_mma_wait(1, deps=(acc, before))
        before = weights
    return acc, before


@triton.constexpr_function
def _rounds(count, stages, ahead):
    """Times that all stages are passed while every step can begin the copies of one to come."""
    return max(0, (count - ahead) // stages)


@gluon.jit
def _run(
    acc, before, rings, places, words, first, last, COUNT: gl.constexpr, ENDS: gl.constexpr, STAGES: gl.constexpr,
    MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr,
):  # fmt: skip
    """acc plus the products of COUNT steps from step `first` on, all of them done; `last` is the last there is.

    ENDS: with these steps all ends. Otherwise copies go on into the next turn's.
    """
    AHEAD: gl.constexpr = STAGES - 2
    ROUNDS: gl.constexpr = _rounds(COUNT, STAGES, AHEAD if ENDS else 0)
    for turn in range(ROUNDS):
        for stage in gl.static_range(STAGES):
            place = turn * STAGES + stage
            coming = first + place + AHEAD
            if not ENDS:
                coming = gl.minimum(coming, last)
            acc, before = _step(acc, before, rings, places, words, place, coming, stage, STAGES, True, MODE, BITS, G)
    for place in gl.static_range(ROUNDS * STAGES, COUNT):
        acc, before = _step(
            acc, before, rings, places, words, place, first + place + AHEAD, place % STAGES, STAGES,
            place + AHEAD < COUNT, MODE, BITS, G,
        )  # fmt: skip
    if MODE == "plain":
        acc = warpgroup_mma_wait(0, deps=(acc,))
    else:
        acc, before = warpgroup_mma_wait(0, deps=(acc, before))
    return acc, before


@gluon.jit
def run_plain(rings, places, TOKENS: gl.constexpr, STEPS: gl.constexpr, STAGES: gl.constexpr):
    """Products f32 [ROWS, TOKENS] over STEPS steps with weights as they are."""
    acc = gl.zeros([ROWS, TOKENS], gl.float32, product(TOKENS))
    acc, _ = _run(acc, gl.to_tensor(0), rings, places, 0, 0, STEPS - 1, STEPS, True, STAGES, "plain", 16, COLUMNS)
    async_copy.wait_group(0)
    return acc


@gluon.jit
def run_codes(
    rings, places, constants, scale_at, bias_at, TOKENS: gl.constexpr, K: gl.constexpr, STAGES: gl.constexpr,
    MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr,
):  # fmt: skip
    """The same over K columns of codes, with what `keep_constants` gives."""
    N_GROUPS: gl.constexpr = K // G
    TURNS: gl.constexpr = turns_of(N_GROUPS, MODE, BITS)
    IN_TURN: gl.constexpr = groups_in_turn(N_GROUPS, MODE, BITS) * G // COLUMNS
    LAST: gl.constexpr = K // COLUMNS - 1
    room, factor, _ = constants
    words = as_vectors(room)
    acc = gl.zeros([ROWS, TOKENS], gl.float32, product(TOKENS))
    before = gl.zeros([ROWS, COLUMNS], gl.float16, left(TOKENS))
    for turn in range(TURNS - 1):
        acc, before = _run(
            acc, before, rings, places, words, turn * IN_TURN, LAST, IN_TURN, False, STAGES, MODE, BITS, G
        )
        scale, bias = read_constants(scale_at, bias_at, turn + 1, N_GROUPS, MODE, BITS)
        more = words_of(scale, bias, factor, MODE)
        barrier()
        room.permute((1, 0)).store(more)
    REST: gl.constexpr = (TURNS - 1) * IN_TURN
    acc, before = _run(acc, before, rings, places, words, REST, LAST, LAST + 1 - REST, True, STAGES, MODE, BITS, G)
    async_copy.wait_group(0)
    return acc
