"""Up to eight rows times up to three matrices of one format, in one launch."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from coterie.backends.cuda.kernels.single.layouts import COLUMNS, ROWS, sums
from coterie.backends.cuda.kernels.single.products import finished, multiply, read_columns, read_rows
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
    PARTS: gl.constexpr, WARPS: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """ROWS rows of one of the matrices times COLUMNS / PARTS rows of x. The arguments are those of `linear_kernel`."""
    R: gl.constexpr = COLUMNS // PARTS
    tile_index, codes, scales, biases, bias, out, n_rows, has_bias = matrix_of(
        gl.program_id(0),
        (codes, scales, biases, bias, out, n_rows, HAS_BIAS),
        (codes_2, scales_2, biases_2, bias_2, out_2, n_rows_2, HAS_BIAS_2),
        (codes_3, scales_3, biases_3, bias_3, out_3, n_rows_3, HAS_BIAS_3), ROWS,
    )  # fmt: skip
    first_row = tile_index * ROWS
    # Weights are nobody's results: they are on their way before the activations are there.
    there = (codes, scales, biases)
    matrix = read_rows(there, there, first_row, n_rows - 1, K, MODE, G, C, False, WARPS)
    OF_COLUMNS: gl.constexpr = gl.SliceLayout(0, sums(WARPS))
    OF_ROWS: gl.constexpr = gl.SliceLayout(1, sums(WARPS))
    row = first_row + gl.arange(0, ROWS, layout=OF_ROWS)
    added = gl.load(bias + row, mask=(row < n_rows) & has_bias, other=0.0)
    wait_for_previous(EARLY)
    let_next_begin(EARLY)
    first = gl.program_id(1) * R
    input_row = first + gl.arange(0, COLUMNS, layout=OF_COLUMNS) % R
    columns = read_columns(x, input_row, input_row < n_inputs, n_inputs, K, G, C, PARTS, WARPS)
    result = finished(multiply(matrix, columns, K, MODE, BITS, G, WARPS), PARTS, WARPS) + added[:, None]
    out_row = first + gl.arange(0, R, layout=OF_COLUMNS)
    target = out + out_row.to(gl.int64)[None, :] * n_rows + row[:, None]
    gl.store(target, result.to(out.dtype.element_ty), mask=(row < n_rows)[:, None] & (out_row < n_inputs)[None, :])
