"""Small products in a batch: GB groups of codes of BN rows at a time, each group with its own activations.

The compiler divides the groups of a batch among the warps.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.codes import fetched, low_and_high, numbers_of, scale_of
from coterie.backends.cuda.kernels.columns import row_width
from coterie.backends.cuda.kernels.dot import dot, plain_dot


@triton.jit
def _by_group(tile, N: tl.constexpr, GB: tl.constexpr, WIDTH: tl.constexpr):
    """[N, GB * WIDTH] to [GB, N, WIDTH]."""
    return tl.permute(tl.reshape(tile, (N, GB, WIDTH)), (1, 0, 2))


@triton.jit
def _columns_of(
    pointer, row, inside, first, WIDTH: tl.constexpr, ALL: tl.constexpr, GB: tl.constexpr, BN: tl.constexpr
):
    """Columns [GB, BN, WIDTH] of rows of ALL elements, GB groups of WIDTH from group `first` on."""
    column = first * WIDTH + tl.arange(0, GB * WIDTH)
    mask = inside[:, None] & (column < ALL)[None, :]
    tile = tl.load(pointer + row[:, None] * ALL + column[None, :], mask=mask, other=0, eviction_policy="evict_first")
    return _by_group(tile, BN, GB, WIDTH)


@triton.jit
def _bytes(codes, row, inside, first, K: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, GB: tl.constexpr):
    """Numbers [GB, BN, G] of codes that straddle units; codes: uint8."""
    place = (first + tl.arange(0, GB))[:, None, None] * G + tl.arange(0, G)[None, None, :]
    start = codes + row[None, :, None] * row_width(K, "affine", BITS, 1)
    return fetched(start, place, inside[None, :, None] & (place < K), BITS)


@triton.jit
def _packed(
    acc, x, codes, scales, row, inside, first,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr,
    GB: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """acc plus the products with packed weights: the sum of each group, times its scale."""
    group = first + tl.arange(0, GB)
    mask = inside[None, :] & (group < K // G)[:, None]
    scale = scale_of(tl.load(scales + (row[None, :] * (K // G) + group[:, None]), mask=mask, other=0), MODE)
    nothing = tl.zeros((GB, BN, BT), tl.float32)
    if C == 1:
        sums = dot(_bytes(codes, row, inside, first, K, BITS, G, GB), x, nothing)
    else:
        units = _columns_of(codes, row, inside, first, G // C, K // C, GB, BN)
        if MODE == "affine" and BITS == 8:
            low, high = low_and_high(units, GB, BN, G)
            sums = dot(high, x, dot(low, x, nothing))
        else:
            sums = dot(numbers_of(units, GB, BN, G, MODE, BITS), x, nothing)
    return tl.fma(sums, tl.broadcast_to(scale[:, :, None], (GB, BN, BT)), acc)


@triton.jit
def add_products(
    acc, x, codes, scales, row, inside, first,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr,
    GB: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """acc [GB, BN, BT] plus the products of GB groups from group `first` on with x [GB, G, BT].

    codes, scales: of one matrix; row, inside: [BN], which of its rows, and whether they exist.
    """
    if MODE == "plain":
        acc = plain_dot(_columns_of(codes, row, inside, first, G, K, GB, BN), x, acc)
    else:
        acc = _packed(acc, x, codes, scales, row, inside, first, K, MODE, BITS, G, C, GB, BN, BT)
    return acc


@triton.jit
def activations(x, starts, live, first, K: tl.constexpr, G: tl.constexpr, GB: tl.constexpr, BT: tl.constexpr):
    """Activations [GB, G, BT] of GB groups from group `first` on; columns begin at starts [BT], or are not live."""
    k = first * G + tl.arange(0, GB * G)
    tile = tl.load(x + starts[:, None] + k[None, :], mask=live[:, None] & (k < K)[None, :], other=0.0)
    return tl.permute(tl.reshape(tile, (BT, GB, G)), (1, 2, 0))
