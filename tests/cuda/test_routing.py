"""Routing against float64: every setting, any number of experts and choices, ties, and logits that cannot be ranked."""

from dataclasses import replace

import numpy as np
import pytest

from array_kinds import DTYPES, floats
from coterie.ops import RouteSpec, gather_topk_weights_reference, route_reference
from tensors import off, on
from tolerance import EPS, assert_close

BOUND = 32 * EPS["float32"]
"""An exponential of a rounded difference, a sum over the experts, three products."""

SPECS = {
    "softmax": RouteSpec(8),
    "not renormalised": RouteSpec(8, renormalize=False),
    "groups by maximum": RouteSpec(6, renormalize=False, n_groups=3, top_groups=2, scaling_factor=16.0),
    "sigmoid": RouteSpec(4, scoring="sigmoid"),
    "sigmoid, not renormalised": RouteSpec(5, scoring="sigmoid", renormalize=False),
    "groups by top 2": RouteSpec(
        4, scoring="sigmoid", n_groups=4, top_groups=3, group_score="top2", scaling_factor=2.5
    ),
    "softmax, groups by top 2": RouteSpec(3, n_groups=4, top_groups=2, group_score="top2"),
}


def routed(device: str, logits: np.ndarray, spec: RouteSpec) -> tuple[np.ndarray, np.ndarray]:
    from coterie.backends import cuda

    vectors = {name: getattr(spec, name) for name in ("per_expert_scale", "selection_bias")}
    given = {name: None if vector is None else on(device, vector) for name, vector in vectors.items()}
    ids, weights = cuda.route(on(device, logits), replace(spec, **given))
    assert (ids.shape, weights.shape) == ((len(logits), spec.top_k),) * 2
    ids, weights = off(ids), off(weights)
    assert (ids.dtype, weights.dtype) == (np.uint32, np.float32)
    return ids, weights


@pytest.mark.parametrize("case", SPECS)
def test_every_setting_meets_its_reference(device: str, case: str, rng) -> None:
    for n_experts in (24, 60):
        logits, spec = floats(rng, (4, n_experts), scale=2), SPECS[case]
        scale, bias = np.abs(floats(rng, (n_experts,))) + 0.1, floats(rng, (n_experts,), scale=0.1)
        for full in (spec, replace(spec, per_expert_scale=scale, selection_bias=bias)):
            found, expected = routed(device, logits, full), route_reference(logits, full)
            np.testing.assert_array_equal(found[0], expected[0])
            assert_close(found[1], expected[1], BOUND * spec.scaling_factor)


@pytest.mark.parametrize(("n_experts", "k"), [(1, 1), (5, 5), (33, 32), (128, 1), (513, 40), (4100, 9)])
def test_any_number_of_experts_and_any_k(device: str, n_experts: int, k: int, rng) -> None:
    for dtype in DTYPES:
        logits = rng.permuted(np.tile(np.linspace(-3, 3, n_experts, dtype=np.float32), (2, 1)), axis=1)
        logits = logits.astype(floats(rng, (1,), dtype).dtype)
        found, expected = routed(device, logits, RouteSpec(k)), route_reference(logits, RouteSpec(k))
        np.testing.assert_array_equal(found[0], expected[0])
        assert_close(found[1], expected[1], BOUND, may_be_exact=k == 1)


