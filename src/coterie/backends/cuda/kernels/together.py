"""Which of several matrices, multiplied in one launch, a program has."""

import triton
import triton.language as tl


@triton.jit
def matrix_of(tile_index, first, second, third, BN: tl.constexpr):
    """(tile of its matrix, codes, scales, biases, bias, out, n_rows, whether there is a bias) of a program.

    first, second, third: the last seven of these of each matrix; a matrix has a program for each BN of its n_rows.
    """
    codes, scales, biases, bias, out, n_rows, has_bias = first
    n_tiles, n_tiles_2 = tl.cdiv(first[5], BN), tl.cdiv(second[5], BN)
    if tile_index >= n_tiles + n_tiles_2:
        tile_index -= n_tiles + n_tiles_2
        codes, scales, biases, bias, out, n_rows, has_bias = third
    elif tile_index >= n_tiles:
        tile_index -= n_tiles
        codes, scales, biases, bias, out, n_rows, has_bias = second
    return tile_index, codes, scales, biases, bias, out, n_rows, has_bias
