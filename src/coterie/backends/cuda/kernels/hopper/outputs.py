"""What a tile leaves behind: hidden values for the next product, or outputs."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from coterie.backends.cuda.kernels.activation import gated
from coterie.backends.cuda.kernels.hopper.layouts import ROWS, stored
from coterie.backends.cuda.kernels.hopper.numbers import power
from coterie.ops.activations import CLAMP

_CLAMPED = gl.constexpr(CLAMP * (CLAMP + 1.0))
"""No hidden value of the clamped activation is larger."""


@gluon.jit
def store_hidden(
    acc, bound, hidden, sizes, first_row, slots, live, n_rows, TOKENS: gl.constexpr, ACTIVATION: gl.constexpr
):
    """Hidden values of gate and up, which take turns of 8 rows in acc [ROWS, TOKENS], as float16 [slot, n_rows].

    Each is multiplied by the power of two that brings `bound` [TOKENS], which none of its slot's exceeds, near
    float16's largest number; sizes f32 [slot, 2] gets what a 1 stands for.
    """
    N: gl.constexpr = ROWS // 2
    pairs = gl.permute(gl.reshape(acc, (ROWS // 16, 2, 8, TOKENS)), (0, 2, 3, 1))
    gate, up = gl.split(gl.reshape(pairs, (N, TOKENS, 2)))
    values = gated(gate, up, ACTIVATION)
    if ACTIVATION == "swiglu_clamped":
        bound = gl.minimum(bound, _CLAMPED)
    bits = gl.minimum(gl.maximum(268 - (bound.to(gl.int32, bitcast=True) >> 23), 1), 253)
    gl.store(sizes + slots * 2, power(254 - bits), mask=live & (gl.program_id(0) == 0))
    factor = gl.convert_layout(power(bits), gl.SliceLayout(0, values.type.layout))
    store_plain((values * factor[None, :]).to(gl.float16), hidden, first_row, slots, live, n_rows, TOKENS)


@gluon.jit
def store_plain(values, out, first_row, slots, live, n_rows, TOKENS: gl.constexpr):
    """values [n, TOKENS] into out [slot, n_rows], from first_row on."""
    n: gl.constexpr = values.shape[0]
    L: gl.constexpr = stored(n)
    ordered = gl.convert_layout(values.to(out.dtype.element_ty), L)
    slot = gl.convert_layout(slots, gl.SliceLayout(0, L)).to(gl.int64)
    own = gl.convert_layout(live.to(gl.int32), gl.SliceLayout(0, L)) != 0
    row = first_row + gl.arange(0, n, layout=gl.SliceLayout(1, L))
    gl.store(out + (slot * n_rows)[None, :] + row[:, None], ordered, mask=own[None, :] & (row < n_rows)[:, None])