def test_ties_go_to_the_lowest_id_and_the_smallest_step_decides(device: str) -> None:
    logits = np.zeros((6, 60), np.float32)
    logits[1, [50, 7, 31]] = 1.0
    logits[2, ::2] = -0.0
    logits[3] = np.tile([3.0, 5.0, 4.0], 20)
    logits[4, 33] = np.nextafter(np.float32(0), np.float32(1))
    logits[5] = -20
    logits[5, 0] = np.nextafter(np.float32(-20), np.float32(-30))
    for scoring in ("softmax", "sigmoid"):
        ids, weights = routed(device, logits, RouteSpec(6, scoring=scoring))
        first = [[0, 1, 2, 3, 4, 5], [7, 31, 50, 0, 1, 2], [0, 1, 2, 3, 4, 5], [1, 4, 7, 10, 13, 16]]
        assert ids[:4].tolist() == first
        np.testing.assert_allclose(weights[[0, 2, 3]], 1 / 6, rtol=1e-6)
    assert routed(device, logits, RouteSpec(3))[0][4:].tolist() == [[33, 0, 1], [1, 2, 3]]
    for score in ("max", "top2"):
        spec = RouteSpec(5, scoring="sigmoid", n_groups=4, top_groups=2, group_score=score)
        assert routed(device, np.zeros((1, 12), np.float32), spec)[0].tolist() == [[0, 1, 2, 3, 4]]


def test_what_underflows_is_told_apart_and_minus_infinity_comes_last(device: str) -> None:
    logits = np.full((3, 40), -500.0, np.float32)
    logits[0, [9, 30, 20]] = 0.0, -200.0, -150.0
    logits[1] = -np.inf
    logits[1, [3, 17, 39]] = 1.0, 2.0, 3.0
    ids, weights = routed(device, logits, RouteSpec(5))
    assert ids[0, :3].tolist() == [9, 20, 30]
    assert ids[1, :3].tolist() == [39, 17, 3]
    assert (weights[1, 3:] == 0).all()
    np.testing.assert_allclose(weights[2], 0.2, rtol=1e-6)
    inside = np.array([[1.0, 1.0, 1.0, 9.0, -np.inf, -np.inf]], np.float32)
    ids, weights = routed(device, inside, RouteSpec(3, n_groups=2, top_groups=1))
    assert (ids.tolist(), weights.tolist()) == ([[3, 4, 5]], [[1, 0, 0]])


def test_tokens_that_cannot_be_ranked_have_weights_of_nan_and_ids_in_range(device: str, rng) -> None:
    logits = floats(rng, (6, 60))
    logits[1, 59], logits[2, 0], logits[3], logits[4, 7] = np.nan, np.inf, -np.inf, -np.nan
    logits[5] = np.nan
    for spec in SPECS.values():
        ids, weights = routed(device, logits, spec)
        assert np.isfinite(weights[0]).all()
        assert np.isnan(weights[1:]).all()
        assert (ids < 60).all()
        assert all(len(set(row)) == spec.top_k for row in ids.tolist())


@pytest.mark.parametrize(("n_experts", "k"), [(128, 8), (40, 17), (3, 1)])
def test_gather_topk_weights_meets_its_reference(device: str, n_experts: int, k: int, rng) -> None:
    from coterie.backends import cuda

    probs = np.abs(floats(rng, (3, n_experts)))
    probs[1, 0] = probs[1].max() + 1
    ids = np.argsort(-probs, -1)[:, :k].astype(np.int32)
    for scale in (None, np.abs(floats(rng, (n_experts,)))):
        given = None if scale is None else on(device, scale)
        found = cuda.gather_topk_weights(on(device, probs), on(device, ids), given, k)
        expected = gather_topk_weights_reference(probs, ids, scale, k)
        np.testing.assert_array_equal(off(found[0]), expected[0])
        assert_close(off(found[1]), expected[1], BOUND, may_be_exact=k == 1)


def test_gather_topk_weights_follows_no_id_out_of_range(device: str) -> None:
    from coterie.backends import cuda

    probs = np.array([[0.5, 0.3, 0.2], [-1, 0.5, 0.25]], np.float32)
    ids = np.array([[0, 3, -1], [0, 1, 2]], np.int32)
    _, weights = cuda.gather_topk_weights(on(device, probs), on(device, ids), on(device, np.ones(3, np.float32)), 3)
    np.testing.assert_array_equal(off(weights), [[1, np.nan, np.nan], [0, 0, 0]])
