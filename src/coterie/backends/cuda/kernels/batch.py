"""Small products in a batch: GB groups of codes of BN rows at a time, each group with its own activations.

The compiler divides the groups of a batch among the warps. Every function takes, for each group of the batch, where
its matrix begins (`begin`, rows from the pointer on), which group of the row it is, and whether there is one (`there`).
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.codes import bits_at, fetched, low_and_high, number_of, numbers_of
from coterie.backends.cuda.kernels.dot import dot, plain_dot


@triton.jit
def _units(codes, begin, row, group, mask, K: tl.constexpr, C: tl.constexpr, G: tl.constexpr):
    """Units [GB, BN, G / C] of uint16."""
    unit = group[:, None, None] * (G // C) + tl.arange(0, G // C)[None, None, :]
    start = codes + begin[:, None, None] * (K // C)
    return tl.load(start + (row[None, :, None] * (K // C) + unit), mask=mask, other=0, eviction_policy="evict_first")


@triton.jit
def _bytes(codes, begin, row, group, mask, K: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr):
    """Numbers [GB, BN, G] of codes that straddle units; codes: uint8."""
    place = group[:, None, None] * G + tl.arange(0, G)[None, None, :]
    start = codes + begin[:, None, None] * (K // 8 * BITS)
    return fetched(start + row[None, :, None] * (K // 8 * BITS), place, mask & (place < K), BITS)


@triton.jit
def _plain(acc, x, weights, begin, row, group, mask, K: tl.constexpr, G: tl.constexpr):
    """acc plus the products with plain weights; those of more digits than bfloat16 has go in two parts."""
    k = group[:, None, None] * G + tl.arange(0, G)[None, None, :]
    start = weights + begin[:, None, None] * K + row[None, :, None] * K
    tile = tl.load(start + k, mask=mask & (k < K), other=0.0, eviction_policy="evict_first")
    return plain_dot(tile, x, acc)


@triton.jit
def scale_bits(
    scales, biases, n_stored, begin, row, inside, group, there, K: tl.constexpr, MODE: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """The bits of the scales and of the biases [GB, BN] of the groups; zeros where the format has none."""
    scale = group[:, None] * 0 + row[None, :] * 0
    bias = scale
    place = begin[:, None] * (K // G) + (group[:, None] * n_stored + row[None, :])
    mask = there[:, None] & inside[None, :]
    if MODE != "plain":
        scale = bits_at(scales + place, mask)
    if MODE == "affine":
        bias = bits_at(biases + place, mask)
    return scale, bias


@triton.jit
def _packed(
    acc, x, x_sums, codes, scale, bias, begin, row, group, mask,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr, EXCESS: tl.constexpr,
    TYPE: tl.constexpr, GB: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """acc plus the products with packed weights: the sum of each group, times its scale."""
    nothing = tl.zeros((GB, BN, BT), tl.float32)
    if C == 1:
        sums = dot(_bytes(codes, begin, row, group, mask, K, BITS, G), x, nothing)
    elif MODE == "affine" and BITS == 8:
        low, high = low_and_high(_units(codes, begin, row, group, mask, K, C, G), GB, BN, G)
        sums = dot(high, x, dot(low, x, nothing))
    else:
        numbers = numbers_of(_units(codes, begin, row, group, mask, K, C, G), GB, BN, G, MODE, BITS)
        sums = dot(numbers, x, nothing)
    factor = number_of(scale, TYPE, MODE)
    acc = tl.fma(sums, tl.broadcast_to(factor[:, :, None], (GB, BN, BT)), acc)
    if MODE == "affine":
        constant = number_of(bias, TYPE, MODE) - EXCESS * factor
        acc = tl.fma(x_sums, tl.broadcast_to(constant[:, :, None], (GB, BN, BT)), acc)
    return acc


@triton.jit
def add_products(
    acc, x, x_sums, codes, scale, bias, begin, row, inside, group, there,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr, EXCESS: tl.constexpr,
    TYPE: tl.constexpr, GB: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """acc [GB, BN, BT] plus the products of the groups with x [GB, G, BT], whose sums over G are x_sums [GB, BN, BT].

    row, inside: [BN], rows of the matrix and which of them exist. scale, bias: `scale_bits`, of floats of the TYPE.
    """
    mask = there[:, None, None] & inside[None, :, None]
    if MODE == "plain":
        acc = _plain(acc, x, codes, begin, row, group, mask, K, G)
    else:
        acc = _packed(
            acc, x, x_sums, codes, scale, bias, begin, row, group, mask, K, MODE, BITS, G, C, EXCESS, TYPE, GB, BN,
            BT,
        )  # fmt: skip
    return acc


@triton.jit
def sums_of(x, MODE: tl.constexpr, GB: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, G: tl.constexpr):
    """The sums over G of x [GB, G, BT], for every row alike, [GB, BN, BT]: a product with ones costs less than sums do.

    Only affine codes need them.
    """
    sums = tl.zeros((GB, BN, BT), tl.float32)
    if MODE == "affine":
        sums = dot(tl.full((GB, BN, G), 1.0, tl.bfloat16), x, sums)
    return sums


@triton.jit
def activations(x, starts, live, group, there, K: tl.constexpr, G: tl.constexpr):
    """Activations [GB, G, BT]; rows of them begin at starts [BT, GB], those that are not live are zeros."""
    k = group[None, :, None] * G + tl.arange(0, G)[None, None, :]
    mask = (live & there[None, :])[:, :, None] & (k < K)
    return tl.permute(tl.load(x + starts[:, :, None] + k, mask=mask, other=0.0), (1, 2, 0))
