"""Routing and grouping. Ties go to the lowest id because ids are part of the sorted keys: MLX's sorts promise no order
of equals.
"""

import mlx.core as mx

from coterie.backends.mlx.metal import launch
from coterie.backends.mlx.metal import routing as metal
from coterie.ops.routing import SIGMOID_SUM_FLOOR, RouteSpec

_ID_BITS = mx.array(31, mx.uint64)
_ID_MASK = mx.array(0x7FFFFFFF, mx.uint64)
_OUTSIDE_BIT = mx.array(63, mx.uint64)


def route(logits: mx.array, spec: RouteSpec) -> tuple[mx.array, mx.array]:
    if launch.usable() and metal.fits(logits.shape[-1]):
        return metal.route(logits, spec)
    usable = mx.isfinite(logits.max(-1, keepdims=True))
    scores = mx.softmax(logits, axis=-1, precise=True) if spec.scoring == "softmax" else mx.sigmoid(logits)
    choice = logits if spec.selects_by_logits else scores
    if spec.selection_bias is not None:
        choice = choice + spec.selection_bias
    ids = best(choice, spec.top_k, _outside_of_best_groups(choice, spec))
    if spec.scoring == "softmax" and spec.renormalize:
        weights = mx.softmax(mx.take_along_axis(logits, ids, -1), axis=-1, precise=True)
    else:
        weights = mx.take_along_axis(scores, ids, -1)
        if spec.renormalize:
            weights = weights / (weights.sum(-1, keepdims=True) + SIGMOID_SUM_FLOOR)
    if spec.per_expert_scale is not None:
        weights = weights * spec.per_expert_scale[ids]
    return ids, mx.where(usable, weights * spec.scaling_factor, float("nan"))


def best(scores: mx.array, k: int, outside: mx.array | None = None) -> mx.array:
    """The ids uint32 [..., k] of the k highest f32 scores [..., n], highest first, equal ones by id; `outside` comes
    last.
    """
    bits = (scores + 0.0).view(mx.uint32)
    falling = mx.where(bits >> 31, bits, ~(bits | 0x80000000)).astype(mx.uint64)
    keys = (falling << _ID_BITS) | mx.arange(scores.shape[-1], dtype=mx.uint64)
    if outside is not None:
        keys = keys | (outside.astype(mx.uint64) << _OUTSIDE_BIT)
    return _ids(mx.sort(keys, axis=-1)[..., :k])


def gather_topk_weights(
    probs: mx.array, ids: mx.array, per_expert_scale: mx.array | None, top_k: int
) -> tuple[mx.array, mx.array]:
    if launch.usable():
        return ids, metal.gather_topk_weights(probs, ids, per_expert_scale)
    chosen = mx.take_along_axis(probs, ids[..., :top_k], -1)
    total = chosen.sum(-1, keepdims=True)
    weights = mx.where(total > 0, chosen / total, 0)
    if per_expert_scale is not None:
        weights = weights * per_expert_scale[ids]
    return ids, weights


def group(ids: mx.array, n_experts: int) -> tuple[mx.array, mx.array, mx.array]:
    rows = mx.arange(ids.size, dtype=mx.uint32)
    order = _ids(mx.sort((ids.astype(mx.uint64) << _ID_BITS) | rows.astype(mx.uint64)))
    inverse = mx.zeros_like(rows)
    inverse[order] = rows
    counts = mx.zeros(n_experts, mx.uint32).at[ids].add(mx.ones_like(rows))
    offsets = mx.concatenate([mx.zeros(1, mx.uint32), mx.cumsum(counts)])
    return order, offsets, inverse


def _ids(keys: mx.array) -> mx.array:
    return (keys & _ID_MASK).astype(mx.uint32)


def _outside_of_best_groups(choice: mx.array, spec: RouteSpec) -> mx.array | None:
    if spec.n_groups == 1:
        return None
    grouped = choice.reshape(*choice.shape[:-1], spec.n_groups, -1)
    group_scores = grouped.max(-1) if spec.group_score == "max" else mx.sort(grouped, axis=-1)[..., -2:].sum(-1)
    kept = best(group_scores, spec.top_groups)
    groups = mx.arange(spec.n_groups, dtype=mx.uint32)[:, None]
    outside = (kept[..., None, :] != groups).all(-1, keepdims=True)
    return mx.broadcast_to(outside, grouped.shape).reshape(choice.shape)
