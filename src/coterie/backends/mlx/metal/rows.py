"""How elements and rows of results are divided among threads."""

import mlx.core as mx

PER_THREAD = 4
"""Elements of a thread, where a thread works alone."""

ROWS = 4
"""Rows of a simdgroup, where 32 lanes add up: what they load of the other operand serves all of them."""

SIMDGROUPS = 2
"""Simdgroups of a threadgroup. They share nothing. ROWS * SIMDGROUPS must divide 16, the shortest group of a
format: the kernels of the experts leave no row over and do not look for one.
"""

LANES = 32
_THREADS = 256


def flat(array: mx.array) -> mx.array:
    """The array as [rows, columns]. One long axis would not do: MLX's lengths have 32 bits."""
    return array.reshape(-1, array.shape[-1] if array.ndim else 1)


def elementwise(n_columns: int, n_rows: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Grid and threadgroup for PER_THREAD columns a thread."""
    across = -(-n_columns // PER_THREAD)
    width = min(across, _THREADS)
    return (across, n_rows), (width, _THREADS // width)


def simdgroup_rows(n_rows: int, n_times: int = 1) -> tuple[tuple[int, int], tuple[int, int]]:
    """Grid and threadgroup for ROWS rows a simdgroup, n_times over; whole simdgroups only."""
    threads = LANES * SIMDGROUPS
    return (threads * -(-n_rows // (ROWS * SIMDGROUPS)), n_times), (threads, 1)


def simdgroup_each(n: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Grid and threadgroup for one simdgroup, alone in its threadgroup, for each of n."""
    return (LANES * n, 1), (LANES, 1)
