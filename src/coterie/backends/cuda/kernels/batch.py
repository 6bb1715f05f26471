"""Small products in a batch: GB groups of codes of BN rows at a time, each group with its own activations.

The compiler divides the groups of a batch among the warps. Every function takes, for each group of the batch, which
matrix of the stack it belongs to, which group of a row it is, and whether there is one (`there`); for rows, which they
are and whether they exist (`inside`). n_stored: rows that a matrix of the stack has.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.codes import fetched, low_and_high, number_in, numbers_of, words_at
from coterie.backends.cuda.kernels.columns import row_width
from coterie.backends.cuda.kernels.dot import dot, plain_dot


@triton.jit
def _row_starts(codes, matrix, n_stored, row, W: tl.constexpr):
    """Where the rows of W elements begin: pointers [GB, BN, 1]."""
    return codes + matrix[:, None, None] * n_stored * W + row[None, :, None] * W


@triton.jit
def _units(codes, matrix, n_stored, row, group, mask, K: tl.constexpr, C: tl.constexpr, G: tl.constexpr):
    """Units [GB, BN, G / C] of uint16."""
    unit = group[:, None, None] * (G // C) + tl.arange(0, G // C)[None, None, :]
    start = _row_starts(codes, matrix, n_stored, row, K // C)
    return tl.load(start + unit, mask=mask, other=0, eviction_policy="evict_first")


@triton.jit
def _bytes(codes, matrix, n_stored, row, group, mask, K: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr):
    """Numbers [GB, BN, G] of codes that straddle units; codes: uint8."""
    place = group[:, None, None] * G + tl.arange(0, G)[None, None, :]
    start = _row_starts(codes, matrix, n_stored, row, row_width(K, "affine", BITS, 1))
    return fetched(start, place, mask & (place < K), BITS)


@triton.jit
def _plain(acc, x, weights, matrix, n_stored, row, group, mask, K: tl.constexpr, G: tl.constexpr):
    """acc plus the products with plain weights."""
    k = group[:, None, None] * G + tl.arange(0, G)[None, None, :]
    start = _row_starts(weights, matrix, n_stored, row, K)
    return plain_dot(tl.load(start + k, mask=mask & (k < K), other=0.0, eviction_policy="evict_first"), x, acc)


@triton.jit
def _packed(
    acc, x, x_sums, codes, scales, biases, matrix, n_stored, n_words, row, inside, group, there, mask,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr, EXCESS: tl.constexpr,
    KIND: tl.constexpr, GB: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """acc plus the products with packed weights: the sum of each group, times its scale."""
    stored = there[:, None] & inside[None, :]
    place = (matrix * (K // G) + group)[:, None]
    factor = number_in(words_at(scales, n_words, place, row[None, :], stored, KIND), row[None, :], KIND)
    nothing = tl.zeros((GB, BN, BT), tl.float32)
    if C == 1:
        sums = dot(_bytes(codes, matrix, n_stored, row, group, mask, K, BITS, G), x, nothing)
    elif MODE == "affine" and BITS == 8:
        low, high = low_and_high(_units(codes, matrix, n_stored, row, group, mask, K, C, G), GB, BN, G)
        sums = dot(high, x, dot(low, x, nothing))
    else:
        numbers = numbers_of(_units(codes, matrix, n_stored, row, group, mask, K, C, G), GB, BN, G, MODE, BITS)
        sums = dot(numbers, x, nothing)
    acc = tl.fma(sums, tl.broadcast_to(factor[:, :, None], (GB, BN, BT)), acc)
    if MODE == "affine":
        bias = number_in(words_at(biases, n_words, place, row[None, :], stored, KIND), row[None, :], KIND)
        constant = bias - EXCESS * factor
        acc = tl.fma(x_sums, tl.broadcast_to(constant[:, :, None], (GB, BN, BT)), acc)
    return acc


@triton.jit
def add_products(
    acc, x, x_sums, codes, scales, biases, matrix, n_stored, n_words, row, inside, group, there,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr, EXCESS: tl.constexpr,
    KIND: tl.constexpr, GB: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """acc [GB, BN, BT] plus the products of the groups with x [GB, G, BT].

    x_sums: [GB, BN, BT], the sums of x over G.
    """
    mask = there[:, None, None] & inside[None, :, None]
    if MODE == "plain":
        acc = _plain(acc, x, codes, matrix, n_stored, row, group, mask, K, G)
    else:
        acc = _packed(
            acc, x, x_sums, codes, scales, biases, matrix, n_stored, n_words, row, inside, group, there, mask,
            K, MODE, BITS, G, C, EXCESS, KIND, GB, BN, BT,
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
