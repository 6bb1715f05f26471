"""What a tile leaves behind: hidden values for the next product, or outputs."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from coterie.backends.cuda.kernels.activation import gated
from coterie.backends.cuda.kernels.hopper.layouts import ROWS, as_vectors, per_token, stored
from coterie.backends.cuda.kernels.hopper.numbers import exponent_of, power
from coterie.ops.activations import CLAMP

_CLAMPED = gl.constexpr(CLAMP * (CLAMP + 1.0))
"""No hidden value of the clamped activation is larger."""

_AT_ONCE = gl.constexpr(32)
"""Tokens whose outputs are made at a time: more want more registers than there are."""


@gluon.jit
def slots_at(order, first, end, TOKENS: gl.constexpr, SLOTS: gl.constexpr, LAYOUT: gl.constexpr):
    """(slots int32 [TOKENS] of a block, their places); behind the last of an expert's, at `end`, it is repeated."""
    place = first + gl.arange(0, TOKENS, layout=LAYOUT)
    inside = gl.minimum(place, end - 1)
    slots = gl.load(order + inside) if SLOTS == "sorted" else inside
    return slots, place


@gluon.jit
def _kept(values):
    """values [n] in shared memory, as vectors of _AT_ONCE, or one of all."""
    n: gl.constexpr = values.shape[0]
    SOME: gl.constexpr = min(n, _AT_ONCE.value)
    room = gl.allocate_shared_memory(values.dtype, [n // SOME, SOME], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    room.store(gl.reshape(values, (n // SOME, SOME)))
    return as_vectors(room)


@gluon.jit
def factor_bits_of(size, largest, up_largest, ACTIVATION: gl.constexpr):
    """The stored exponent of the power of two that brings the bound of a slot's hidden values near float16's largest
    number; size: the sum of its activations' magnitudes, largest ones: those of its expert's weights.
    """
    bound = size * largest * (size * up_largest)
    if ACTIVATION == "swiglu_clamped":
        bound = gl.minimum(bound, _CLAMPED)
    return gl.minimum(gl.maximum(268 - exponent_of(bound), 1), 253)


@gluon.jit
def keep_tokens(
    order, first_place, end, x_sizes, top_k, largest, up_largest, out_sizes,
    TOKENS: gl.constexpr, PLAIN: gl.constexpr, GATED: gl.constexpr, ACTIVATION: gl.constexpr, SLOTS: gl.constexpr,
):  # fmt: skip
    """A block's slots, what a 1 of their activations stands for, and what hidden values are multiplied by, in shared
    memory, because at the end there would be only waiting for them; powers of two as their exponents, in bytes.

    What hidden values are multiplied by is what `factor_bits_of` says; out_sizes f32 [slot, 2] gets what a 1 then
    stands for. PLAIN: numbers stand for themselves.
    """
    slots, place = slots_at(order, first_place, end, TOKENS, SLOTS, per_token())
    kept = _kept(slots)
    units, factors = kept, kept
    if not PLAIN:
        at = x_sizes + (slots // top_k) * 2
        unit = exponent_of(gl.load(at))
        factor = unit
        if GATED:
            factor = factor_bits_of(gl.load(at + 1), gl.load(largest), gl.load(up_largest), ACTIVATION)
            gl.store(out_sizes + slots * 2, power(254 - factor), mask=(place < end) & (gl.program_id(0) == 0))
        units, factors = _kept(unit.to(gl.uint8)), _kept(factor.to(gl.uint8))
    return kept, units, factors


@gluon.jit
def finish(
    acc, row_bias, tokens, out, first_row, first_place, end, n_rows, FIRST: gl.constexpr, PLAIN: gl.constexpr,
    GATED: gl.constexpr, ACTIVATION: gl.constexpr,
):  # fmt: skip
    """Store what the products acc [ROWS, n] of tokens from _AT_ONCE * FIRST on make; `tokens` from `keep_tokens`."""
    n: gl.constexpr = acc.shape[1]
    if n > _AT_ONCE:
        acc, rest = gl.split(gl.permute(gl.reshape(acc, (ROWS, 2, n // 2)), (0, 2, 1)))
        row_bias = gl.convert_layout(row_bias, gl.SliceLayout(1, acc.type.layout), assert_trivial=True)
        finish(acc, row_bias, tokens, out, first_row, first_place, end, n_rows, FIRST, PLAIN, GATED, ACTIVATION)
        NEXT: gl.constexpr = FIRST + n // 2 // _AT_ONCE
        finish(rest, row_bias, tokens, out, first_row, first_place, end, n_rows, NEXT, PLAIN, GATED, ACTIVATION)
    else:
        slots, units, factors = tokens
        values = acc
        if not PLAIN:
            values *= power(units.index(FIRST).load(gl.SliceLayout(0, acc.type.layout)))[None, :]
        values += row_bias[:, None]
        if GATED:
            values = _hidden(values, ACTIVATION)
            if not PLAIN:
                values *= power(factors.index(FIRST).load(gl.SliceLayout(0, values.type.layout)))[None, :]
        _store(values, out, slots.index(FIRST), first_row, first_place + FIRST * n, end, n_rows)


@gluon.jit
def _hidden(values, ACTIVATION: gl.constexpr):
    """Hidden values [ROWS / 2, n] of gate and up, which take turns of 8 rows."""
    n: gl.constexpr = values.shape[1]
    pairs = gl.permute(gl.reshape(values, (ROWS // 16, 2, 8, n)), (0, 2, 3, 1))
    gate, up = gl.split(gl.reshape(pairs, (ROWS // 2, n, 2)))
    return gated(gate, up, ACTIVATION)


@gluon.jit
def _store(values, out, slots, first_row, first_place, end, n_rows):
    """values [rows, n] into out [slot, n_rows], from first_row on."""
    rows: gl.constexpr = values.shape[0]
    n: gl.constexpr = values.shape[1]
    L: gl.constexpr = stored(rows)
    ordered = gl.convert_layout(values.to(out.dtype.element_ty), L)
    slot = slots.load(gl.SliceLayout(0, L)).to(gl.int64)
    live = first_place + gl.arange(0, n, layout=gl.SliceLayout(0, L)) < end
    row = first_row + gl.arange(0, rows, layout=gl.SliceLayout(1, L))
    gl.store(out + (slot * n_rows)[None, :] + row[:, None], ordered, mask=live[None, :] & (row < n_rows)[:, None])
