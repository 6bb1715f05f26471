"""A few rows times up to three matrices of one format, in one launch."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from coterie.backends.cuda.kernels.single.layouts import COLUMNS, ROWS, columns_of, results
from coterie.backends.cuda.kernels.single.products import add_up, multiply_rows, share
from coterie.backends.cuda.kernels.single.weights import fetch_rows, keep_rows
from coterie.backends.cuda.kernels.together import matrix_of
from coterie.backends.cuda.launch import let_next_begin, wait_for_previous


@gluon.jit(do_not_specialize=["n_rows", "n_rows_2", "n_rows_3"])  # one of several numbers may not be a constant
def single_linear_kernel(
    x, codes, scales, biases, bias, out, n_rows,
    codes_2, scales_2, biases_2, bias_2, out_2, n_rows_2,
    codes_3, scales_3, biases_3, bias_3, out_3, n_rows_3,
    n_inputs,
    K: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    HAS_BIAS: gl.constexpr, HAS_BIAS_2: gl.constexpr, HAS_BIAS_3: gl.constexpr,
    PARTS: gl.constexpr, TILES: gl.constexpr, BLOCKS: gl.constexpr, WARPS: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """TILES times ROWS rows of one of the matrices times BLOCKS times COLUMNS / PARTS rows of x. The arguments are
    those of `linear_kernel`.
    """
    R: gl.constexpr = COLUMNS // PARTS
    tile_index, codes, scales, biases, bias, out, n_rows, has_bias = matrix_of(
        gl.program_id(0),
        (codes, scales, biases, bias, out, n_rows, HAS_BIAS),
        (codes_2, scales_2, biases_2, bias_2, out_2, n_rows_2, HAS_BIAS_2),
        (codes_3, scales_3, biases_3, bias_3, out_3, n_rows_3, HAS_BIAS_3), ROWS * TILES,
    )  # fmt: skip
    first_row = tile_index * (ROWS * TILES)
    first = gl.program_id(1) * (R * BLOCKS)
    # Weights are nobody's results: they are on their way before the activations are there.
    there = (codes, scales, biases)
    fetched = fetch_rows(there, there, first_row, n_rows - 1, TILES, K, K, MODE, G, C, False, WARPS)
    L: gl.constexpr = results(PARTS, WARPS, WARPS)
    row = first_row + gl.arange(0, ROWS * TILES, layout=gl.SliceLayout(1, L))
    added = gl.load(bias + row, mask=(row < n_rows) & has_bias, other=0.0)
    inputs = ()
    for block in gl.static_range(BLOCKS):
        place = first + block * R + gl.arange(0, COLUMNS, layout=columns_of(G, WARPS)) % R
        inputs += (gl.minimum(place, n_inputs - 1),)
    rows = keep_rows(fetched, TILES, MODE, BITS)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    sums = multiply_rows(rows, x, (), inputs, n_inputs, K, K, MODE, BITS, G, C, True, PARTS, 1, WARPS)
    for block in gl.static_range(BLOCKS):
        result = add_up(share(sums, block, False, PARTS, WARPS), 0, ROWS * TILES, PARTS, WARPS) + added[:, None]
        out_row = first + block * R + gl.arange(0, R, layout=gl.SliceLayout(0, L))
        target = out + out_row.to(gl.int64)[None, :] * n_rows + row[:, None]
        mask = (row < n_rows)[:, None] & (out_row < n_inputs)[None, :]
        gl.store(target, result.to(out.dtype.element_ty), mask=mask)
