"""Many rows times up to three matrices of one format, in one launch: small matrices fill no GPU by themselves."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from coterie.backends.cuda.kernels.hopper.layouts import ROWS
from coterie.backends.cuda.kernels.hopper.rows import as_wide_as_needed
from coterie.backends.cuda.kernels.together import matrix_of

DIVISOR = gl.constexpr(16)
"""Of the rows of each matrix: so the compiler knows that outputs can be stored 16 bytes at a time."""


@gluon.jit(do_not_specialize=["n_rows", "n_rows_2", "n_rows_3"])  # one of several numbers may not be a constant
def half_linear_kernel(
    x, x_sizes, codes, scales, biases, bias, out, n_rows,
    codes_2, scales_2, biases_2, bias_2, out_2, n_rows_2,
    codes_3, scales_3, biases_3, bias_3, out_3, n_rows_3,
    n_inputs,
    K: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    HAS_BIAS: gl.constexpr, TOKENS: gl.constexpr, EARLY: gl.constexpr,
):  # fmt: skip
    """Program: 128 rows of one of the matrices [n_rows, K] times TOKENS rows of x [n_inputs, K], into out
    [n_inputs, n_rows]; x and x_sizes as for `half_rows_kernel`. All matrices have a bias, or none.
    """
    tile_index, codes, scales, biases, bias, out, n_rows, _ = matrix_of(
        gl.program_id(0),
        (codes, scales, biases, bias, out, n_rows, False),
        (codes_2, scales_2, biases_2, bias_2, out_2, n_rows_2, False),
        (codes_3, scales_3, biases_3, bias_3, out_3, n_rows_3, False), ROWS,
    )  # fmt: skip
    matrix = (codes, scales, biases, bias, x_sizes)
    n_rows = n_rows // DIVISOR * DIVISOR
    as_wide_as_needed(
        x, x_sizes, matrix, matrix, tile_index, x, gl.program_id(1) * TOKENS, n_inputs, out, x_sizes, 1, n_rows,
        K, K, MODE, BITS, G, C, 16, 1, False, "", HAS_BIAS, TOKENS, TOKENS, "dense", EARLY,
    )  # fmt: skip
