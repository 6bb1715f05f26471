"""Small products in a batch: GB groups of codes of BN rows at a time, each group with its own activations.

The compiler divides the groups of a batch among the warps. Every function takes, for each group of the batch, where
its matrix begins (`begin`, rows from the pointer on), which group of the row it is, and whether there is one (`there`).
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.codes import fetched, low_and_high, numbers_of, scale_of
from coterie.backends.cuda.kernels.dot import dot


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
    if weights.dtype.element_ty == tl.bfloat16:
        return dot(tile, x, acc)
    high = tile.to(tl.bfloat16)
    low = (tile.to(tl.float32) - high.to(tl.float32)).to(tl.bfloat16)
    return dot(low, x, dot(high, x, acc))


@triton.jit
def add_products(
    acc, x, x_sums, codes, scales, biases, begin, row, inside, group, there,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr, EXCESS: tl.constexpr,
    GB: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """acc [GB, BN, BT] plus the products of the groups with x [GB, G, BT], whose sums over G are x_sums [GB, BT].

    row, inside: [BN], rows of the matrix and which of them exist.
    """
    mask = there[:, None, None] & inside[None, :, None]
    if MODE == "plain":
        return _plain(acc, x, codes, begin, row, group, mask, K, G)
    place = begin[:, None] * (K // G) + (row[None, :] * (K // G) + group[:, None])
    stored = there[:, None] & inside[None, :]
    scale = scale_of(tl.load(scales + place, mask=stored, other=0), MODE)
    if MODE == "affine":
        constant = tl.load(biases + place, mask=stored, other=0.0).to(tl.float32) - EXCESS * scale
    nothing = tl.zeros((GB, BN, BT), tl.float32)
    if C == 1:
        sums = dot(_bytes(codes, begin, row, group, mask, K, BITS, G), x, nothing)
    elif MODE == "affine" and BITS == 8:
        low, high = low_and_high(_units(codes, begin, row, group, mask, K, C, G), GB, BN, G)
        sums = dot(high, x, dot(low, x, nothing))
    else:
        numbers = numbers_of(_units(codes, begin, row, group, mask, K, C, G), GB, BN, G, MODE, BITS)
        sums = dot(numbers, x, nothing)
    acc = tl.fma(sums, tl.broadcast_to(scale[:, :, None], (GB, BN, BT)), acc)
    if MODE == "affine":
        constant = tl.broadcast_to(constant[:, :, None], (GB, BN, BT))
        acc = tl.fma(constant, tl.broadcast_to(x_sums[:, None, :], (GB, BN, BT)), acc)
    return acc


@triton.jit
def group_sums(sums, starts, live, group, there, G: tl.constexpr, SPAN: tl.constexpr):
    """Sums [GB, BT] of activations over groups, out of sums over runs of SPAN; rows of them begin at starts [GB, BT]."""
    mask = live & there[:, None]
    place = starts + group[:, None] * (G // SPAN)
    total = tl.load(sums + place, mask=mask, other=0.0)
    for run in tl.static_range(1, G // SPAN):
        total += tl.load(sums + place + run, mask=mask, other=0.0)
    return total


@triton.jit
def activations(x, starts, live, group, there, K: tl.constexpr, G: tl.constexpr):
    """Activations [GB, G, BT]; rows of them begin at starts [BT, GB], those that are not live are zeros."""
    k = group[None, :, None] * G + tl.arange(0, G)[None, None, :]
    mask = (live & there[None, :])[:, :, None] & (k < K)
    return tl.permute(tl.load(x + starts[:, :, None] + k, mask=mask, other=0.0), (1, 2, 0))
