"""Routing: from a router's logits to the experts of each token and their weights.

The contract, in f32: scores are the softmax over all experts, or the sigmoid of each; the top k are chosen by score,
plus the selection bias where a family has one, and within the best groups of experts where it has groups; ties go to
the lowest id. Weights are the scores without that bias, divided by their sum over the k if asked, then multiplied by
`per_expert_scale[id]` without another renormalisation, then by the scaling factor.

    Qwen3-MoE, Mixtral      softmax, renormalised                     (gpt-oss: the same, written as softmax after
    top-k) OLMoE                   softmax, not renormalised
    Gemma 4                 softmax, renormalised, per-expert scale
    DeepSeek-V2             softmax, groups by their maximum, not renormalised, scaling factor
    DeepSeek-V3, GLM-4      sigmoid, selection bias, groups by the sum of their top 2, renormalised, scaling factor
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from coterie.arrays import Array, as_numpy, dtype_name, kind_of
from coterie.errors import ArgumentError, NumericError
from coterie.ops import checks, dispatch
from coterie.ops.forms import FORMS, Form

Scoring = Literal["softmax", "sigmoid"]
GroupScore = Literal["max", "top2"]

SIGMOID_SUM_FLOOR = 1e-20
"""Added to the sum of sigmoid scores before dividing by it, as the models' own code does."""


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """The experts of each token: ids uint32 [..., k] and their weights f32 [..., k], best first.

    `n_experts` is set by who made the ids and knows that all of them are below it; None means that they are checked on
    use.
    """

    ids: Array
    weights: Array
    n_experts: int | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class RouteSpec:
    """How a family routes; the fields are the arguments of `route`. Arrays are f32 [E] of the logits' kind."""

    top_k: int
    scoring: Scoring = "softmax"
    renormalize: bool = True
    per_expert_scale: Array | None = None
    selection_bias: Array | None = None
    n_groups: int = 1
    top_groups: int = 1
    group_score: GroupScore = "max"
    scaling_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("top_k", "n_groups", "top_groups"):
            checks.positive_integer(getattr(self, name), name)
        if self.scoring not in ("softmax", "sigmoid"):
            raise ArgumentError(f"scoring is {self.scoring!r}, expected 'softmax' or 'sigmoid'", code="routing")
        if self.group_score not in ("max", "top2"):
            raise ArgumentError(f"group_score is {self.group_score!r}, expected 'max' or 'top2'", code="routing")
        if self.top_groups > self.n_groups:
            raise ArgumentError(
                f"top_groups is {self.top_groups} and n_groups {self.n_groups}; expected at most as many",
                code="routing",
            )
        if not np.isfinite(self.scaling_factor):
            raise ArgumentError(f"scaling_factor is {self.scaling_factor!r}, expected a finite number", code="routing")

    @property
    def selects_by_logits(self) -> bool:
        """True where scores are only compared: then logits tell apart what underflows in a softmax. Sums need the
        scores.
        """
        sums_scores = self.n_groups > 1 and self.group_score == "top2"
        return self.scoring == "softmax" and self.selection_bias is None and not sums_scores


