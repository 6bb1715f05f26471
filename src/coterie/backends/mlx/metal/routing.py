"""Routing in one step: scores, groups, selection, weights, per-expert scale."""

import mlx.core as mx

from coterie.backends.mlx.metal import launch, rows
from coterie.ops.routing import RouteSpec

CAPACITY = 1024
"""Experts that the kernel has room for; their ranks are 4 KiB of a threadgroup's 32."""

ROUTE = launch.Kernel(
    "route", ("logits", "scale", "selection_bias", "scaling_factor"), ("ids", "weights"), ("selection",)
)
GATHER_TOPK_WEIGHTS = launch.Kernel("gather_topk_weights", ("probs", "ids", "scale"))


def fits(n_experts: int) -> bool:
    """True where the kernel has room for the experts."""
    return n_experts <= CAPACITY


def route(logits: mx.array, spec: RouteSpec) -> tuple[mx.array, mx.array]:
    """logits f32 [..., E]; the spec's arrays are f32 [E]."""
    tokens = rows.flat(logits)
    grid, threadgroup = rows.simdgroup_each(tokens.shape[0])
    shape = (tokens.shape[0], spec.top_k)
    ids, weights = launch.run(
        ROUTE,
        [
            tokens,
            launch.optional(spec.per_expert_scale),
            launch.optional(spec.selection_bias),
            mx.array(spec.scaling_factor, mx.float32),
        ],
        {
            "K": spec.top_k,
            "CAPACITY": CAPACITY,
            "SIGMOID": spec.scoring == "sigmoid",
            "RENORMALIZE": spec.renormalize,
            "BY_LOGITS": spec.selects_by_logits,
            "HAS_SCALE": spec.per_expert_scale is not None,
            "HAS_BIAS": spec.selection_bias is not None,
            "N_GROUPS": spec.n_groups,
            "TOP_GROUPS": spec.top_groups,
            "TOP2": spec.group_score == "top2",
        },
        grid=grid,
        threadgroup=threadgroup,
        shapes=[shape, shape],
        dtypes=[mx.uint32, mx.float32],
    )
    out_shape = (*logits.shape[:-1], spec.top_k)
    return ids.reshape(out_shape), weights.reshape(out_shape)


def gather_topk_weights(probs: mx.array, ids: mx.array, per_expert_scale: mx.array | None) -> mx.array:
    """The weights f32 [..., k] of ids uint32 [..., k] into probs f32 [..., E]."""
    chosen = rows.flat(ids)
    grid, threadgroup = rows.simdgroup_each(chosen.shape[0])
    (weights,) = launch.run(
        GATHER_TOPK_WEIGHTS,
        [rows.flat(probs), chosen, launch.optional(per_expert_scale)],
        {"HAS_SCALE": per_expert_scale is not None},
        grid=grid,
        threadgroup=threadgroup,
        shapes=[chosen.shape],
        dtypes=[mx.float32],
    )
    return weights.reshape(ids.shape)
