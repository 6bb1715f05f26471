"""4-bit weights as bfloat16 numbers, scale and bias included, for products with so many rows that these decide.

A group's sum then needs no scale of its own, sums of several groups are one, and no constants are left to take back. A
weight of mxfp4 is exact as such a number; an affine one, scale * code + bias, is rounded once.
"""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.codes import e2m1_times, nibbles_times, numbers_of, scale_of
from coterie.backends.cuda.kernels.dot import dot
from coterie.backends.cuda.launch import SPEAKS_PTX


@triton.constexpr_function
def groups_in_step(group):
    """Groups that a step takes: at least 64 columns."""
    return max(1, 64 // group)


@triton.jit
def _factors(stored, row, inside, first, J: tl.constexpr, K: tl.constexpr, G: tl.constexpr):
    """Stored scales or biases [BN, J] of the groups from `first` on."""
    group = first + tl.arange(0, J)
    mask = inside[:, None] & (group < K // G)[None, :]
    return tl.load(stored + row[:, None] * (K // G) + group[None, :], mask=mask, other=0)


@triton.jit
def _weights(
    codes, scales, biases, row, inside, first,
    K: tl.constexpr, MODE: tl.constexpr, G: tl.constexpr, EXCESS: tl.constexpr, J: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Weights [BN, J * G] of the groups from `first` on, their columns in the order of codes."""
    U: tl.constexpr = G // 4
    unit = first * U + tl.arange(0, J * U)
    mask = inside[:, None] & (unit < K // 4)[None, :]
    q = tl.reshape(tl.load(codes + row[:, None] * (K // 4) + unit[None, :], mask=mask, other=0), (BN, J, U))
    scale = scale_of(_factors(scales, row, inside, first, J, K, G), MODE)[:, :, None]
    if SPEAKS_PTX:
        factor = tl.broadcast_to(scale.to(tl.bfloat16), (BN, J, U))
        if MODE == "affine":
            bias = _factors(biases, row, inside, first, J, K, G).to(tl.bfloat16)
            weights = nibbles_times(q, factor, tl.broadcast_to(bias[:, :, None], (BN, J, U)), BN, J, G)
        else:
            weights = e2m1_times(q, factor, BN, J, G)
    else:
        numbers = numbers_of(q, BN, J, G, MODE, 4).to(tl.float32) - EXCESS
        values = numbers * tl.broadcast_to(scale, (BN, J, G))
        if MODE == "affine":
            bias = _factors(biases, row, inside, first, J, K, G).to(tl.float32)
            values += tl.broadcast_to(bias[:, :, None], (BN, J, G))
        weights = values.to(tl.bfloat16)
    return tl.reshape(weights, (BN, J * G))


@triton.jit
def scaled_products(
    x, starts, codes, scales, biases, up_codes, up_scales, up_biases, row, inside,
    K: tl.constexpr, MODE: tl.constexpr, G: tl.constexpr, EXCESS: tl.constexpr,
    GATED: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Products [BN, BT] of rows of one matrix, or of two, with activations from `starts` [BT] on in x."""
    J: tl.constexpr = groups_in_step(G)
    acc = tl.zeros((BN, BT), tl.float32)
    up_acc = tl.zeros((BN, BT), tl.float32)
    for first in tl.range(0, K // G, J, num_stages=STAGES):
        k = first * G + tl.arange(0, J * G)
        if K % (J * G) == 0:
            tile = tl.load(x + starts[None, :] + k[:, None])
        else:
            tile = tl.load(x + starts[None, :] + k[:, None], mask=(k < K)[:, None], other=0.0)
        acc = dot(_weights(codes, scales, biases, row, inside, first, K, MODE, G, EXCESS, J, BN), tile, acc)
        if GATED:
            up = _weights(up_codes, up_scales, up_biases, row, inside, first, K, MODE, G, EXCESS, J, BN)
            up_acc = dot(up, tile, up_acc)
    return acc, up_acc