def route(
    logits: Array,
    top_k: int | RouteSpec,
    *,
    scoring: Scoring = "softmax",
    renormalize: bool = True,
    per_expert_scale: Array | None = None,
    selection_bias: Array | None = None,
    n_groups: int = 1,
    top_groups: int = 1,
    group_score: GroupScore = "max",
    scaling_factor: float = 1.0,
) -> Routing:
    """Choose `top_k` of the experts for each token of logits [..., E] (f32, f16 or bf16), by the contract of this
    module.

    per_expert_scale and selection_bias: floats [E]. n_groups divides E into runs of equal length, of which the
    top_groups best by `group_score` ("max", or "top2": the sum of the two best) stay in the choice. A `RouteSpec` in
    place of `top_k` holds all of these at once.

    Returns ids uint32 [..., k] by falling score, and weights f32 [..., k]. NaN or +inf among the logits, or a token
    without a finite one, is a `NumericError`; -inf means never chosen while others remain. MLX and GPUs compute later
    than they are called: there such a token's weights are NaN instead, and the error comes where the numbers are read.
    """
    form = FORMS[kind_of(logits)]
    spec = (
        top_k
        if isinstance(top_k, RouteSpec)
        else RouteSpec(
            top_k,
            scoring,
            renormalize,
            per_expert_scale,
            selection_bias,
            n_groups,
            top_groups,
            group_score,
            scaling_factor,
        )
    )
    checks.float_dtype(logits, "logits")
    shape = tuple(logits.shape)
    if not shape:
        raise checks.shape_error("logits are a scalar, expected [..., E]")
    _check_experts(spec, shape[-1])
    spec = _native_spec(spec, shape[-1], logits, form)
    out_shape = (*shape[:-1], spec.top_k)
    if 0 in out_shape:
        return _no_routing(out_shape, shape[-1], logits, form)
    ids, weights = form.verb("route")(form.rows(form.widened(logits), shape[-1]), spec)
    return Routing(form.back(ids, out_shape), form.back(weights, out_shape), shape[-1])


def gather_topk_weights(probs: Array, sorted_ids: Array, per_expert_scale: Array | None, top_k: int) -> Routing:
    """The first k of ids that are sorted already, with weights p[id] / (sum of the k p) * per_expert_scale[id].

    probs: floats [..., E]; sorted_ids: integers [..., S], S >= k, of which only the first k are looked at and must be
    in range; per_expert_scale: floats [E] or None. Where the sum is not positive, all weights of the token are zero.
    """
    form = FORMS[dispatch.kind_of_both(probs, sorted_ids, ("probs", "sorted_ids"))]
    checks.float_dtype(probs, "probs")
    shape, k = tuple(probs.shape), checks.positive_integer(top_k, "top_k")
    if not shape or tuple(sorted_ids.shape[:-1]) != shape[:-1] or sorted_ids.shape[-1] < k:
        raise checks.shape_error(
            f"probs are {list(shape)} and sorted_ids {list(sorted_ids.shape)}, expected [..., E] and [..., S], S >= {k}"
        )
    scale = _vector(per_expert_scale, "per_expert_scale", shape[-1], probs, form)
    chosen = checks.integer_ids(sorted_ids[..., :k], "sorted_ids", form, shape[-1])
    out_shape = (*shape[:-1], k)
    if 0 in out_shape:
        return _no_routing(out_shape, shape[-1], probs, form)
    run = form.verb("gather_topk_weights")
    ids, weights = run(form.rows(form.widened(probs), shape[-1]), form.rows(chosen, k), scale, k)
    return Routing(form.back(ids, out_shape), form.back(weights, out_shape), shape[-1])


def routed_ids(routing: Routing, n_experts: int, form: Form) -> Array:
    """The ids of a routing as the back end takes them; looked at only where nobody knows that they are in range."""
    known = routing.n_experts is not None and routing.n_experts <= n_experts and dtype_name(routing.ids) == "uint32"
    if known:
        return form.ids(form.view(routing.ids))
    return checks.integer_ids(routing.ids, "ids", form, n_experts)


def route_reference(logits: Array, spec: RouteSpec) -> tuple[np.ndarray, np.ndarray]:
    """`route` in float64: ids and weights."""
    z = as_numpy(logits).astype(np.float64)
    highest = z.max(-1, keepdims=True)
    if not np.isfinite(highest).all():
        raise NumericError("logits have NaN, +inf or a token without a finite one; expected finite logits")
    if spec.scoring == "softmax":
        scores = np.exp(z - highest)
        scores /= scores.sum(-1, keepdims=True)
    else:
        scores = 1 / (1 + np.exp(np.minimum(-z, 700.0)))
    choice = z if spec.selects_by_logits else scores
    if spec.selection_bias is not None:
        choice = choice + as_numpy(spec.selection_bias).astype(np.float64)
    outside = _outside_of_best_groups(choice, spec)
    everyone = np.broadcast_to(np.arange(z.shape[-1]), z.shape)
    ids = np.lexsort((everyone, -choice, outside), axis=-1)[..., : spec.top_k]
    weights = np.take_along_axis(scores, ids, -1)
    if spec.renormalize:
        floor = SIGMOID_SUM_FLOOR if spec.scoring == "sigmoid" else 0.0
        weights = weights / (weights.sum(-1, keepdims=True) + floor)
    if spec.per_expert_scale is not None:
        weights = weights * as_numpy(spec.per_expert_scale).astype(np.float64)[ids]
    return ids.astype(np.uint32), weights * spec.scaling_factor


