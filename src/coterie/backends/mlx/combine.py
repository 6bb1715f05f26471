"""Weighted sums in f32, without the slots that are skipped."""

import mlx.core as mx

from coterie.backends.mlx.metal import combine as metal
from coterie.backends.mlx.metal import launch
from coterie.ops.combine import SKIPPED_BELOW


def weighted_sum(expert_out: mx.array, weights: mx.array) -> mx.array:
    if launch.usable():
        return metal.weighted_sum(expert_out, weights)
    skipped = (mx.abs(weights) < SKIPPED_BELOW)[..., None]
    kept = mx.where(skipped, 0, expert_out.astype(mx.float32))
    return (mx.where(skipped, 0, weights[..., None]) * kept).sum(-2)


def accumulate(accumulator: mx.array, expert_out: mx.array, weight: float | mx.array) -> mx.array:
    factor = mx.array(weight, mx.float32) if isinstance(weight, float) else weight.astype(mx.float32)
    if launch.usable():
        return metal.accumulate(accumulator, expert_out, factor)
    total = accumulator + factor * expert_out.astype(mx.float32)
    return mx.where(mx.abs(factor) < SKIPPED_BELOW, accumulator, total)
