"""The products of a tile: copies run several steps ahead, and the next step's weights become numbers while the matrix
units multiply.

Shared memory is a ring of stages. A stage is written again two steps after it was read, when a barrier has shown that
every warp's product with it has ended.
"""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, warpgroup_mma, warpgroup_mma_wait

from coterie.backends.cuda.kernels.hopper.layouts import COLUMNS, ROWS, activations_kept, units_kept
from coterie.backends.cuda.kernels.hopper.numbers import codes_of, weights_of

barrier = getattr(gl, "thread_barrier", None) or gl.barrier
copy_async = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
"""Names that changed between Triton 3.6 and 3.9."""


@triton.constexpr_function
def stages_for(n_tokens, bits, turns):
    """Stages of the ring: an even number, because weights have two places in registers, that fits beside the constants
    for two programs of a multiprocessor, and divides the steps of a turn.
    """
    if n_tokens >= 128:
        return 4
    if n_tokens >= 64:
        return 4 if turns > 1 or bits == 8 else 6
    return 8


@triton.constexpr_function
def groups_in_turn(n_groups, mode, bits):
    """Groups whose constants are in shared memory at a time: 32 KiB of them, 16 where codes are bytes."""
    most = 128 if mode != "affine" else 32 if bits == 8 else 64
    groups = 16
    while groups < min(most, n_groups):
        groups *= 2
    return groups


@gluon.jit
def ring(dtype: gl.constexpr, N: gl.constexpr, M: gl.constexpr, LAYOUT: gl.constexpr, STAGES: gl.constexpr):
    """STAGES tiles [N, M], each an allocation of its own: so the compiler sees which copy meets which read."""
    tile = gl.allocate_shared_memory(dtype, [1, N, M], LAYOUT)
    tiles = (tile,)
    if STAGES > 1:
        tiles = tiles + ring(dtype, N, M, LAYOUT, STAGES - 1)
    return tiles


@gluon.jit
def rings(TOKENS: gl.constexpr, UNITS: gl.constexpr, STAGES: gl.constexpr):
    """The stages of activations and of units."""
    activations = ring(gl.float16, TOKENS, COLUMNS, activations_kept(), STAGES)
    return activations, ring(gl.uint16, ROWS, UNITS, units_kept(UNITS), STAGES)


@gluon.jit
def fetch(activations, units, x_at, w_at, own, step, STAGE: gl.constexpr):
    """Begin the copies of a step; of activations those of a block's `own` rows."""
    copy_async(units[STAGE].index(0), w_at + step * units[STAGE].shape[2])
    copy_async(activations[STAGE].index(0), x_at + step * COLUMNS, mask=own)


@gluon.jit
def _step(
    acc, before, activations, units, x_at, w_at, own, words, place, coming, STAGE: gl.constexpr, STAGES: gl.constexpr,
    MORE: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr,
):  # fmt: skip
    """Step `place` of a turn: acc plus its product, which may still run; `before` are the weights of the last one.

    MORE: copies of step `coming` begin.
    """
    async_copy.wait_group(STAGES - 3)
    barrier()
    q, word, next_word = codes_of(units[STAGE].index(0), words, place, G)
    if MORE:
        fetch(activations, units, x_at, w_at, own, coming, (STAGE + STAGES - 2) % STAGES)
    async_copy.commit_group()
    weights = weights_of(q, word, next_word, acc.shape[1], MODE, BITS, G)
    acc = warpgroup_mma(weights, activations[STAGE].index(0).permute((1, 0)), acc, is_async=True)
    acc, before = warpgroup_mma_wait(1, deps=(acc, before))
    return acc, weights


@triton.constexpr_function
def _rounds(count, stages, ahead):
    """Times that all stages are passed while every step can begin the copies of one to come."""
    return max(0, (count - ahead) // stages)


@gluon.jit
def run_steps(
    acc, before, activations, units, x_at, w_at, own, words, first, last, COUNT: gl.constexpr, ENDS: gl.constexpr,
    STAGES: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr,
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
            acc, before = _step(
                acc, before, activations, units, x_at, w_at, own, words, place, coming, stage, STAGES, True,
                MODE, BITS, G,
            )  # fmt: skip
    for place in gl.static_range(ROUNDS * STAGES, COUNT):
        acc, before = _step(
            acc, before, activations, units, x_at, w_at, own, words, place, first + place + AHEAD, place % STAGES,
            STAGES, place + AHEAD < COUNT, MODE, BITS, G,
        )  # fmt: skip
    acc, before = warpgroup_mma_wait(0, deps=(acc, before))
    return acc, before
