"""Routing: every family's rules, ties, hostile logits, and the weights of ids that are sorted already."""

import numpy as np
import pytest

import coterie
from array_kinds import DTYPES, KINDS, floats, give, ready, take
from coterie.arrays import as_numpy
from coterie.errors import ArgumentError, NumericError
from coterie.ops import RouteSpec, Routing, gather_topk_weights_reference, route_reference
from tolerance import EPS, assert_close

BOUND = 32 * EPS["float32"]
"""An exponential of a rounded difference, a sum over the experts, three products."""

SPECS = {
    "softmax": RouteSpec(8),
    "not renormalised": RouteSpec(8, renormalize=False),
    "groups by maximum": RouteSpec(6, renormalize=False, n_groups=4, top_groups=2, scaling_factor=16.0),
    "sigmoid": RouteSpec(4, scoring="sigmoid"),
    "groups by top 2": RouteSpec(
        4, scoring="sigmoid", n_groups=4, top_groups=3, group_score="top2", scaling_factor=2.5
    ),
    "softmax, groups by top 2": RouteSpec(3, n_groups=4, top_groups=2, group_score="top2"),
}


def routed(logits: np.ndarray, spec: RouteSpec, kind: str, **extra: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    routing = coterie.route(
        give(logits, kind),
        spec.top_k,
        scoring=spec.scoring,
        renormalize=spec.renormalize,
        n_groups=spec.n_groups,
        top_groups=spec.top_groups,
        group_score=spec.group_score,
        scaling_factor=spec.scaling_factor,
        **{name: give(value, kind) for name, value in extra.items()},
    )
    return take(routing.ids, kind, "uint32"), take(routing.weights, kind, "float32")


def with_arrays(spec: RouteSpec, **extra: np.ndarray) -> RouteSpec:
    values = {name: getattr(spec, name) for name in RouteSpec.__dataclass_fields__}
    return RouteSpec(**{**values, **extra})


def compare(found: tuple[np.ndarray, np.ndarray], logits: np.ndarray, spec: RouteSpec) -> None:
    """Weights by id against float64; ids exactly, except where float64 itself leaves less than rounding between two."""
    ids, weights = route_reference(logits, spec)
    assert found[0].shape == ids.shape
    settled = (np.sort(found[0], -1) == np.sort(ids, -1)).all(-1)
    assert settled.mean() > 0.99
    spread = [np.zeros((*ids.shape[:-1], logits.shape[-1])) for _ in range(2)]
    np.put_along_axis(spread[0], ids.astype(int), weights, -1)
    np.put_along_axis(spread[1], found[0].astype(int), found[1].astype(float), -1)
    assert_close(spread[1][settled], spread[0][settled], BOUND * spec.scaling_factor, may_be_exact=spec.top_k == 1)


@pytest.mark.parametrize("case", SPECS)
@pytest.mark.parametrize("n_experts", [40, 60, 96, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_route_meets_its_reference(kind: str, n_experts: int, case: str, rng) -> None:
    ready(kind, "route")
    spec = SPECS[case]
    logits = floats(rng, (300, n_experts), scale=2)
    compare(routed(logits, spec, kind), logits, spec)
    scale, bias = np.abs(floats(rng, (n_experts,))) + 0.1, floats(rng, (n_experts,), scale=0.1)
    extra = {"per_expert_scale": scale, "selection_bias": bias}
    compare(routed(logits, spec, kind, **extra), logits, with_arrays(spec, **extra))


@pytest.mark.parametrize(
    ("n_experts", "k"), [(1, 1), (2, 2), (40, 17), (60, 8), (96, 96), (128, 1), (512, 10), (33, 32)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_experts_and_any_k(kind: str, n_experts: int, k: int, rng) -> None:
    ready(kind, "route")
    logits = floats(rng, (2, 5, n_experts), scale=3)
    for scoring in ("softmax", "sigmoid"):
        spec = RouteSpec(k, scoring=scoring)
        ids, weights = routed(logits, spec, kind)
        compare((ids, weights), logits, spec)
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
        assert (np.diff(weights, axis=-1) <= 0).all()
        assert all(len(set(row)) == k for row in ids.reshape(-1, k))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_any_dtype_and_stride_are_scored_in_f32(kind: str, dtype: str, rng) -> None:
    ready(kind, "route")
    logits = floats(rng, (20, 120), dtype, 2)
    routing = coterie.route(give(logits, kind)[1::2, ::2], 8)
    ids, weights = take(routing.ids, kind, "uint32"), take(routing.weights, kind, "float32")
    expected = routed(np.ascontiguousarray(logits[1::2, ::2]).astype(np.float32), RouteSpec(8), kind)
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_array_equal(weights, expected[1])


@pytest.mark.parametrize("n_tokens", [0, 1, 5000])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_tokens(kind: str, n_tokens: int, rng) -> None:
    ready(kind, "route")
    logits = floats(rng, (n_tokens, 60))
    ids, weights = routed(logits, RouteSpec(8), kind)
    assert ids.shape == weights.shape == (n_tokens, 8)
    if n_tokens:
        np.testing.assert_array_equal(ids, route_reference(logits, RouteSpec(8))[0])


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kind", KINDS)
def test_ties_go_to_the_lowest_id(kind: str, scoring: str) -> None:
    ready(kind, "route")
    logits = np.zeros((4, 60), np.float32)
    logits[1, [50, 7, 31]] = 1.0
    logits[2, ::2] = -0.0
    logits[3] = np.tile([3.0, 5.0, 4.0], 20)
    ids, weights = routed(logits, RouteSpec(6, scoring=scoring), kind)
    assert ids.tolist() == [[0, 1, 2, 3, 4, 5], [7, 31, 50, 0, 1, 2], [0, 1, 2, 3, 4, 5], [1, 4, 7, 10, 13, 16]]
    np.testing.assert_allclose(weights[[0, 2, 3]], 1 / 6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_of_f32_beside_a_tie_decides(kind: str) -> None:
    ready(kind, "route")
    logits = np.full((2, 40), 20.0, np.float32)
    logits[0, 33] = np.nextafter(np.float32(20), np.float32(30))
    logits[1, 0] = np.nextafter(np.float32(20), np.float32(0))
    ids, _ = routed(logits, RouteSpec(2), kind)
    assert ids.tolist() == [[33, 0], [1, 2]]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_groups_go_to_the_lowest_one(kind: str) -> None:
    ready(kind, "route")
    logits = np.zeros((1, 12), np.float32)
    for score in ("max", "top2"):
        spec = RouteSpec(5, scoring="sigmoid", n_groups=4, top_groups=2, group_score=score)
        assert routed(logits, spec, kind)[0].tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_that_underflow_are_still_told_apart_by_their_logits(kind: str) -> None:
    ready(kind, "route")
    logits = np.full((1, 40), -500.0, np.float32)
    logits[0, 9], logits[0, 30], logits[0, 20] = 0.0, -200.0, -150.0
    ids, weights = routed(logits, RouteSpec(3), kind)
    assert ids.tolist() == [[9, 20, 30]]
    np.testing.assert_allclose(weights, [[1, 0, 0]], atol=1e-30)


@pytest.mark.parametrize("kind", KINDS)
def test_minus_infinity_is_never_chosen_while_others_remain(kind: str) -> None:
    ready(kind, "route")
    logits = np.full((2, 40), -np.inf, np.float32)
    logits[0, [3, 17, 39]] = [1.0, 2.0, 3.0]
    logits[1, 5:20] = np.arange(15)
    ids, weights = routed(logits, RouteSpec(3), kind)
    assert ids.tolist() == [[39, 17, 3], [19, 18, 17]]
    ids, weights = routed(logits, RouteSpec(5), kind)
    assert ids[0, :3].tolist() == [39, 17, 3]
    assert (weights[0, 3:] == 0).all()
    assert np.isfinite(weights).all()


@pytest.mark.parametrize("kind", KINDS)
def test_minus_infinity_inside_of_a_kept_group_comes_before_all_that_is_outside(kind: str) -> None:
    ready(kind, "route")
    logits = np.array([[1.0, 1.0, 1.0, 9.0, -np.inf, -np.inf]], np.float32)
    spec = RouteSpec(3, n_groups=2, top_groups=1)
    ids, weights = routed(logits, spec, kind)
    assert ids.tolist() == route_reference(logits, spec)[0].tolist() == [[3, 4, 5]]
    assert weights.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, None])
def test_logits_that_cannot_be_ranked_are_an_error(bad: float | None) -> None:
    logits = np.random.default_rng(0).standard_normal((300, 60)).astype(np.float32)
    if bad is None:
        logits[299] = -np.inf
    else:
        logits[299, 59] = bad
    for scoring in ("softmax", "sigmoid"):
        with pytest.raises(NumericError, match="finite"):
            route_reference(logits, RouteSpec(8, scoring=scoring))
        for kind in ("numpy", "torch"):
            ready(kind, "route")
            with pytest.raises(NumericError, match="finite"):
                coterie.route(give(logits, kind), 8, scoring=scoring)
        ready("mlx", "route")
        weights = as_numpy(coterie.route(give(logits, "mlx"), 8, scoring=scoring).weights)
        assert np.isnan(weights[299]).all()
        assert np.isfinite(weights[:299]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_scale_comes_after_renormalising(kind: str) -> None:
    """p = .5 .3 .2 and scale = 2 1 .5 give 1, .3, .1: not renormalised again (.714 .214 .071)."""
    ready(kind, "route", "gather_topk_weights")
    probs, scale = np.array([0.5, 0.3, 0.2], np.float32), np.array([2, 1, 0.5], np.float32)
    ids, weights = routed(np.log(probs)[None], RouteSpec(3), kind, per_expert_scale=scale)
    assert ids.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(weights, [[1.0, 0.3, 0.1]], rtol=1e-6)
    routing = coterie.gather_topk_weights(
        give(probs, kind), give(np.array([0, 1, 2], np.uint32), kind), give(scale, kind), 3
    )
    np.testing.assert_allclose(take(routing.weights, kind, "float32"), [1.0, 0.3, 0.1], rtol=1e-6)


@pytest.mark.parametrize(("n_experts", "k"), [(128, 8), (40, 17), (60, 1), (96, 2), (5, 5)])
@pytest.mark.parametrize("kind", KINDS)
def test_gather_topk_weights_meets_its_reference(kind: str, n_experts: int, k: int, rng) -> None:
    ready(kind, "gather_topk_weights")
    for lead in ((), (7,), (2, 3)):
        probs = np.abs(floats(rng, (*lead, n_experts)))
        order = np.argsort(-probs, -1).astype(np.uint32)
        # What follows the first k may be padding of a sort to a power of two: it is never looked at.
        padded = np.concatenate([order, np.full((*lead, 3), 2**31, np.uint32)], -1)
        for scale in (None, np.abs(floats(rng, (n_experts,)))):
            routing = coterie.gather_topk_weights(
                give(probs, kind), give(padded, kind), None if scale is None else give(scale, kind), k
            )
            ids, weights = gather_topk_weights_reference(probs, order, scale, k)
            np.testing.assert_array_equal(take(routing.ids, kind, "uint32"), ids)
            assert_close(take(routing.weights, kind, "float32"), weights, BOUND)


@pytest.mark.parametrize("kind", KINDS)
def test_gather_topk_weights_are_zero_where_the_sum_is_not_positive(kind: str) -> None:
    ready(kind, "gather_topk_weights")
    probs = np.array([[0, 0, 0, 1], [-1, 0.5, 0.25, 1], [0.2, 0.3, 0.5, 1]], np.float32)
    ids = np.tile(np.arange(3, dtype=np.uint32), (3, 1))
    routing = coterie.gather_topk_weights(give(probs, kind), give(ids, kind), None, 3)
    np.testing.assert_allclose(as_numpy(routing.weights), [[0, 0, 0], [0, 0, 0], [0.2, 0.3, 0.5]], rtol=1e-6)
    assert as_numpy(routing.ids).tolist() == ids.tolist()


def test_what_cannot_be_routed_is_refused_by_name() -> None:
    logits = np.zeros((2, 60), np.float32)
    refusals = {
        "top_k is 61 with 60 experts": {"top_k": 61},
        "top_k is 0": {"top_k": 0},
        "top_k is 2.0": {"top_k": 2.0},
        "top_k is True": {"top_k": True},
        "scoring is 'tanh'": {"top_k": 2, "scoring": "tanh"},
        "group_score is 'mean'": {"top_k": 2, "group_score": "mean"},
        "7 groups": {"top_k": 2, "n_groups": 7},
        "top_groups is 3 and n_groups 2": {"top_k": 2, "n_groups": 2, "top_groups": 3},
        "1 groups of 12 experts": {"top_k": 13, "n_groups": 5},
        "needs two experts in a group": {"top_k": 1, "n_groups": 60, "group_score": "top2"},
        "scaling_factor is nan": {"top_k": 2, "scaling_factor": np.nan},
        r"per_expert_scale is \[59\]": {"top_k": 2, "per_expert_scale": np.ones(59, np.float32)},
        "selection_bias is int64": {"top_k": 2, "selection_bias": np.ones(60, np.int64)},
    }
    for message, arguments in refusals.items():
        with pytest.raises(ArgumentError, match=message):
            coterie.route(logits, **arguments)
    with pytest.raises(ArgumentError, match="logits is int32"):
        coterie.route(logits.astype(np.int32), 2)
    with pytest.raises(ArgumentError, match="S >= 4"):
        coterie.gather_topk_weights(logits[0], np.arange(3, dtype=np.uint32), None, 4)
    with pytest.raises(ArgumentError, match="id 60, expected ids from 0 to 59"):
        coterie.gather_topk_weights(logits[0], np.array([60, 1], np.uint32), None, 1)


def test_a_spec_is_the_same_call(rng) -> None:
    ready("numpy", "route")
    logits = floats(rng, (9, 40))
    spec = RouteSpec(4, scaling_factor=2.0)
    by_spec, by_name = coterie.route(logits, spec), coterie.route(logits, 4, scaling_factor=2.0)
    assert isinstance(by_spec, Routing)
    np.testing.assert_array_equal(by_spec.weights, by_name.weights)
    assert by_spec.n_experts == 40
