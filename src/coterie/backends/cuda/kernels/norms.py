"""RMS norm (Zhang and Sennrich, 2019) of rows, alone or between the branches of a layer and the residual stream.

A program has a whole row in its registers, so every number is read once; the norms' weights are there before the row.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit
def norm_factor(x, size, eps):
    """1 / sqrt(mean(x^2) + eps) of a row whose places beyond `size` are 0."""
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(tl.sum(x * x, 0), size.to(tl.float32)) + eps))


@triton.jit
def vector(weight, columns, inside, WANTED: tl.constexpr):
    """A vector of weights, or zeros where there is none."""
    if WANTED:
        return tl.load(weight + columns, mask=inside, other=0.0)
    return tl.zeros_like(columns).to(tl.float32)


@triton.jit
def rms_norm_kernel(
    x, weight, out, size, x_stride, eps, HAS_WEIGHT: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr
):
    """Program: one row of x, whose rows are x_stride apart; those of out follow each other."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    scale = vector(weight, columns, inside, HAS_WEIGHT)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    values = tl.load(x + row * x_stride + columns, mask=inside, other=0.0)
    values *= norm_factor(values, size, eps)
    if HAS_WEIGHT:
        values *= scale
    tl.store(out + row * size + columns, values, mask=inside)


@triton.jit
def add_norms_kernel(
    h,
    branch_0,
    branch_1,
    branch_norm_0,
    branch_norm_1,
    after,
    scalar,
    out,
    before_0,
    before_1,
    before_2,
    normed_0,
    normed_1,
    normed_2,
    size,
    eps,
    N_BRANCHES: tl.constexpr,
    HAS_BRANCH_NORM_0: tl.constexpr,
    HAS_BRANCH_NORM_1: tl.constexpr,
    HAS_AFTER: tl.constexpr,
    HAS_SCALAR: tl.constexpr,
    N_BEFORES: tl.constexpr,
    BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):
    """Program: one row. out = (h + after(sum of the normed branches)) * scalar, and the norms of out that follow it."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    place = row * size + columns
    branch_scale_0 = vector(branch_norm_0, columns, inside, HAS_BRANCH_NORM_0)
    branch_scale_1 = vector(branch_norm_1, columns, inside, HAS_BRANCH_NORM_1)
    after_scale = vector(after, columns, inside, HAS_AFTER)
    scale_0 = vector(before_0, columns, inside, N_BEFORES > 0)
    scale_1 = vector(before_1, columns, inside, N_BEFORES > 1)
    scale_2 = vector(before_2, columns, inside, N_BEFORES > 2)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    stream = tl.load(h + place, mask=inside, other=0.0)
    y = tl.load(branch_0 + place, mask=inside, other=0.0)
    if HAS_BRANCH_NORM_0:
        y = y * norm_factor(y, size, eps) * branch_scale_0
    if N_BRANCHES == 2:
        other = tl.load(branch_1 + place, mask=inside, other=0.0)
        if HAS_BRANCH_NORM_1:
            other = other * norm_factor(other, size, eps) * branch_scale_1
        y += other
    if HAS_AFTER:
        y = y * norm_factor(y, size, eps) * after_scale
    y += stream
    if HAS_SCALAR:
        y *= tl.load(scalar)
    tl.store(out + place, y, mask=inside)
    if N_BEFORES > 0:
        y *= norm_factor(y, size, eps)
        tl.store(normed_0 + place, y * scale_0, mask=inside)
    if N_BEFORES > 1:
        tl.store(normed_1 + place, y * scale_1, mask=inside)
    if N_BEFORES > 2:
        tl.store(normed_2 + place, y * scale_2, mask=inside)
