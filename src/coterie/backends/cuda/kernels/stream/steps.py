"""A program's way through all columns: what it fetches for a step, and how it multiplies with it."""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.experimental.gluon.language.nvidia.hopper import async_copy

from coterie.backends.cuda.kernels.copies import barrier, copy_async
from coterie.backends.cuda.kernels.single.layouts import codes_kept, in_order
from coterie.backends.cuda.kernels.stream.layouts import (
    columns_kept,
    columns_read,
    copied,
    products,
    units_read,
    words_read,
)
from coterie.backends.cuda.kernels.stream.numbers import (
    beside_numbers,
    codes_of,
    each_word,
    half_of,
    ones,
    scale_byte_of,
    weights_of,
)


@triton.constexpr_function
def steps_of(n_groups, groups):
    """Steps of so many groups that a row takes."""
    return -(-n_groups // groups)


@gluon.jit
def rings(
    x, codes, STAGES: gl.constexpr, M: gl.constexpr, N: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    GROUPS: gl.constexpr, WORDS: gl.constexpr,
):  # fmt: skip
    """Room for units, words of constants and activations of STAGES steps."""
    U: gl.constexpr = G // C
    return (
        gl.allocate_shared_memory(codes.dtype.element_ty, [STAGES, M, GROUPS * U], codes_kept(U, GROUPS)),
        gl.allocate_shared_memory(gl.uint32, [STAGES, M, WORDS], in_order(2)),
        gl.allocate_shared_memory(x.dtype.element_ty, [STAGES, N, GROUPS * G], columns_kept()),
    )


@gluon.jit
def fetch_weights(rooms, codes, words, stage, step, K: gl.constexpr, C: gl.constexpr, WARPS: gl.constexpr):
    """Ask for a step's units, from places [M, units] on of the first step, and its words."""
    WIDTH: gl.constexpr = rooms[0].shape[2]
    at = codes + step * WIDTH
    if K % (WIDTH * C) == 0:
        copy_async(rooms[0].index(stage), at)
    else:
        unit = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, copied(WIDTH, 8, WARPS)))
        copy_async(rooms[0].index(stage), at, mask=(unit < K // C - step * WIDTH)[None, :])
    copy_async(rooms[1].index(stage), words + step * (8 * rooms[1].shape[2]))


@gluon.jit
def fetch_activations(rooms, x, live, stage, step, K: gl.constexpr, WARPS: gl.constexpr):
    """Ask for a step's activations of the columns that are `live`; others are zeros."""
    WIDTH: gl.constexpr = rooms[2].shape[2]
    there = live[:, None]
    if K % WIDTH != 0:
        k = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, copied(WIDTH, 8, WARPS)))
        there = there & (k < K - step * WIDTH)[None, :]
    copy_async(rooms[2].index(stage), x + step * WIDTH, mask=there)


@gluon.jit
def _beside_tiles(values, M: gl.constexpr, WARPS: gl.constexpr):
    """What is the same for all rows of a warp's first tile, [16 * WARPS, columns], for all of its tiles."""
    if M > 16 * WARPS:
        both = gl.permute(gl.join(values, values), (2, 0, 1))
        values = gl.convert_layout(gl.reshape(both, (M, values.shape[1])), products(WARPS), assert_trivial=True)
    return values


@gluon.jit
def _add_codes(sums, units, x, word, PLACE: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, WARPS: gl.constexpr):
    """sums plus a group's products: its sum of code times activation meets its scale in f32, and its sum of activations
    its bias. PLACE: which of the scales in a word is its own, if there are several.
    """
    M: gl.constexpr = sums.shape[0]
    N: gl.constexpr = sums.shape[1]
    G: gl.constexpr = x.shape[0]
    total = mma_v2(codes_of(units, MODE, BITS, WARPS), x, gl.zeros([M, N], gl.float32, products(WARPS)))
    if MODE == "affine":
        none = gl.zeros([16 * WARPS, N], gl.float32, products(WARPS))
        added = _beside_tiles(mma_v2(ones(G, units.shape[1], BITS, WARPS), x, none), M, WARPS)
        sums = gl.fma(added, half_of(word, 16)[:, None].broadcast_to((M, N)), sums)
        scale = half_of(word, 0)
    else:
        scale = scale_byte_of(word, PLACE)
    return gl.fma(total, scale[:, None].broadcast_to((M, N)), sums)


@gluon.jit
def _add_step(
    sums, rooms, stage, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    WEIGHED: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """sums f32 [M, N] plus the products of a step that has arrived. WEIGHED: numbers are weights, not codes."""
    M: gl.constexpr = sums.shape[0]
    N: gl.constexpr = sums.shape[1]
    U: gl.constexpr = G // C
    WORDS: gl.constexpr = rooms[1].shape[2]
    GROUPS: gl.constexpr = rooms[0].shape[2] // U
    words = each_word(rooms[1].index(stage).load(words_read(WORDS, M, WARPS)), WARPS)
    for group in gl.static_range(GROUPS):
        x = rooms[2].index(stage).slice(group * G, G, dim=1).permute((1, 0)).load(columns_read(G, N, WARPS))
        x = beside_numbers(x, U, WARPS)
        units = rooms[0].index(stage).slice(group * U, U, dim=1).load(units_read(U, M, WARPS))
        word = words[group * WORDS // GROUPS]
        if WEIGHED:
            sums = mma_v2(weights_of(units, word, BITS, WARPS), x, sums)
        else:
            sums = _add_codes(sums, units, x, word, group % 4, MODE, BITS, WARPS)
    return sums


@gluon.jit
def run_steps(
    rooms, codes, words, x, live, K: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr,
    C: gl.constexpr, WEIGHED: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Products f32 [M, N] of all columns; the first STAGES - 1 steps have been asked for."""
    STAGES: gl.constexpr = rooms[0].shape[0]
    STEPS: gl.constexpr = steps_of(K // C, rooms[0].shape[2])
    M: gl.constexpr = rooms[0].shape[1]
    N: gl.constexpr = rooms[2].shape[1]
    sums = gl.zeros([M, N], gl.float32, products(WARPS))
    stage = 0
    for step in range(STEPS):
        async_copy.wait_group(STAGES - 2)
        barrier()
        # Nobody reads the last step any more: its place is the next to be filled.
        last = gl.where(stage == 0, STAGES - 1, stage - 1)
        if STAGES - 1 < STEPS:  # noqa: SIM102 (otherwise this would never be reached, and the compiler fails there)
            if step + STAGES - 1 < STEPS:
                fetch_weights(rooms, codes, words, last, step + STAGES - 1, K, C, WARPS)
                fetch_activations(rooms, x, live, last, step + STAGES - 1, K, WARPS)
        async_copy.commit_group()
        sums = _add_step(sums, rooms, stage, MODE, BITS, G, C, WEIGHED, WARPS)
        stage = gl.where(stage == STAGES - 1, 0, stage + 1)
    async_copy.wait_group(0)
    return sums
