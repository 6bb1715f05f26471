"""From logits to tokens on the device: the choice that `coterie.runtime.sampling` makes with the same numbers.

Shares exp((z - highest) / temperature) are f64, rounded to whole multiples of a power of two, so that their sums are
exact in any order. The k likeliest tokens, or the fewest that hold a share, are those whose key is at or above a
border: keys are ordered like logits, and among equal ones the lower id is higher. A border is found digit by digit from
the highest on, one launch a digit, each of which adds up what the programs of the one before have found.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import let_next_begin, wait_for_previous

TEMPERATURE: tl.constexpr = tl.constexpr(0)
TOP_P: tl.constexpr = tl.constexpr(1)
MIN_P: tl.constexpr = tl.constexpr(2)
TOP_K: tl.constexpr = tl.constexpr(3)
N_SETTINGS: tl.constexpr = tl.constexpr(4)
"""What a row asks for, f64; all of it is a temperature of 0 where the likeliest token is taken."""

PREFIX: tl.constexpr = tl.constexpr(0)
ABOVE: tl.constexpr = tl.constexpr(1)
TARGET: tl.constexpr = tl.constexpr(2)
N_STATES: tl.constexpr = tl.constexpr(4)
"""A border's digits so far, the weight of the keys above them, the weight that it must reach, and nothing, int64."""

DIGIT: tl.constexpr = tl.constexpr(4)
N_DIGITS: tl.constexpr = tl.constexpr(16)
"""Bits of a digit of a key, and how many digits there are."""


@triton.jit
def find_highest_kernel(logits, tops, places, bad, n_logits, n_blocks, BLOCK: tl.constexpr, EARLY: tl.constexpr):
    """Program: a block of a row. Its highest logit, the first place that has it, and how many are not finite."""
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n_logits
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    z = tl.load(logits + row * n_logits + columns, mask=inside, other=float("-inf"))
    finite = tl.abs(z) < float("inf")
    z = tl.where(finite, z, float("-inf"))
    top = tl.max(z, 0)
    target = row * n_blocks + block
    tl.store(tops + target, top)
    tl.store(places + target, tl.min(tl.where(z == top, columns, n_logits), 0))
    tl.store(bad + target, tl.sum((inside & (finite == 0)).to(tl.int32), 0))


@triton.jit
def highest_of(tops, places, row, n_blocks, n_logits, BLOCKS: tl.constexpr):
    """The highest logit of a row, and the first place that has it."""
    blocks = tl.arange(0, BLOCKS)
    inside = blocks < n_blocks
    top = tl.load(tops + row * n_blocks + blocks, mask=inside, other=float("-inf"))
    place = tl.load(places + row * n_blocks + blocks, mask=inside, other=n_logits)
    highest = tl.max(top, 0)
    return highest, tl.min(tl.where(top == highest, place, n_logits), 0)


@triton.jit
def shares_of(z, inside, highest, temperature, min_p, UNIT: tl.constexpr):
    """Shares as whole numbers of 1 / 2^UNIT; 0 for what is below min_p."""
    shares = tl.exp((z.to(tl.float64) - highest.to(tl.float64)) / temperature)
    shares = tl.where(inside & (shares >= min_p), shares, 0.0)
    return (shares * (1 << UNIT) + 0.5).to(tl.int64)


@triton.jit
def keys_of(z, columns, inside, ID_BITS: tl.constexpr):
    """Keys int64 >= 0 ordered like the logits, of equal ones the lower id higher; -1 outside."""
    # 0 and -0 are equal.
    bits = tl.where(z == 0.0, 0.0, z).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, ~bits, bits | (-2147483648)).to(tl.uint32, bitcast=True).to(tl.int64)
    return tl.where(inside, (ordered << ID_BITS) | ((1 << ID_BITS) - 1 - columns), -1)


@triton.jit
def border(borders, row, WANTED: tl.constexpr):
    """The key that a row's tokens must reach; 0 where there is none."""
    if WANTED:
        return tl.load(borders + row * N_STATES + PREFIX)
    return tl.full((), 0, tl.int64)