def gather_topk_weights_reference(
    probs: Array, sorted_ids: Array, per_expert_scale: Array | None, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """`gather_topk_weights` in float64: ids and weights."""
    ids = as_numpy(sorted_ids)[..., :top_k].astype(np.int64)
    chosen = np.take_along_axis(as_numpy(probs).astype(np.float64), ids, -1)
    total = chosen.sum(-1, keepdims=True)
    weights = np.where(total > 0, chosen / np.where(total > 0, total, 1), 0)
    if per_expert_scale is not None:
        weights = weights * as_numpy(per_expert_scale).astype(np.float64)[ids]
    return ids.astype(np.uint32), weights


def _outside_of_best_groups(choice: np.ndarray, spec: RouteSpec) -> np.ndarray:
    """True for the experts that are out of the choice; of equal groups the lowest stay."""
    grouped = choice.reshape(*choice.shape[:-1], spec.n_groups, -1)
    best = np.sort(grouped, -1)
    group_scores = best[..., -1] if spec.group_score == "max" or spec.n_groups == 1 else best[..., -2:].sum(-1)
    kept = np.argsort(-group_scores, axis=-1, kind="stable")[..., : spec.top_groups]
    outside = np.ones(group_scores.shape, bool)
    np.put_along_axis(outside, kept, False, -1)
    return np.broadcast_to(outside[..., None], grouped.shape).reshape(choice.shape)


def _no_routing(shape: tuple[int, ...], n_experts: int, like: Array, form: Form) -> Routing:
    ids, weights = (form.zeros(shape, dtype, like) for dtype in ("uint32", "float32"))
    return Routing(ids, weights, n_experts)


def _check_experts(spec: RouteSpec, n_experts: int) -> None:
    if spec.top_k > n_experts:
        raise ArgumentError(f"top_k is {spec.top_k} with {n_experts} experts; expected at most as many", code="routing")
    if spec.n_groups == 1:
        return
    if n_experts % spec.n_groups:
        raise ArgumentError(
            f"{n_experts} experts do not divide into {spec.n_groups} groups of equal size", code="routing"
        )
    size = n_experts // spec.n_groups
    if spec.group_score == "top2" and size < 2:
        raise ArgumentError("group_score 'top2' needs two experts in a group, found one", code="routing")
    if spec.top_k > size * spec.top_groups:
        raise ArgumentError(
            f"top_k is {spec.top_k}, but {spec.top_groups} groups of {size} experts stay in the choice", code="routing"
        )


def _native_spec(spec: RouteSpec, n_experts: int, logits: Array, form: Form) -> RouteSpec:
    """The spec with its arrays as the back end takes them: f32 [E]."""
    scale = _vector(spec.per_expert_scale, "per_expert_scale", n_experts, logits, form)
    bias = _vector(spec.selection_bias, "selection_bias", n_experts, logits, form)
    if scale is spec.per_expert_scale and bias is spec.selection_bias:
        return spec
    return RouteSpec(
        spec.top_k,
        spec.scoring,
        spec.renormalize,
        scale,
        bias,
        spec.n_groups,
        spec.top_groups,
        spec.group_score,
        spec.scaling_factor,
    )


def _vector(vector: Array | None, name: str, n_experts: int, first: Array, form: Form) -> Array | None:
    if vector is None:
        return None
    dispatch.kind_of_both(first, vector, ("the first argument", name))
    checks.float_dtype(vector, name)
    if tuple(vector.shape) != (n_experts,):
        raise checks.shape_error(f"{name} is {list(vector.shape)}, expected [{n_experts}]: one value for each expert")
    return form.widened(vector)
