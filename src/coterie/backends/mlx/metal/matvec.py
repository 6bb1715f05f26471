"""Matrix times vector with sums in f32, straight from the dtype that the matrix has."""

import mlx.core as mx

from coterie.backends.mlx.metal import launch, rows

MATVEC = launch.Kernel("matvec", ("matrix", "x"))


def matvec(matrix: mx.array, x: mx.array, dtype: mx.Dtype) -> mx.array:
    grid, threadgroup = rows.simdgroup_rows(matrix.shape[0])
    (out,) = launch.run(
        MATVEC,
        [matrix, x],
        {"T": dtype, "ROWS": rows.ROWS, "SIMDGROUPS": rows.SIMDGROUPS},
        grid=grid,
        threadgroup=threadgroup,
        shapes=[(matrix.shape[0],)],
        dtypes=[dtype],
    )
    return out
