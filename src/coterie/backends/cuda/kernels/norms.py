"""RMS norm (Zhang and Sennrich, 2019) of rows, alone or between the branches of a layer and the residual stream.

A program has a whole row in its registers, so every number is read once; the norms' weights are there before the row.
What matrices meet next leaves in the order of their codes as well.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.halves import halve_row
from coterie.backends.cuda.kernels.prepare import group_sums
from coterie.backends.cuda.launch import let_next_begin, wait_and_let_begin, wait_for_previous
from coterie.ops.combine import SKIPPED_BELOW

_SKIPPED_BELOW = tl.constexpr(SKIPPED_BELOW)


@triton.jit
def norm_factor(x, size, eps):
    """1 / sqrt(mean(x^2) + eps) of a row whose places beyond `size` are 0."""
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(x * x, 0), size * 1.0) + eps))


@triton.jit
def norm_factors(x, y, size, eps):
    """`norm_factor` of two rows, for which warps wait for each other once."""
    sums = tl.sum(tl.join(x * x, y * y), 0)
    return tl.split(tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(sums, size * 1.0) + eps)))


@triton.jit
def rms_norm_kernel(
    x, weight, out, size, x_stride, eps, HAS_WEIGHT: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):
    """Program: one row of x, whose rows are x_stride apart; those of out follow each other."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    if HAS_WEIGHT:
        scale = tl.load(weight + columns, mask=inside, other=0.0)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    values = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    values *= norm_factor(values, size, eps)
    if HAS_WEIGHT:
        values *= scale
    tl.store(out + row * size + columns, values, mask=inside)


@triton.jit
def vector(weights, index: tl.constexpr, columns, inside, WANTED: tl.constexpr):
    """The vector at a place of a tuple; of no use where none is wanted."""
    if WANTED:
        return tl.load(weights[index] + columns, mask=inside, other=0.0)
    return tl.zeros_like(columns).to(tl.float32)


@triton.jit
def slot_weights(ids, weights, n_experts, place, COUNT: tl.constexpr):
    """The weights of COUNT slots from `place` on, a tuple: 0 for tiny ones, and for ids that are no expert's."""
    expert, weight = tl.load(ids + place), tl.load(weights + place)
    used = (expert >= 0) & (expert < n_experts) & (tl.abs(weight) >= _SKIPPED_BELOW)
    found = (tl.where(used, weight, 0.0),)
    if COUNT > 1:
        found += slot_weights(ids, weights, n_experts, place + 1, COUNT - 1)
    return found


