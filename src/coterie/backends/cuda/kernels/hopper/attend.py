"""Causal attention of many tokens of one sequence: shares are made while the matrix units multiply.

A program makes the queries of ROWS rows, which are some tokens with all heads that share a key-value head, and meets
keys and values block by block. While the scores of a block become shares, the last block's shares multiply its values
(Shah et al., FlashAttention-3, 2024). Scores are in units of log 2.

Keys and values have two places each in shared memory. A place is written again when a barrier has shown that every
warp's product with it has ended.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from coterie.backends.cuda.kernels.copies import barrier, copy_async
from coterie.backends.cuda.kernels.hopper.layouts import ROWS, copied, left, product, swizzled
from coterie.backends.cuda.kernels.softmax import LOG2_E, LOWEST
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous

KEYS = gl.constexpr(128)
"""Keys of a block."""

_PLACES = gl.constexpr(2)


@gluon.jit
def _limited(numbers, limit, HAS_LIMIT: gl.constexpr):
    if HAS_LIMIT:
        numbers = gl.minimum(gl.maximum(numbers, -limit), limit)
    return numbers


@gluon.jit
def _keep_queries(
    q, weight, cos, sin, eps, limit, first_row, n_rows, head, q_token,
    GROUP: gl.constexpr, D: gl.constexpr, HAS_NORM: gl.constexpr, HAS_LIMIT: gl.constexpr, DTYPE: gl.constexpr,
):  # fmt: skip
    """Queries [ROWS, D] in shared memory: projections through norm and limit, pairs (i, i + D / 2) turned."""
    HALF: gl.constexpr = D // 2
    L: gl.constexpr = copied(HALF)
    row = gl.minimum(first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, L)), n_rows - 1)
    column = gl.arange(0, HALF, layout=gl.SliceLayout(0, L))
    token = (row // GROUP).to(gl.int64)
    at = q + gl.multiple_of(token * q_token + (head * GROUP + row % GROUP) * D, 8)[:, None] + column[None, :]
    one, other = gl.load(at).to(gl.float32), gl.load(at + HALF).to(gl.float32)
    turn = (token * HALF)[:, None] + column[None, :]
    c, s = gl.load(cos + turn), gl.load(sin + turn)
    if HAS_NORM:
        factor = gl.div_rn(1.0, gl.sqrt_rn(gl.sum(one * one + other * other, 1) / D + eps))[:, None]
        one *= factor * gl.load(weight + column)[None, :]
        other *= factor * gl.load(weight + HALF + column)[None, :]
    one, other = _limited(one, limit, HAS_LIMIT), _limited(other, limit, HAS_LIMIT)
    turned = gl.join((one * c - other * s).to(DTYPE), (other * c + one * s).to(DTYPE))
    room = gl.allocate_shared_memory(DTYPE, [ROWS, D], swizzled())
    room.store(gl.reshape(gl.permute(turned, (0, 2, 1)), (ROWS, D)))
    return room


@gluon.jit
def _fetch(rooms, store, block, first, end, capacity, D: gl.constexpr, WRAPS: gl.constexpr):
    """Begin the copies of a block of a store [capacity, D]: positions from `first` on, the last one for those behind
    it.
    """
    L: gl.constexpr = copied(D)
    slot = gl.minimum(first + block * KEYS + gl.arange(0, KEYS, layout=gl.SliceLayout(1, L)), end - 1)
    if WRAPS:
        slot = slot % capacity
    at = store + (slot.to(gl.int64) * D)[:, None] + gl.arange(0, D, layout=gl.SliceLayout(0, L))[None, :]
    copy_async(rooms.index(block % _PLACES), at)


@gluon.jit
def _shares(
    scores, highest, total, factor, seen, position, window, MASKED: gl.constexpr, HAS_WINDOW: gl.constexpr,
):  # fmt: skip
    """Shares [ROWS, KEYS] of a block under the new highest score, that score, what earlier sums are to be multiplied
    by, and the sum of all shares. The factor is positive, and has no multiplication of its own.
    """
    if MASKED:
        visible = seen[None, :] <= position[:, None]
        if HAS_WINDOW:
            visible = visible & (seen[None, :] > position[:, None] - window)
        scores = gl.where(visible, scores, float("-inf"))
    raised = gl.maximum(highest, gl.max(scores, 1) * factor)
    correction = gl.exp2(highest - raised)
    shares = gl.exp2(scores * factor - raised[:, None])
    return shares, raised, correction, total * correction + gl.sum(shares, 1)


@gluon.jit
def _meet_first(
    queries, keys, values, places, n_blocks, D: gl.constexpr, WRAPS: gl.constexpr, HAS_WINDOW: gl.constexpr,
):  # fmt: skip
    """The state behind the first block, whose keys are under way."""
    key_store, value_store, first, end, capacity, position, window, factor = places
    S: gl.constexpr = product(KEYS)
    fence_async_shared()
    async_copy.wait_group(0)
    barrier()
    if n_blocks > 1:
        _fetch(keys, key_store, 1, first, end, capacity, D, WRAPS)
    _fetch(values, value_store, 0, first, end, capacity, D, WRAPS)
    async_copy.commit_group()
    scores = gl.zeros([ROWS, KEYS], gl.float32, S)
    scores = warpgroup_mma(queries, keys.index(0).permute((1, 0)), scores, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=(scores,))
    highest = gl.full([ROWS], LOWEST, gl.float32, gl.SliceLayout(1, S))
    total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, S))
    seen = first + gl.arange(0, KEYS, layout=gl.SliceLayout(0, S))
    shares, highest, correction, total = _shares(
        scores, highest, total, factor, seen, position, window, True, HAS_WINDOW
    )
    shares = gl.convert_layout(shares.to(keys.dtype), left(D), assert_trivial=True)
    return shares, shares, gl.zeros([ROWS, D], gl.float32, product(D)), correction, highest, total


@gluon.jit
def _mixed_before(before, mixed, correction, D: gl.constexpr):
    """What is mixed, when the units have done with it, under the highest score since."""
    mixed, before = warpgroup_mma_wait(0, deps=(mixed, before))
    mixed *= gl.convert_layout(correction, gl.SliceLayout(1, product(D)), assert_trivial=True)[:, None]
    return mixed


@gluon.jit
def _meet(
    queries, keys, values, state, places, block, n_blocks,
    D: gl.constexpr, WRAPS: gl.constexpr, MASKED: gl.constexpr, HAS_WINDOW: gl.constexpr,
):  # fmt: skip
    """The state behind a block: shares, those before them, which are still multiplied with their values, what these and
    all before them mix, by what that is to be multiplied then, highest score, sum of shares.
    """
    shares, before, mixed, correction, highest, total = state
    key_store, value_store, first, end, capacity, position, window, factor = places
    S: gl.constexpr = product(KEYS)
    # Not at the end: without the loop's border between them, the assembler waits before it makes shares.
    mixed = _mixed_before(before, mixed, correction, D)
    async_copy.wait_group(0)
    barrier()
    if block + 1 < n_blocks:
        _fetch(keys, key_store, block + 1, first, end, capacity, D, WRAPS)
    _fetch(values, value_store, block, first, end, capacity, D, WRAPS)
    async_copy.commit_group()
    scores = gl.zeros([ROWS, KEYS], gl.float32, S)
    scores = warpgroup_mma(queries, keys.index(block % _PLACES).permute((1, 0)), scores, use_acc=False, is_async=True)
    mixed = warpgroup_mma(shares, values.index((block + 1) % _PLACES), mixed, is_async=True)
    scores, mixed, shares = warpgroup_mma_wait(1, deps=(scores, mixed, shares))
    seen = first + block * KEYS + gl.arange(0, KEYS, layout=gl.SliceLayout(0, S))
    new, highest, correction, total = _shares(
        scores, highest, total, factor, seen, position, window, MASKED, HAS_WINDOW
    )
    new = gl.convert_layout(new.to(shares.dtype), left(D), assert_trivial=True)
    return new, shares, mixed, correction, highest, total


@gluon.jit
def _meet_last(values, state, n_blocks, D: gl.constexpr):
    """(mixed values of all blocks, highest score, sum of shares)."""
    shares, before, mixed, correction, highest, total = state
    mixed = _mixed_before(before, mixed, correction, D)
    async_copy.wait_group(0)
    barrier()
    mixed = warpgroup_mma(shares, values.index((n_blocks - 1) % _PLACES), mixed, is_async=True)
    mixed, shares = warpgroup_mma_wait(0, deps=(mixed, shares))
    return mixed, highest, total


@gluon.jit(do_not_specialize=["n_tokens", "start", "window", "capacity", "q_token"])
def attend_prompt_kernel(
    q, q_weight, cos, sin, keys, values, sinks, out, n_tokens, start, window, capacity, q_token, scale, eps, limit,
    N_HEADS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, HAS_NORM: gl.constexpr, HAS_LIMIT: gl.constexpr,
    HAS_WINDOW: gl.constexpr, WRAPS: gl.constexpr, HAS_SINKS: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """Program: ROWS rows, token by token the heads of a group, and their key-value head.

    q [T, N_HEADS * D], tokens q_token apart, are projections; cos, sin f32 [T, D / 2]. keys, values: stores
    [N_HEADS / GROUP, capacity, D] in bfloat16, the tokens' own included. out [T, N_HEADS, D], f32 or bfloat16.
    """
    DTYPE: gl.constexpr = keys.dtype.element_ty
    head = gl.program_id(1)
    n_rows = n_tokens * GROUP
    # The last tokens see most, and come first.
    first_row = (gl.num_programs(0) - 1 - gl.program_id(0)) * ROWS
    first_token, last_token = first_row // GROUP, gl.minimum((first_row + ROWS - 1) // GROUP, n_tokens - 1)
    first, end = 0, start + last_token + 1
    if HAS_WINDOW:
        first = gl.maximum(0, start + first_token + 1 - window)
    n_blocks = gl.cdiv(end - first, KEYS)
    n_clear = (start + first_token + 1 - first) // KEYS
    key_store, value_store = keys + head.to(gl.int64) * capacity * D, values + head.to(gl.int64) * capacity * D
    key_rooms = gl.allocate_shared_memory(DTYPE, [_PLACES, KEYS, D], swizzled())
    value_rooms = gl.allocate_shared_memory(DTYPE, [_PLACES, KEYS, D], swizzled())
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    _fetch(key_rooms, key_store, 0, first, end, capacity, D, WRAPS)
    async_copy.commit_group()
    queries = _keep_queries(
        q, q_weight, cos, sin, eps, limit, first_row, n_rows, head, q_token, GROUP, D, HAS_NORM, HAS_LIMIT, DTYPE
    )
    position = start + (first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, product(KEYS)))) // GROUP
    places = (key_store, value_store, first, end, capacity, position, window, scale * LOG2_E)
    state = _meet_first(queries, key_rooms, value_rooms, places, n_blocks, D, WRAPS, HAS_WINDOW)
    # Before the window of the last of a program's tokens are fewer positions than a block has: the first one's.
    for block in range(1, n_clear):
        state = _meet(queries, key_rooms, value_rooms, state, places, block, n_blocks, D, WRAPS, False, HAS_WINDOW)
    for block in range(gl.maximum(1, n_clear), n_blocks):
        state = _meet(queries, key_rooms, value_rooms, state, places, block, n_blocks, D, WRAPS, True, HAS_WINDOW)
    mixed, highest, total = _meet_last(value_rooms, state, n_blocks, D)
    if HAS_SINKS:
        row = first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, product(KEYS)))
        sink = gl.load(sinks + head * GROUP + row % GROUP) * LOG2_E
        total += gl.exp2(sink - highest)
    mixed /= gl.convert_layout(total, gl.SliceLayout(1, product(D)), assert_trivial=True)[:, None]
    _store(mixed, out, first_row, n_rows, head, N_HEADS, GROUP, D)


@gluon.jit
def _store(mixed, out, first_row, n_rows, head, N_HEADS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr):
    """mixed [ROWS, D] into out [T, N_HEADS, D]."""
    L: gl.constexpr = copied(D)
    row = first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, L))
    line = (row // GROUP).to(gl.int64) * N_HEADS + head * GROUP + row % GROUP
    at = out + (line * D)[:, None] + gl.arange(0, D, layout=gl.SliceLayout(0, L))[None, :]
    gl.store(at, gl.convert_layout(mixed.to(out.dtype.element_ty), L), mask=(row < n_rows)[:, None])
