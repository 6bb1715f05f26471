"""The product of ROWS rows of a matrix with a few columns of activations, all of it in registers."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from coterie.backends.cuda.kernels.codes import scale_of
from coterie.backends.cuda.kernels.single.layouts import COLUMNS, ROWS, columns_read, left, products, sums
from coterie.backends.cuda.kernels.single.numbers import (
    beside_numbers,
    by_group,
    excess,
    groups_in,
    numbers,
    read_constants,
    read_units,
    runs_of,
)


@gluon.jit
def _read_run(
    matrix, other, first_row, last_row, K: gl.constexpr, MODE: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    PAIRED: gl.constexpr, BEGIN: gl.constexpr, HELD: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """(units, scales, biases) of HELD groups."""
    NG: gl.constexpr = K // G
    units = read_units(matrix[0], other[0], first_row, last_row, NG, G // C, PAIRED, BEGIN, HELD, WARPS)
    scale = read_constants(matrix[1], other[1], first_row, last_row, NG, PAIRED, BEGIN, HELD, WARPS)
    bias = scale
    if MODE == "affine":
        bias = read_constants(matrix[2], other[2], first_row, last_row, NG, PAIRED, BEGIN, HELD, WARPS)
    return units, scale, bias


@gluon.jit
def read_rows(
    matrix, other, first_row, last_row, K: gl.constexpr, MODE: gl.constexpr, G: gl.constexpr, C: gl.constexpr,
    PAIRED: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """What `multiply` takes of the rows of `starts` of matrices whose (codes, scales, biases) begin at `matrix` and
    `other`: all of their memory is asked for at once.
    """
    RUNS: gl.constexpr = runs_of(K // G, WARPS)
    one = _read_run(matrix, other, first_row, last_row, K, MODE, G, C, PAIRED, 0, RUNS[0], WARPS)
    two = one
    if RUNS[1] > 0:
        two = _read_run(matrix, other, first_row, last_row, K, MODE, G, C, PAIRED, RUNS[0], RUNS[1], WARPS)
    return one, two


@gluon.jit
def _read_columns(
    x, rows, live, n_inputs, K: gl.constexpr, G: gl.constexpr, C: gl.constexpr, PARTS: gl.constexpr,
    BEGIN: gl.constexpr, HELD: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Activations bfloat16 [HELD, G, COLUMNS] of groups from group BEGIN on."""
    U: gl.constexpr = G // C
    L: gl.constexpr = columns_read(HELD, G, U, WARPS)
    OF_COLUMNS: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, L))
    part = gl.arange(0, COLUMNS, layout=OF_COLUMNS) // (COLUMNS // PARTS)
    start = (part.to(gl.int64) * n_inputs + gl.convert_layout(rows, OF_COLUMNS)) * K
    mask = gl.convert_layout(live, OF_COLUMNS)[None, None, :]
    first, group = groups_in(HELD, 1, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, L)))
    k = gl.arange(0, G, layout=gl.SliceLayout(0, gl.SliceLayout(2, L)))
    near = x + start[None, None, :] + (first * G)[:, None, None] + k[None, :, None]
    if BEGIN + HELD > K // G:
        mask = mask & (first + group < K // G - BEGIN)[:, None, None]
    return beside_numbers(gl.load(near + ((BEGIN + group) * G)[:, None, None], mask=mask, other=0.0), U, WARPS)


@gluon.jit
def read_columns(
    x, rows, live, n_inputs, K: gl.constexpr, G: gl.constexpr, C: gl.constexpr, PARTS: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """What `multiply` takes of x bfloat16 [PARTS, n_inputs, K]: `rows` [COLUMNS], the first COLUMNS / PARTS of them of
    the first part and so on; zeros where a column is not live.
    """
    RUNS: gl.constexpr = runs_of(K // G, WARPS)
    one = _read_columns(x, rows, live, n_inputs, K, G, C, PARTS, 0, RUNS[0], WARPS)
    two = one
    if RUNS[1] > 0:
        two = _read_columns(x, rows, live, n_inputs, K, G, C, PARTS, RUNS[0], RUNS[1], WARPS)
    return one, two


@gluon.jit
def multiply_run(matrix, columns, MODE: gl.constexpr, BITS: gl.constexpr, WARPS: gl.constexpr):
    """Products f32 [WARPS, ROWS, COLUMNS] over the groups that each warp has of a run. A group's sum of number times
    activation meets its scale in f32, and its sum of activations its bias.
    """
    units, scale, bias = matrix
    HELD: gl.constexpr = units.shape[0]
    nothing = gl.zeros([HELD, ROWS, COLUMNS], gl.float32, products(WARPS))
    found = mma_v2(numbers(units, MODE, BITS, WARPS), columns, nothing)
    scale = scale_of(scale, MODE)
    found *= by_group(scale, WARPS)
    if MODE == "affine":
        ones = gl.full([HELD, ROWS, columns.shape[1]], 1.0, gl.bfloat16, left(WARPS))
        constant = bias.to(gl.float32) - excess(MODE, BITS) * scale
        shape: gl.constexpr = (HELD, ROWS, COLUMNS)
        found = gl.fma(mma_v2(ones, columns, nothing), by_group(constant, WARPS).broadcast_to(shape), found)
    own = gl.sum(gl.reshape(found, (HELD // WARPS, WARPS, ROWS, COLUMNS)), 0)
    return gl.convert_layout(own, products(WARPS), assert_trivial=True)


@gluon.jit
def multiply(
    matrix, columns, K: gl.constexpr, MODE: gl.constexpr, BITS: gl.constexpr, G: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """What `read_rows` gives times what `read_columns` gives: f32 [WARPS, ROWS, COLUMNS], to be `finished`."""
    RUNS: gl.constexpr = runs_of(K // G, WARPS)
    total = multiply_run(matrix[0], columns[0], MODE, BITS, WARPS)
    if RUNS[1] > 0:
        total += multiply_run(matrix[1], columns[1], MODE, BITS, WARPS)
    return total


@gluon.jit
def finished(total, PARTS: gl.constexpr, WARPS: gl.constexpr):
    """Products of all warps f32 [WARPS, ROWS, COLUMNS], those of the parts too, added up: [ROWS, COLUMNS / PARTS]."""
    total = gl.sum(total, 0)
    if PARTS > 1:
        total = gl.sum(gl.reshape(total, (ROWS, PARTS, COLUMNS // PARTS)), 1)
    return gl.convert_layout(total, sums(WARPS))
