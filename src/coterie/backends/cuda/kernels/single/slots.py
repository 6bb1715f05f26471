"""One token's hidden values through the last matrices of all its experts, weighted and summed: each expert is a matter
of warps of its own, so nothing is stored that would be read again.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from coterie.backends.cuda.kernels.single.layouts import (
    COLUMNS,
    ROWS,
    columns_read,
    constants_read,
    groups_counted,
    sums_by_slot,
    units_read,
)
from coterie.backends.cuda.kernels.single.numbers import (
    beside_numbers,
    constants_at,
    groups_in,
    of_warps,
    read_some,
    runs_of,
)
from coterie.backends.cuda.kernels.single.products import multiply_run
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous
from coterie.ops.combine import SKIPPED_BELOW

_SKIPPED_BELOW = gl.constexpr(SKIPPED_BELOW)


@gluon.jit
def _read_run(
    matrix, shift, used, first_row, last_row, NG: gl.constexpr, U: gl.constexpr, MODE: gl.constexpr,
    BEGIN: gl.constexpr, HELD: gl.constexpr, SLOTS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """(units, scales, biases) of HELD / SLOTS groups from group BEGIN on of rows that begin `shift` [WARPS] rows behind
    those of `matrix`. Where a warp is not `used` units are zeros, and constants those of other rows.
    """
    L: gl.constexpr = units_read(HELD, U, WARPS)
    OF_GROUPS: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, L))
    first, group = groups_in(HELD, SLOTS, WARPS, OF_GROUPS)
    row = gl.minimum(first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(0, gl.SliceLayout(2, L))), last_row)
    unit = gl.arange(0, U, layout=gl.SliceLayout(0, gl.SliceLayout(1, L)))
    begin = of_warps(shift, HELD, OF_GROUPS) * (NG * U) + first * U
    near = matrix[0] + begin[:, None, None] + (row * (NG * U))[None, :, None] + unit[None, None, :]
    mask = of_warps(used, HELD, OF_GROUPS) & (first + group < NG - BEGIN)
    units = gl.load(near + ((BEGIN + group) * U)[:, None, None], mask=mask[:, None, None], other=0)

    M: gl.constexpr = constants_read(HELD, WARPS)
    more, group = constants_at(shift, NG, BEGIN, HELD, SLOTS, gl.SliceLayout(0, M))
    row = gl.minimum(first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, M)), last_row)
    place = (row * NG)[:, None] + more[None, :]
    there = (group < NG)[None, :]
    scale = read_some(matrix[1] + place, there, BEGIN + HELD // SLOTS <= NG)
    bias = scale
    if MODE == "affine":
        bias = read_some(matrix[2] + place, there, BEGIN + HELD // SLOTS <= NG)
    return units, scale, bias


@gluon.jit
def _read_columns(
    x, slot, used, K: gl.constexpr, G: gl.constexpr, U: gl.constexpr, BEGIN: gl.constexpr, HELD: gl.constexpr,
    SLOTS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Hidden values bfloat16 [HELD, G, COLUMNS] of slots [WARPS] in the first column; zeros in all others."""
    L: gl.constexpr = columns_read(HELD, G, U, WARPS)
    OF_GROUPS: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, L))
    first, group = groups_in(HELD, SLOTS, WARPS, OF_GROUPS)
    k = gl.arange(0, G, layout=gl.SliceLayout(0, gl.SliceLayout(2, L)))
    column = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, gl.SliceLayout(1, L)))
    near = x + (of_warps(slot, HELD, OF_GROUPS) * K + first * G)[:, None, None] + k[None, :, None]
    mask = of_warps(used, HELD, OF_GROUPS) & (first + group < K // G - BEGIN)
    place = (near + ((BEGIN + group) * G)[:, None, None]).broadcast_to((HELD, G, COLUMNS))
    found = gl.load(place, mask=mask[:, None, None] & (column == 0)[None, None, :], other=0.0)
    return beside_numbers(found, U, WARPS)


@gluon.jit
def _added(total, values):
    """total [n] plus the rows of values [slots, n], one after the other."""
    slots: gl.constexpr = values.shape[0]
    n: gl.constexpr = values.shape[1]
    if slots == 1:
        total += gl.convert_layout(gl.reshape(values, (n,)), total.type.layout)
    else:
        earlier, later = gl.split(gl.permute(gl.reshape(values, (2, slots // 2, n)), (1, 2, 0)))
        total = _added(_added(total, earlier), later)
    return total


@gluon.jit
def _slots(ids, weights, slot, n_experts, n_rows, TOP_K: gl.constexpr):
    """(first row of the expert's matrix int64, weight, whether it counts) of slots [n]."""
    expert = gl.load(ids + slot, mask=slot < TOP_K, other=-1)
    weight = gl.load(weights + slot, mask=slot < TOP_K, other=0.0)
    used = (expert >= 0) & (expert < n_experts) & (gl.abs(weight) >= _SKIPPED_BELOW)
    return gl.where(used, expert, 0).to(gl.int64) * n_rows, weight, used


@gluon.jit
def single_slots_kernel(
    x, codes, scales, biases, bias, ids, weights, out, n_experts, n_rows,
    K: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    HAS_BIAS: gl.constexpr, TOP_K: gl.constexpr, SLOTS: gl.constexpr, WARPS: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """ROWS rows of out [n_rows] = the sum over slots of weight * (matrix of the slot's expert @ x[slot] + its bias).

    x: bfloat16 [TOP_K, K] in the order of codes; bias f32 [E, n_rows]; ids int32 and weights f32 [TOP_K], which the
    kernel before this one did not make; SLOTS: a power of two that holds TOP_K. Slots of tiny weights, and those whose
    id is no expert's, are left out. Sums have the bits of `kernels.norms.branch_row` over slots one by one, if it and
    this are compiled without fused additions.
    """
    first_row = gl.program_id(0) * ROWS
    slot = gl.arange(0, WARPS, layout=gl.SliceLayout(1, groups_counted(1, WARPS))) // (WARPS // SLOTS)
    begin, _, used = _slots(ids, weights, slot, n_experts, n_rows, TOP_K)
    matrix = (codes, scales, biases)
    NG: gl.constexpr = K // G
    U: gl.constexpr = G // C
    RUNS: gl.constexpr = runs_of(NG, WARPS // SLOTS)
    A: gl.constexpr = RUNS[0] * SLOTS
    B: gl.constexpr = RUNS[1] * SLOTS
    one = _read_run(matrix, begin, used, first_row, n_rows - 1, NG, U, MODE, 0, A, SLOTS, WARPS)
    two = one
    if B > 0:
        two = _read_run(matrix, begin, used, first_row, n_rows - 1, NG, U, MODE, RUNS[0], B, SLOTS, WARPS)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    found = multiply_run(one, _read_columns(x, slot, used, K, G, U, 0, A, SLOTS, WARPS), MODE, BITS, WARPS)
    if B > 0:
        found += multiply_run(two, _read_columns(x, slot, used, K, G, U, RUNS[0], B, SLOTS, WARPS), MODE, BITS, WARPS)
    # Columns but the first are zeros.
    by_slot = gl.sum(gl.reshape(gl.sum(found, 2), (SLOTS, WARPS // SLOTS, ROWS)), 1)
    L: gl.constexpr = sums_by_slot(SLOTS, WARPS)
    values = gl.convert_layout(by_slot, L)
    slot = gl.arange(0, SLOTS, layout=gl.SliceLayout(1, L))
    begin, weight, used = _slots(ids, weights, slot, n_experts, n_rows, TOP_K)
    row = first_row + gl.arange(0, ROWS, layout=gl.SliceLayout(0, L))
    if HAS_BIAS:
        values += gl.load(bias + begin[:, None] + row[None, :], mask=used[:, None] & (row < n_rows)[None, :], other=0.0)
    parts = gl.where(used[:, None], weight[:, None] * values, 0.0)
    total = _added(gl.zeros([ROWS], gl.float32, gl.SliceLayout(0, L)), parts)
    gl.store(out + row, total.to(out.dtype.element_ty), mask=row < n_rows)