@triton.jit
def branch_row(values, weights, row, columns, inside, SIZE: tl.constexpr, TOP_K: tl.constexpr):
    """A row of a branch [rows, SIZE], or the sum of its TOP_K slots of [rows * TOP_K, SIZE] by their weights, in f32.

    Nothing is read of slots whose weight is 0.
    """
    if TOP_K == 0:
        return tl.load(values + row * SIZE + columns, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros_like(columns).to(tl.float32)
    for slot in tl.static_range(TOP_K):
        end = tl.where(weights[slot] == 0.0, 0, SIZE)
        value = tl.load(values + (row * TOP_K + slot) * SIZE + columns, mask=columns < end, other=0.0)
        total += weights[slot] * value.to(tl.float32)
    return total


@triton.jit
def _weights_of(ids, weights, n_experts, row, branch: tl.constexpr, TOP_K: tl.constexpr):
    """`slot_weights` of a row of a branch; of no use where it has no slots."""
    found = (0.0,)
    if TOP_K > 0:
        found = slot_weights(ids[branch], weights[branch], n_experts, row * TOP_K, TOP_K)
    return found


@triton.jit
def arrange_row(
    x, values, sums, place, row, n_rows, SIZE: tl.constexpr, GROUP: tl.constexpr, PER_UNIT: tl.constexpr,
    PARTS: tl.constexpr, SUMS: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """SIZE numbers x [BLOCK] of a row, from `place` on among its WHOLE, as PARTS bfloat16 numbers each in the order of
    codes: values [PARTS, n_rows, WHOLE]; and the sums of their groups [PARTS, n_rows, WHOLE / GROUP].

    For kernels that are compiled without fused additions: what a product of x's leaves behind its first part would
    otherwise be more than f32 holds, and other bits than those of x once it was stored.
    """
    columns, groups = tl.arange(0, BLOCK), tl.arange(0, BLOCK // GROUP)
    for part in tl.static_range(PARTS):
        number = x.to(tl.bfloat16)
        x -= number.to(tl.float32)
        line = part * n_rows + row
        ordered = number
        if PER_UNIT > 1:
            units = tl.reshape(number, (BLOCK // GROUP, GROUP // PER_UNIT, PER_UNIT))
            ordered = tl.reshape(tl.permute(units, (0, 2, 1)), (BLOCK,))
        tl.store(values + line * WHOLE + place + columns, ordered, mask=columns < SIZE)
        if SUMS:
            total = group_sums(number, BLOCK // GROUP, GROUP)
            target = sums + line * (WHOLE // GROUP) + place // GROUP + groups
            tl.store(target, total, mask=groups < SIZE // GROUP)


@triton.jit(do_not_specialize=["n_rows"])
def add_norms_kernel(
    h, branches, branch_norms, ids, weights, after, scalar, out, befores, normed, values, sums, n_rows, n_experts, eps,
    SIZE: tl.constexpr, TOP_K: tl.constexpr, NORMS_OF: tl.constexpr, HAS_AFTER: tl.constexpr, HAS_SCALAR: tl.constexpr,
    WIDE: tl.constexpr, ARRANGED: tl.constexpr, BLOCK: tl.constexpr, SOON: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Program: one row. out = (h + after(sum of the branches)) * scalar, and the norms of out that follow it.

    branches: one or two; TOP_K is 0 for each that is [rows, SIZE], else the number of slots that are weighted and
    summed first. NORMS_OF: which branches have a norm, in branch_norms in this order. befores: the weights of the norms
    of out, `normed` where those go in f32 that are WIDE. ARRANGED: (which norm, group, codes in a unit, parts, whether
    with sums, whether halves, lifted) for each of `values` and `sums`, where norms go in the order of codes.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    place = row * SIZE + columns
    # All weights are fetched together and at first: each would otherwise be waited for by itself.
    branch_scale_0 = vector(branch_norms, 0, columns, inside, NORMS_OF[0])
    branch_scale_1 = vector(branch_norms, len(branches) - 1, columns, inside, NORMS_OF[len(branches) - 1])
    after_scale = vector((after,), 0, columns, inside, HAS_AFTER)
    scale_0 = vector(befores, 0, columns, inside, len(befores) > 0)
    scale_1 = vector(befores, 1, columns, inside, len(befores) > 1)
    scale_2 = vector(befores, 2, columns, inside, len(befores) > 2)
    # So are h, of which the branches were made, and the slots' weights: kernels that have ended wrote them.
    stream = tl.load(h + place, mask=inside, other=0.0)
    slots_0 = _weights_of(ids, weights, n_experts, row, 0, TOP_K[0])
    slots_1 = _weights_of(ids, weights, n_experts, row, len(branches) - 1, TOP_K[len(branches) - 1])
    wait_and_let_begin(SOON, EARLY)
    y = branch_row(branches[0], slots_0, row, columns, inside, SIZE, TOP_K[0])
    if len(branches) == 1:
        if NORMS_OF[0]:
            y = y * norm_factor(y, SIZE, eps) * branch_scale_0
    else:
        other = branch_row(branches[1], slots_1, row, columns, inside, SIZE, TOP_K[1])
        factor_0, factor_1 = norm_factors(y, other, SIZE, eps)
        if NORMS_OF[0]:
            y = y * factor_0 * branch_scale_0
        if NORMS_OF[1]:
            other = other * factor_1 * branch_scale_1
        y += other
    if HAS_AFTER:
        y = y * norm_factor(y, SIZE, eps) * after_scale
    y += stream
    if HAS_SCALAR:
        y *= tl.load(scalar)
    tl.store(out + place, y, mask=inside)
    if len(befores) > 0:
        y *= norm_factor(y, SIZE, eps)
    for norm in tl.static_range(len(befores)):
        x = y * (scale_0 if norm == 0 else scale_1 if norm == 1 else scale_2)
        if WIDE[norm]:
            tl.store(normed[norm] + place, x, mask=inside)
        for index in tl.static_range(len(ARRANGED)):
            if ARRANGED[index][0] == norm:
                if ARRANGED[index][5]:
                    halve_row(
                        x, values[index], sums[index], row, SIZE, ARRANGED[index][1], ARRANGED[index][2],
                        ARRANGED[index][6], BLOCK,
                    )  # fmt: skip
                else:
                    arrange_row(
                        x, values[index], sums[index], 0, row, n_rows, SIZE, ARRANGED[index][1], ARRANGED[index][2],
                        ARRANGED[index][3], ARRANGED[index][4], SIZE, BLOCK,
                    )  # fmt: skip
