"""Routing as one Metal kernel: every rule of the contract, ties, extremes of E and k, logits that cannot be ranked."""

from typing import Any

import numpy as np
import pytest

import coterie
from array_kinds import floats, give, take
from coterie.ops.routing import RouteSpec, gather_topk_weights_reference, route_reference
from tolerance import EPS

pytestmark = pytest.mark.usefixtures("engine")

FAMILIES = {
    "qwen3": RouteSpec(8),
    "olmoe": RouteSpec(8, renormalize=False),
    "deepseek_v2": RouteSpec(6, renormalize=False, n_groups=8, top_groups=3, scaling_factor=16.0),
    "deepseek_v3": RouteSpec(
        8, "sigmoid", True, None, np.zeros(0), n_groups=8, top_groups=4, group_score="top2", scaling_factor=2.5
    ),
    "gemma4": RouteSpec(8, per_expert_scale=np.zeros(0)),
    "biased_softmax": RouteSpec(4, "softmax", False, np.zeros(0), np.zeros(0)),
    "softmax_groups": RouteSpec(2, n_groups=4, top_groups=2, group_score="top2"),
}


def filled(spec: RouteSpec, n_experts: int, rng: Any) -> RouteSpec:
    """The spec with random vectors in the places of its empty ones."""
    scale = None if spec.per_expert_scale is None else np.abs(floats(rng, (n_experts,))) + np.float32(0.5)
    bias = None if spec.selection_bias is None else floats(rng, (n_experts,), scale=0.1)
    names = ("top_k", "scoring", "renormalize")
    rest = ("n_groups", "top_groups", "group_score", "scaling_factor")
    return RouteSpec(*(getattr(spec, n) for n in names), scale, bias, *(getattr(spec, n) for n in rest))


def given(spec: RouteSpec) -> RouteSpec:
    vectors = [None if v is None else give(v, "mlx") for v in (spec.per_expert_scale, spec.selection_bias)]
    rest = (spec.n_groups, spec.top_groups, spec.group_score, spec.scaling_factor)
    return RouteSpec(spec.top_k, spec.scoring, spec.renormalize, *vectors, *rest)


def logits_with_margins(rng: Any, n_tokens: int, n_experts: int) -> np.ndarray:
    """Logits a good step apart, in random order: rounding cannot change who is chosen."""
    steps = np.argsort(rng.random((n_tokens, n_experts)), -1)
    return ((steps - n_experts / 2) * (8 / n_experts)).astype(np.float32)


def check(logits: np.ndarray, spec: RouteSpec, limit: float = 64 * EPS["float32"]) -> None:
    found = coterie.route(give(logits, "mlx"), given(spec))
    ids, weights = route_reference(logits, spec)
    np.testing.assert_array_equal(take(found.ids, "mlx", "uint32"), ids)
    np.testing.assert_allclose(take(found.weights, "mlx", "float32"), weights, rtol=limit, atol=1e-30)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n_experts", [32, 40, 96, 256])
def test_the_rule_of_every_family(family: str, n_experts: int, rng: Any) -> None:
    check(logits_with_margins(rng, 9, n_experts), filled(FAMILIES[family], n_experts, rng))


@pytest.mark.parametrize("k", [1, 2, 8, 17, 33])
def test_every_number_of_experts_around_the_lanes(k: int, rng: Any) -> None:
    for n_experts in (1, 2, 8, 17, 31, 32, 33, 60, 63, 64, 65, 96, 128, 1023, 1024):
        if n_experts >= k:
            check(logits_with_margins(rng, 3, n_experts), RouteSpec(k))


def test_all_experts_of_a_token(rng: Any) -> None:
    check(logits_with_margins(rng, 2, 33), RouteSpec(33))


def test_more_experts_than_the_kernel_has_room_for(rng: Any) -> None:
    check(logits_with_margins(rng, 2, 1025), RouteSpec(8))


