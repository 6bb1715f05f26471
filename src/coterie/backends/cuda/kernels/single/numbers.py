"""From packed codes to bfloat16 numbers in the registers from which the matrix units take them: every code, exactly."""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from coterie.backends.cuda.kernels.codes import E2M1_NIBBLES
from coterie.backends.cuda.kernels.single.layouts import (
    COLUMNS,
    ROWS,
    constants_read,
    groups_counted,
    left,
    products,
    right,
    units_read,
)

_NIBBLES = gl.constexpr(
    "{ .reg .b32 t; lop3.b32 $0, $4, 0x000F000F, 0x43004300, 0xEA; "
    "shr.b32 t, $4, 4; lop3.b32 $1, t, 0x000F000F, 0x43004300, 0xEA; "
    "shr.b32 t, $4, 8; lop3.b32 $2, t, 0x000F000F, 0x43004300, 0xEA; "
    "shr.b32 t, $4, 12; lop3.b32 $3, t, 0x000F000F, 0x43004300, 0xEA; }"
)
"""128 plus each of the four 4-bit codes of each of two units."""

_BYTE = (
    "lop3.b32 m, {q}, 0x00800080, 0, 0x0C; mul.lo.u32 m, m, 0x86; "
    "lop3.b32 t, {q}, 0x007F007F, 0x43004300, 0xEA; fma.rn.bf16x2 {out}, m, less, t; "
)
"""PTX: two codes. Their low seven bits are a number of 128 and more, which is the code if its eighth is set."""

_BYTES = gl.constexpr(
    "{ .reg .b32 t, m, q, less; mov.b32 less, 0xBF80BF80; "
    + _BYTE.format(q="$2", out="$0") + "shr.b32 q, $2, 8; " + _BYTE.format(q="q", out="$1") + "}"
)  # fmt: skip
"""The two 8-bit codes of each of two units."""


@triton.constexpr_function
def excess(mode, bits):
    """What numbers are larger than their codes by."""
    return 128 if mode == "affine" and bits == 4 else 0