@triton.jit(do_not_specialize=["digits_left"])
def next_digit_kernel(
    logits, tops, places, settings, sums, next_sums, states, next_states, other_borders, n_logits, n_blocks,
    digits_left, IS_FIRST: tl.constexpr, IS_SECOND: tl.constexpr, IS_LAST: tl.constexpr, BY_SHARE: tl.constexpr,
    AMONG_OTHERS: tl.constexpr, UNIT: tl.constexpr, ID_BITS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Program: a block of a row. The border's digit that the last launch has added up for, and the sums for the next.

    sums int64 [rows, n_blocks, 16]: the weight of each digit among the keys of a block that begin like the border.
    BY_SHARE: the border of top_p, among the tokens that reach the other one's; else that of top_k, whose weights are 1.
    When no digits are left there is one program a row, which ends the border.
    """
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    digits = tl.arange(0, N_DIGITS)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    temperature = tl.load(settings + row * N_SETTINGS + TEMPERATURE)
    top_k = tl.load(settings + row * N_SETTINGS + TOP_K).to(tl.int64)
    top_p = tl.load(settings + row * N_SETTINGS + TOP_P)
    asked = top_p < 1.0 if BY_SHARE else (top_k > 0) & (top_k < n_logits)
    if not (asked & (temperature > 0.0)):
        if IS_LAST:
            tl.store(next_states + row * N_STATES + PREFIX, tl.full((), 0, tl.int64))
        return
    prefix, above, target = tl.full((), 0, tl.int64), tl.full((), 0, tl.int64), top_k
    if not IS_FIRST:
        blocks = tl.arange(0, BLOCKS)
        found = tl.load(
            sums + ((row * n_blocks + blocks) * N_DIGITS)[:, None] + digits[None, :], mask=(blocks < n_blocks)[:, None],
            other=0,
        )  # fmt: skip
        weights = tl.sum(found, 0)
        if IS_SECOND:
            if BY_SHARE:
                target = tl.ceil(top_p * tl.sum(weights, 0).to(tl.float64)).to(tl.int64)
        else:
            prefix = tl.load(states + row * N_STATES + PREFIX)
            above = tl.load(states + row * N_STATES + ABOVE)
            target = tl.load(states + row * N_STATES + TARGET)
        reached = above + tl.sum(weights, 0) - tl.cumsum(weights, 0) + weights
        digit = tl.sum((reached >= target).to(tl.int64), 0) - 1
        above = tl.sum(tl.where(digits == digit, reached - weights, 0), 0)
        prefix = (prefix << DIGIT) | digit
        if block == 0:
            tl.store(next_states + row * N_STATES + PREFIX, prefix)
            tl.store(next_states + row * N_STATES + ABOVE, above)
            tl.store(next_states + row * N_STATES + TARGET, target)
    if not IS_LAST:
        columns = block * BLOCK + tl.arange(0, BLOCK)
        inside = columns < n_logits
        z = tl.load(logits + row * n_logits + columns, mask=inside, other=0.0)
        keys = keys_of(z, columns, inside, ID_BITS)
        below = ((digits_left - 1) * DIGIT).to(tl.int64)
        begins_alike = (keys >> (below + DIGIT)) == prefix
        if BY_SHARE:
            highest, _ = highest_of(tops, places, row, n_blocks, n_logits, BLOCKS)
            reaches = keys >= border(other_borders, row, AMONG_OTHERS)
            weight = shares_of(z, inside & reaches, highest, temperature, 0.0, UNIT)
        else:
            weight = inside.to(tl.int64)
        weight = tl.where(begins_alike, weight, 0)
        digit_of = ((keys >> below) & (N_DIGITS - 1)).to(tl.int32)
        each = tl.sum(tl.where(digit_of[None, :] == digits[:, None], weight[None, :], 0), 1)
        tl.store(next_sums + (row * n_blocks + block) * N_DIGITS + digits, each)


@triton.jit
def kept_shares(
    logits, row, block, highest, settings, k_borders, p_borders, n_logits, HAS_K: tl.constexpr, HAS_P: tl.constexpr,
    UNIT: tl.constexpr, ID_BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The shares of a block's tokens that may be drawn, 0 for the others."""
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < n_logits
    z = tl.load(logits + row * n_logits + columns, mask=inside, other=0.0)
    keys = keys_of(z, columns, inside, ID_BITS)
    kept = inside & (keys >= border(k_borders, row, HAS_K)) & (keys >= border(p_borders, row, HAS_P))
    temperature = tl.load(settings + row * N_SETTINGS + TEMPERATURE)
    min_p = tl.load(settings + row * N_SETTINGS + MIN_P)
    return shares_of(z, kept, highest, tl.where(temperature > 0.0, temperature, 1.0), min_p, UNIT)


@triton.jit
def sum_shares_kernel(
    logits, tops, places, settings, k_borders, p_borders, sums, n_logits, n_blocks, HAS_K: tl.constexpr,
    HAS_P: tl.constexpr, UNIT: tl.constexpr, ID_BITS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Program: a block of a row. What its tokens that may be drawn hold together."""
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    highest, _ = highest_of(tops, places, row, n_blocks, n_logits, BLOCKS)
    shares = kept_shares(
        logits, row, block, highest, settings, k_borders, p_borders, n_logits, HAS_K, HAS_P, UNIT, ID_BITS, BLOCK
    )
    tl.store(sums + row * n_blocks + block, tl.sum(shares, 0))


@triton.jit
def take_tokens_kernel(
    logits, tops, places, bad, settings, k_borders, p_borders, sums, uniforms, found, ids, positions, n_logits,
    n_blocks, DRAWS: tl.constexpr, HAS_K: tl.constexpr, HAS_P: tl.constexpr, UNIT: tl.constexpr,
    ID_BITS: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Program: a row. Its token, -1 where logits are not finite, which is the next step's at the next position.

    uniforms int64 [rows, 2]: the address of a row's numbers in f64, and how many of them have been used.
    """
    row = tl.program_id(0).to(tl.int64)
    blocks = tl.arange(0, BLOCKS)
    some = blocks < n_blocks
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    highest, token = highest_of(tops, places, row, n_blocks, n_logits, BLOCKS)
    n_bad = tl.sum(tl.load(bad + row * n_blocks + blocks, mask=some, other=0), 0)
    if DRAWS:  # noqa: SIM102 (the first is known when the kernel is compiled)
        if (tl.load(settings + row * N_SETTINGS + TEMPERATURE) > 0.0) & (n_bad == 0):
            used = tl.load(uniforms + row * 2 + 1)
            uniform = tl.load(tl.load(uniforms + row * 2).to(tl.pointer_type(tl.float64)) + used)
            tl.store(uniforms + row * 2 + 1, used + 1)
            own = tl.load(sums + row * n_blocks + blocks, mask=some, other=0)
            ends = tl.cumsum(own, 0)
            total = tl.sum(own, 0)
            target = tl.minimum((uniform * total.to(tl.float64)).to(tl.int64), total - 1)
            block = tl.sum((ends <= target).to(tl.int32), 0)
            before = tl.sum(tl.where(blocks < block, own, 0), 0)
            shares = kept_shares(
                logits, row, block, highest, settings, k_borders, p_borders, n_logits, HAS_K, HAS_P, UNIT, ID_BITS,
                BLOCK,
            )  # fmt: skip
            token = block * BLOCK + tl.sum((before + tl.cumsum(shares, 0) <= target).to(tl.int32), 0)
    tl.store(found + row, tl.where(n_bad > 0, -1, token).to(tl.int64))
    tl.store(ids + row, tl.where(n_bad > 0, 0, token).to(tl.int64))
    position = tl.load(positions + row)
    tl.store(positions + row, tl.where(position < 0, position, position + 1))
