"""Weighted sums in f32, without the slots that are skipped."""

import mlx.core as mx

from coterie.backends.mlx.metal import launch, rows

WEIGHTED_SUM = launch.Kernel("weighted_sum", ("expert_out", "weights"), shared=("skipped",))
ACCUMULATE = launch.Kernel("accumulate", ("accumulator", "expert_out", "weight"), shared=("skipped",))


def weighted_sum(expert_out: mx.array, weights: mx.array) -> mx.array:
    """expert_out [..., k, H] in any float dtype, weights f32 [..., k]; f32 [..., H]."""
    k, width = expert_out.shape[-2:]
    outputs = expert_out.reshape(-1, k, width)
    n_tokens = outputs.shape[0]
    grid, threadgroup = rows.elementwise(width, n_tokens)
    (out,) = launch.run(
        WEIGHTED_SUM,
        [outputs, weights.reshape(-1, k)],
        {"PER_THREAD": rows.PER_THREAD},
        grid=grid,
        threadgroup=threadgroup,
        shapes=[(n_tokens, width)],
        dtypes=[mx.float32],
    )
    return out.reshape(*expert_out.shape[:-2], width)


def accumulate(accumulator: mx.array, expert_out: mx.array, weight: mx.array) -> mx.array:
    """weight: f32 without axes."""
    start = rows.flat(accumulator)
    grid, threadgroup = rows.elementwise(start.shape[1], start.shape[0])
    (out,) = launch.run(
        ACCUMULATE,
        [start, rows.flat(expert_out), weight],
        {"PER_THREAD": rows.PER_THREAD},
        grid=grid,
        threadgroup=threadgroup,
        shapes=[start.shape],
        dtypes=[mx.float32],
    )
    return out.reshape(accumulator.shape)