def test_ties_go_to_the_lowest_id(rng: Any) -> None:
    """All equal; equal in blocks across the lanes; and minus zero, which equals zero."""
    check(np.zeros((2, 96), np.float32), RouteSpec(8))
    check((np.arange(96) % 3).astype(np.float32)[None], RouteSpec(8))
    zeros = np.where(rng.random((4, 64)) < 0.5, np.float32(0), np.float32(-0.0))
    check(zeros, RouteSpec(17))
    check(np.zeros((1, 40), np.float32), FAMILIES["deepseek_v2"])


def test_neighbouring_floats_are_told_apart() -> None:
    """Logits a last place apart, whose shares of a softmax round to one number."""
    base = np.float32(-20)
    logits = np.full((1, 64), base)
    for expert in (50, 3, 17):
        base = np.nextafter(base, np.float32(0))
        logits[0, expert] = base
    logits[0, 63] = 20
    assert take(coterie.route(give(logits, "mlx"), 5).ids, "mlx", "uint32").tolist() == [[63, 17, 3, 50, 0]]


def test_infinities_and_extremes() -> None:
    logits = np.full((2, 60), -np.inf, np.float32)
    logits[:, [59, 3]] = 1.0, 2.0
    logits[1, 40] = np.finfo(np.float32).max
    check(logits, RouteSpec(8))
    check(np.linspace(-3e38, 3e38, 40, dtype=np.float32)[None], RouteSpec(8, renormalize=False))


def test_logits_that_cannot_be_ranked_give_nan_and_ids_in_range() -> None:
    logits = np.zeros((5, 40), np.float32)
    logits[0, 33], logits[1, 2], logits[2], logits[3, :] = np.nan, np.inf, -np.inf, -np.nan
    found = coterie.route(give(logits, "mlx"), 8)
    weights = take(found.weights, "mlx", "float32")
    assert np.isnan(weights[:4]).all()
    np.testing.assert_array_equal(weights[4], np.float32(1 / 8))
    assert take(found.ids, "mlx", "uint32").max() < 40


def test_many_tokens(rng: Any) -> None:
    check(logits_with_margins(rng, 33_000, 4), RouteSpec(1))


def test_leading_axes(rng: Any) -> None:
    logits = logits_with_margins(rng, 6, 40).reshape(2, 3, 40)
    check(logits, RouteSpec(8))
    check(logits[0, 0], RouteSpec(8))


@pytest.mark.parametrize("scaled", [False, True])
def test_gathering_of_every_size(scaled: bool, rng: Any) -> None:
    for n_tokens, n_experts, k in [(1, 1, 1), (1, 4, 2), (3, 40, 8), (2, 60, 33), (2, 96, 96), (33_000, 2, 1)]:
        probs = np.abs(floats(rng, (n_tokens, n_experts))) + np.float32(1e-3)
        order = np.argsort(-probs, -1).astype(np.uint32)
        scale = np.abs(floats(rng, (n_experts,))) if scaled else None
        found = coterie.gather_topk_weights(
            give(probs, "mlx"), give(order, "mlx"), None if scale is None else give(scale, "mlx"), k
        )
        ids, weights = gather_topk_weights_reference(probs, order, scale, k)
        np.testing.assert_array_equal(take(found.ids, "mlx", "uint32"), ids)
        np.testing.assert_allclose(take(found.weights, "mlx", "float32"), weights, rtol=64 * EPS["float32"])


def test_gathering_where_the_sum_is_not_positive() -> None:
    probs = np.array([[0, 0, 0, 5], [-1, 0.5, 0.25, 5], [1, 1, 1, 5]], np.float32)
    ids = np.tile(np.arange(3, dtype=np.uint32), (3, 1))
    found = coterie.gather_topk_weights(give(probs, "mlx"), give(ids, "mlx"), None, 3)
    expected = [[0, 0, 0], [0, 0, 0], [1 / 3] * 3]
    np.testing.assert_allclose(take(found.weights, "mlx", "float32"), expected, rtol=1e-6)
