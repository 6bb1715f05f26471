"""What affine biases, and the constants in which codes were hidden, add to products: a small product of its own.

A weight is scale * (number - EXCESS) + bias, so a group adds (bias - EXCESS * scale) * sum(x) to what the numbers give.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.dot import dot
from coterie.backends.cuda.launch import SPEAKS_PTX


@triton.constexpr_function
def groups_together(n_groups):
    """Groups of a row whose constants are multiplied at a time: a power of two from 16 to 64."""
    return 16 if n_groups <= 16 else 32 if n_groups <= 32 else 64


@triton.jit
def _product_of_f32(a, b, acc, EXACT: tl.constexpr):
    """acc + a @ b of f32 tiles: to 16 digits of each, or, EXACT, to all of them."""
    if EXACT:
        acc = tl.dot(a, b, acc, input_precision="tf32x3" if SPEAKS_PTX else "ieee")
    else:
        a_high, b_high = a.to(tl.bfloat16), b.to(tl.bfloat16)
        a_low = (a - a_high.to(tl.float32)).to(tl.bfloat16)
        b_low = (b - b_high.to(tl.float32)).to(tl.bfloat16)
        acc = dot(a_low, b_high, dot(a_high, b_low, dot(a_high, b_high, acc)))
    return acc


@triton.jit
def _added(scale, bias, sums, total, EXCESS: tl.constexpr, EXACT: tl.constexpr):
    """total [BN, BT] plus (bias - EXCESS * scale) @ sums. Scales and biases that are bfloat16 already are multiplied as
    they are: to round their difference costs more than the matrix units have with a product more.
    """
    if EXACT or scale.dtype != tl.bfloat16:
        total = _product_of_f32(bias.to(tl.float32) - EXCESS * scale.to(tl.float32), sums, total, EXACT)
    else:
        high = sums.to(tl.bfloat16)
        low = (sums - high.to(tl.float32)).to(tl.bfloat16)
        total = dot(bias, low, dot(bias, high, total))
        total -= EXCESS * dot(scale, low, dot(scale, high, tl.zeros_like(total)))
    return total


@triton.jit
def sums_at(
    x_sums, starts, live, first, K: tl.constexpr, G: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """Sums of activations [NG, BT] over the groups from group `first` on, of columns from starts [BT] on."""
    group = first + tl.arange(0, groups_together(K // G))
    runs = starts[None, :] + group[:, None] * (G // SPAN)
    seen = live[None, :] & (group < K // G)[:, None]
    sums = tl.load(x_sums + runs, mask=seen, other=0.0)
    for run in tl.static_range(1, G // SPAN):
        sums += tl.load(x_sums + runs + run, mask=seen, other=0.0)
    return sums


@triton.jit
def add_constants(
    total, sums, scales, biases, row, inside, first,
    K: tl.constexpr, G: tl.constexpr, EXCESS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """total [BN, BT] plus the constants of the groups that `sums` are of, in rows [BN] of a matrix [N, K / G]."""
    group = first + tl.arange(0, groups_together(K // G))
    mask = inside[:, None] & (group < K // G)[None, :]
    place = row[:, None] * (K // G) + group[None, :]
    scale = tl.load(scales + place, mask=mask, other=0.0)
    bias = tl.load(biases + place, mask=mask, other=0.0)
    return _added(scale, bias, sums, total, EXCESS, EXACT)


@triton.jit
def constants(
    x_sums, starts, live, scales, biases, row, inside,
    K: tl.constexpr, G: tl.constexpr, EXCESS: tl.constexpr, SPAN: tl.constexpr, EXACT: tl.constexpr,
    BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """The sum over the groups of rows of K codes of (bias - EXCESS * scale) * sum(x): [BN, BT].

    x_sums: sums of activations over runs of SPAN, those of a column from starts [BT] on; live: [BT]. scales, biases: a
    matrix [N, K / G]; row, inside: [BN].
    """
    total = tl.zeros((BN, BT), tl.float32)
    for first in tl.range(0, K // G, groups_together(K // G)):
        sums = sums_at(x_sums, starts, live, first, K, G, SPAN)
        total = add_constants(total, sums, scales, biases, row, inside, first, K, G, EXCESS, EXACT)
    return total
