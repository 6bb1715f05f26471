"""Routing and grouping: scores, the choice of experts, their weights, and routed rows brought together by expert."""

import math
from typing import Any

import numpy as np
from numba import types

from coterie.backends.cpu.jit import njit
from coterie.backends.cpu.recording import not_recorded
from coterie.errors import NumericError
from coterie.ops.routing import SIGMOID_SUM_FLOOR, RouteSpec

_NO_VECTOR = np.zeros(0, np.float32)


def route(logits: np.ndarray, spec: RouteSpec) -> tuple[np.ndarray, np.ndarray]:
    """ids uint32 [T, k] and weights f32 [T, k] for logits f32 [T, E]."""
    not_recorded()
    ids = np.empty((len(logits), spec.top_k), np.uint32)
    weights = np.empty(ids.shape, np.float32)
    check_routed(route_rows(logits, ids, weights, *settings_of(spec)))
    return ids, weights


def settings_of(spec: RouteSpec) -> tuple[Any, ...]:
    """The arguments of `route_rows` that follow from the spec."""
    bias = _NO_VECTOR if spec.selection_bias is None else spec.selection_bias
    scale = _NO_VECTOR if spec.per_expert_scale is None else spec.per_expert_scale
    return (
        spec.scoring == "sigmoid", spec.renormalize, bias, scale, spec.n_groups, spec.top_groups,
        spec.group_score == "top2", np.float32(spec.scaling_factor), np.float32(SIGMOID_SUM_FLOOR),
    )  # fmt: skip


def check_routed(bad: int) -> None:
    """`NumericError` for a row that `route_rows` found unusable; -1 is none."""
    if bad >= 0:
        raise NumericError(
            f"logits of token {bad} are not usable: found NaN, +inf or no finite value among them; expected finite "
            "logits (-inf only beside finite ones). Look at the router's weights and at the layer's input",
            code="router_logits",
        )


@njit
def route_rows(logits, ids, weights, sigmoid, renormalize, bias, scale, n_groups, top_groups, by_top2, factor, floor):
    """The first unusable row, or -1. `choice` is what experts are chosen by: the logits themselves for a plain softmax,
    which order like its scores but without the ties that underflow makes.
    """
    n_experts, top_k = logits.shape[1], ids.shape[1]
    scores, choice = np.empty(n_experts, np.float32), np.empty(n_experts, np.float32)
    groups = np.empty(n_groups, np.float32)
    for row in range(logits.shape[0]):
        highest = logits[row, 0]
        for expert in range(n_experts):
            value = logits[row, expert]
            if not value < np.float32(np.inf):
                return row
            highest = max(highest, value)
        if highest == -np.float32(np.inf):
            return row
        _score(logits[row], highest, sigmoid, scores)
        for expert in range(n_experts):
            if bias.size > 0:
                choice[expert] = scores[expert] + bias[expert]
            else:
                choice[expert] = scores[expert] if sigmoid or (by_top2 and n_groups > 1) else logits[row, expert]
        _choose(choice, n_groups, top_groups, by_top2, groups, ids[row])
        total = floor if sigmoid else np.float32(0)
        for slot in range(top_k):
            total += scores[ids[row, slot]]
        for slot in range(top_k):
            expert = ids[row, slot]
            weight = scores[expert] / total if renormalize else scores[expert]
            if scale.size > 0:
                weight *= scale[expert]
            weights[row, slot] = weight * factor
    return -1


@njit
def _score(logits, highest, sigmoid, scores):
    total = 0.0
    for expert in range(logits.size):
        if sigmoid:
            scores[expert] = np.float32(1.0 / (1.0 + math.exp(-float(logits[expert]))))
        else:
            value = math.exp(float(logits[expert] - highest))
            total += value
            scores[expert] = np.float32(value)
    if not sigmoid:
        for expert in range(logits.size):
            scores[expert] = np.float32(scores[expert] / total)


@njit
def _choose(choice, n_groups, top_groups, by_top2, groups, chosen):
    """The k best of `choice` by falling value, ties to the lowest id, within the best groups. Chosen entries become
    NaN, which no comparison finds again; experts outside of the best groups become NaN first.
    """
    n_experts = choice.size
    size = n_experts // n_groups
    if n_groups > 1:
        for group in range(n_groups):
            groups[group] = _group_score(choice[group * size : (group + 1) * size], by_top2)
        for _ in range(top_groups):
            groups[_best(groups)] = np.float32(np.nan)
        for expert in range(n_experts):
            if not math.isnan(groups[expert // size]):
                choice[expert] = np.float32(np.nan)
    for slot in range(chosen.size):
        best = _best(choice)
        chosen[slot] = best
        choice[best] = np.float32(np.nan)


@njit
def _group_score(values, by_top2):
    first, second = -np.float32(np.inf), -np.float32(np.inf)
    for value in values:
        if value > first:
            first, second = value, first
        elif value > second:
            second = value
    return first + second if by_top2 else first


@njit
def _best(values):
    """The first place of the largest value that is not NaN; -inf counts."""
    best = -1
    for place in range(values.size):
        if not math.isnan(values[place]) and (best < 0 or values[place] > values[best]):
            best = place
    return best


def gather_topk_weights(
    probs: np.ndarray, sorted_ids: np.ndarray, per_expert_scale: np.ndarray | None, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """ids uint32 [T, k] and renormalised, scaled weights f32 [T, k] for probs f32 [T, E] and sorted ids [T, k]."""
    ids = np.ascontiguousarray(sorted_ids[:, :top_k], np.uint32)
    weights = np.empty(ids.shape, np.float32)
    _gather_weights(probs, ids, _NO_VECTOR if per_expert_scale is None else per_expert_scale, weights)
    return ids, weights


@njit
def _gather_weights(probs, ids, scale, weights):
    for row in range(ids.shape[0]):
        total = 0.0
        for slot in range(ids.shape[1]):
            total += probs[row, ids[row, slot]]
        for slot in range(ids.shape[1]):
            expert = ids[row, slot]
            weight = probs[row, expert] / total if total > 0 else 0.0
            weights[row, slot] = np.float32(weight * scale[expert] if scale.size > 0 else weight)


def group(ids: np.ndarray, n_experts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """order uint32 [R], offsets uint32 [E + 1], inverse uint32 [R] of ids [R], by counting."""
    flat = np.ascontiguousarray(ids, np.uint32)
    order, inverse = np.empty(flat.size, np.uint32), np.empty(flat.size, np.uint32)
    offsets = np.zeros(n_experts + 1, np.uint32)
    _group_rows(flat, order, offsets, inverse)
    return order, offsets, inverse


@njit
def _group_rows(ids, order, offsets, inverse):
    n_experts = offsets.size - 1
    for row in range(ids.size):
        offsets[ids[row] + 1] += types.uint32(1)
    for expert in range(n_experts):
        offsets[expert + 1] += offsets[expert]
    free = offsets[:n_experts].copy()
    for row in range(ids.size):
        place = free[ids[row]]
        free[ids[row]] = place + types.uint32(1)
        order[place] = row
        inverse[row] = place