@gluon.jit
def numbers(units, MODE: gl.constexpr, BITS: gl.constexpr, WARPS: gl.constexpr):
    """Numbers [groups, ROWS, columns] of units [groups, ROWS, n]; code i of unit u is column i * n + `place` of u.

    The matrix units multiply two neighbours of a thread's and two more that they count eight columns later: the units
    that a thread has are given such places.
    """
    n: gl.constexpr = units.shape[2]
    groups: gl.constexpr = units.shape[0]
    turned = gl.permute(gl.reshape(units, (groups, ROWS, 4, n // 8, 2)), (0, 1, 3, 2, 4))
    units = gl.reshape(turned, (groups, ROWS, n))
    if BITS == 8:
        a, b = gl.inline_asm_elementwise(
            _BYTES, "=&r,=&r,r", [units], dtype=(gl.bfloat16, gl.bfloat16), is_pure=True, pack=2
        )
        flat = gl.reshape(gl.permute(gl.join(a, b), (0, 1, 3, 2)), (groups, ROWS, 2 * n))
    else:
        a, b, c, d = gl.inline_asm_elementwise(
            _NIBBLES if MODE == "affine" else E2M1_NIBBLES, "=&r,=&r,=&r,=&r,r", [units],
            dtype=(gl.bfloat16, gl.bfloat16, gl.bfloat16, gl.bfloat16), is_pure=True, pack=2,
        )  # fmt: skip
        four = gl.join(gl.join(a, c), gl.join(b, d))
        flat = gl.reshape(gl.permute(four, (0, 1, 3, 4, 2)), (groups, ROWS, 4 * n))
    return gl.convert_layout(flat, left(WARPS), assert_trivial=True)


@gluon.jit
def beside_numbers(x, U: gl.constexpr, WARPS: gl.constexpr):
    """Activations [groups, G, COLUMNS] in the order of codes as the matrix units take them beside `numbers`."""
    groups: gl.constexpr = x.shape[0]
    G: gl.constexpr = x.shape[1]
    turned = gl.permute(gl.reshape(x, (groups, G // U, 4, U // 8, 2, COLUMNS)), (0, 1, 3, 2, 4, 5))
    return gl.convert_layout(gl.reshape(turned, (groups, G, COLUMNS)), right(WARPS), assert_trivial=True)


@triton.constexpr_function
def runs_of(n_groups, warps):
    """(groups of a first product, and of a second, 0 for none): powers of two, at least one a warp, that hold all."""
    first = 1 << n_groups.bit_length() - 1
    if first < warps or first == n_groups:
        return max(warps, first if first == n_groups else 2 * first), 0
    second = max(warps, triton.next_power_of_2(n_groups - first))
    return (first, second) if second < first else (2 * first, 0)


@gluon.jit
def _per_group(values, LAYOUT: gl.constexpr):
    """[warps, groups of each] in the order of a product's groups."""
    groups: gl.constexpr = values.shape[0] * values.shape[1]
    return gl.convert_layout(gl.reshape(gl.permute(values, (1, 0)), (groups,)), LAYOUT, assert_trivial=True)


@gluon.jit
def _spread(values, HELD: gl.constexpr):
    """A value of each warp [warps] as [warps, groups of each]."""
    WARPS: gl.constexpr = values.shape[0]
    L: gl.constexpr = groups_counted(HELD // WARPS, WARPS)
    return gl.convert_layout(values, gl.SliceLayout(1, L), assert_trivial=True)[:, None].broadcast_to(
        (WARPS, HELD // WARPS)
    )


@gluon.jit
def of_warps(values, HELD: gl.constexpr, LAYOUT: gl.constexpr):
    """A value of each warp, for each of the groups [HELD] of a product."""
    return _per_group(_spread(values, HELD), LAYOUT)


@gluon.jit
def _counted(EACH: gl.constexpr, SLOTS: gl.constexpr, WARPS: gl.constexpr):
    """A warp's first group [WARPS, 1], and the places [1, EACH] of its groups behind it; SLOTS runs of warps have the
    same groups.
    """
    L: gl.constexpr = groups_counted(EACH, WARPS)
    warp = gl.arange(0, WARPS, layout=gl.SliceLayout(1, L)) % (WARPS // SLOTS)
    return (warp * EACH)[:, None], gl.arange(0, EACH, layout=gl.SliceLayout(0, L))[None, :]


@triton.constexpr_function
def _common(n_groups, each):
    """The largest power of two that divides both; the second is one."""
    return min(n_groups & -n_groups, each)


@gluon.jit
def constants_at(
    shift, NG: gl.constexpr, BEGIN: gl.constexpr, HELD: gl.constexpr, SLOTS: gl.constexpr, LAYOUT: gl.constexpr
):
    """(places in an array [rows, NG], groups) [HELD] in the order of constants: those of `groups_in` from group BEGIN
    on, of row shift [warps].
    """
    WARPS: gl.constexpr = shift.shape[0]
    EACH: gl.constexpr = HELD // WARPS
    first, place = _counted(EACH, SLOTS, WARPS)
    group = BEGIN + first + place
    place = gl.convert_layout(gl.reshape(_spread(shift, HELD) * NG + group, (HELD,)), LAYOUT, assert_trivial=True)
    # A warp's are neighbours, of which the compiler lost sight.
    place = gl.max_contiguous(gl.multiple_of(place, [_common(NG, EACH)]), [EACH])
    return place, gl.convert_layout(gl.reshape(group, (HELD,)), LAYOUT, assert_trivial=True)


@gluon.jit
def groups_in(HELD: gl.constexpr, SLOTS: gl.constexpr, WARPS: gl.constexpr, LAYOUT: gl.constexpr):
    """Which groups [HELD] a product has, a warp's side by side: the warp's first, and the place behind it. Apart,
    because places are constants, which loads can have in them.
    """
    EACH: gl.constexpr = HELD // WARPS
    first, place = _counted(EACH, SLOTS, WARPS)
    shape: gl.constexpr = (WARPS, EACH)
    return _per_group(first.broadcast_to(shape), LAYOUT), _per_group(place.broadcast_to(shape), LAYOUT)


@gluon.jit
def starts(values, others, first_row, last_row, width: gl.constexpr, PAIRED: gl.constexpr, LAYOUT: gl.constexpr):
    """Where ROWS rows begin, from `first_row` on; rows behind `last_row` repeat it. PAIRED: half of them are the same
    rows of `others`.
    """
    row = gl.arange(0, ROWS, layout=LAYOUT)
    if PAIRED:
        place = gl.minimum(first_row + row % (ROWS // 2), last_row) * width
        at = gl.where(row < ROWS // 2, values + place, others + place)
    else:
        at = values + gl.minimum(first_row + row, last_row) * width
    return at


@gluon.jit
def read_some(place, there, ALL: gl.constexpr):
    """What stands at places that are `there`, zeros for others; ALL: they all are."""
    if ALL:
        return gl.load(place)
    return gl.load(place, mask=there, other=0)


@gluon.jit
def read_units(
    codes, others, first_row, last_row, NG: gl.constexpr, U: gl.constexpr, PAIRED: gl.constexpr, BEGIN: gl.constexpr,
    HELD: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Units [HELD, ROWS, U] of the rows of `starts`, those of NG groups from group BEGIN on."""
    L: gl.constexpr = units_read(HELD, U, WARPS)
    first, group = groups_in(HELD, 1, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, L)))
    at = starts(codes, others, first_row, last_row, NG * U, PAIRED, gl.SliceLayout(0, gl.SliceLayout(2, L)))
    unit = gl.arange(0, U, layout=gl.SliceLayout(0, gl.SliceLayout(1, L)))
    near = at[None, :, None] + (first * U)[:, None, None] + unit[None, None, :]
    place = near + ((BEGIN + group) * U)[:, None, None]
    return read_some(place, (first + group < NG - BEGIN)[:, None, None], BEGIN + HELD <= NG)


@gluon.jit
def read_constants(
    values, others, first_row, last_row, NG: gl.constexpr, PAIRED: gl.constexpr, BEGIN: gl.constexpr,
    HELD: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Scales or biases [ROWS, HELD] of the rows of `starts`."""
    L: gl.constexpr = constants_read(HELD, WARPS)
    group = BEGIN + gl.arange(0, HELD, layout=gl.SliceLayout(0, L))
    at = starts(values, others, first_row, last_row, NG, PAIRED, gl.SliceLayout(1, L))
    return read_some(at[:, None] + group[None, :], (group < NG)[None, :], BEGIN + HELD <= NG)


@gluon.jit
def by_group(constants, WARPS: gl.constexpr):
    """[ROWS, groups] f32 as [groups, ROWS, 1] beside products."""
    HELD: gl.constexpr = constants.shape[1]
    turned = gl.permute(gl.reshape(constants, (ROWS, WARPS, HELD // WARPS)), (2, 1, 0))
    flat = gl.reshape(turned, (HELD, ROWS))
    return gl.convert_layout(flat, gl.SliceLayout(2, products(WARPS)), assert_trivial=True)[:, :, None]
