"""Products of a few rows with up to three matrices of one format, in one launch."""

import triton
import triton.language as tl

from coterie.backends.cuda.kernels.ahead import fetch_rows
from coterie.backends.cuda.kernels.batch import activations, add_products
from coterie.backends.cuda.kernels.columns import each_part, parts_added, starts_of
from coterie.backends.cuda.kernels.constants import constants
from coterie.backends.cuda.kernels.together import matrix_of
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@triton.jit(do_not_specialize=["n_rows", "n_rows_2", "n_rows_3"])  # one of several numbers may not be a constant
def linear_kernel(
    x, x_sums, codes, scales, biases, bias, out, n_rows,
    codes_2, scales_2, biases_2, bias_2, out_2, n_rows_2,
    codes_3, scales_3, biases_3, bias_3, out_3, n_rows_3,
    n_inputs,
    K: tl.constexpr, MODE: tl.constexpr, BITS: tl.constexpr, G: tl.constexpr, C: tl.constexpr, EXCESS: tl.constexpr,
    SPAN: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_BIAS_2: tl.constexpr, HAS_BIAS_3: tl.constexpr,
    BN: tl.constexpr, R: tl.constexpr, PARTS: tl.constexpr, GB: tl.constexpr, STEPS: tl.constexpr,
    STAGES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """BN rows of one of the matrices times R rows of x: out [n_inputs, n_rows] = x @ matrix.T + bias, out_2, out_3.

    x: bfloat16 [PARTS, n_inputs, K] in the order of codes, x_sums f32 [PARTS, n_inputs, K / SPAN]; n_rows_2, n_rows_3
    are 0 where there is no such matrix.
    """
    BT: tl.constexpr = R * PARTS
    tile_index, codes, scales, biases, bias, out, n_rows, has_bias = matrix_of(
        tl.program_id(0),
        (codes, scales, biases, bias, out, n_rows, HAS_BIAS),
        (codes_2, scales_2, biases_2, bias_2, out_2, n_rows_2, HAS_BIAS_2),
        (codes_3, scales_3, biases_3, bias_3, out_3, n_rows_3, HAS_BIAS_3), BN,
    )  # fmt: skip
    row = tile_index * BN + tl.arange(0, BN)
    inside = row < n_rows
    if EARLY:
        fetch_rows(codes, scales, biases, tile_index * BN, n_rows, K, MODE, BITS, G, C, BN)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    input_row = tl.program_id(1) * R + tl.arange(0, R)
    live = input_row < n_inputs
    starts = starts_of(input_row, K, n_inputs, PARTS, R)
    columns = each_part(live, PARTS, R)
    acc = tl.zeros((GB, BN, BT), tl.float32)
    for first in tl.range(0, tl.cdiv(K, G), GB * STEPS, num_stages=STAGES):
        for step in tl.static_range(STEPS):
            group = first + step * GB
            tile = activations(x, starts, columns, group, K, G, GB, BT)
            acc = add_products(acc, tile, codes, scales, row, inside, group, K, MODE, BITS, G, C, GB, BN, BT)
    total = tl.sum(acc, 0)
    if MODE == "affine":
        total += constants(
            x_sums, starts // SPAN, columns, scales, biases, row, inside, K, G, EXCESS, SPAN, PARTS > 1, BN, BT
        )
    result = parts_added(total, BN, PARTS, R)
    result += tl.load(bias + row, mask=inside & has_bias, other=0.0)[:, None]
    target = out + input_row.to(tl.int64)[None, :] * n_rows + row[:, None]
    tl.store(target, result.to(out.dtype.element_ty), mask=inside[:, None] & live[None, :])
