"""Pieces of a layer that the CPU has in one call, beside the same pieces put together from verbs in float64."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from coterie import Experts
from coterie.backends.cpu.decoder import verbs
from coterie.backends.cpu.decoder.branches import MOST_ROWS
from coterie.errors import NumericError
from coterie.formats import Format, Packed
from coterie.formats.codec import quantize
from coterie.models import launches
from coterie.models.architecture import Attention, Rope
from coterie.models.grouped import HeadWeights, attend_rows
from coterie.models.rows import rows_of
from coterie.ops import RouteSpec
from coterie.runtime.cache import LayerStore
from layers import experts_of
from models.plain_backend import PlainBackend
from tolerance import assert_close, bound

PLAIN = PlainBackend()
EPS = 1e-5
FOUR_BITS = Format.resolve("affine", 4, 32)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def wide(array: np.ndarray | None) -> Any:
    return None if array is None else array.astype(np.float64)


# The residual stream -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_befores", [0, 1, 3])
@pytest.mark.parametrize(
    "fields", ["", "after", "scalar", "second", "first norm second", "first norm second norm after scalar"]
)
@pytest.mark.parametrize(("n_rows", "size"), [(1, 96), (4, 1), (7, 2816), (40, 1000)])
def test_branches_join_the_residual_stream(
    rng: np.random.Generator, fields: str, n_befores: int, n_rows: int, size: int
) -> None:
    h, first, second = (normal(rng, n_rows, size) for _ in range(3))
    norms = [normal(rng, size) for _ in range(7)]
    branches = [(first, norms[0] if "first norm" in fields else None)]
    if "second" in fields:
        branches.append((second, norms[1] if "second norm" in fields else None))
    after, scalar = norms[2] if "after" in fields else None, norms[3][:1] if "scalar" in fields else None
    befores = norms[4 : 4 + n_befores]
    backend = verbs()
    for _ in range(2):
        found, normed = launches.add_norms(backend, h, branches, after, scalar, befores, EPS)
        exact, exactly_normed = launches.add_norms(
            PLAIN, wide(h), [(wide(y), wide(w)) for y, w in branches], wide(after), wide(scalar), befores, EPS
        )
        assert len(normed) == n_befores
        for ours, theirs in zip((found, *normed), (exact, *exactly_normed), strict=True):
            assert_close(ours, theirs, bound("float32", size, size, size))
        # The same weights again, and other rows.
        h, first = first, h
        branches[0] = (first, branches[0][1])


def test_the_residual_stream_of_other_weights() -> None:
    backend, h = verbs(), np.ones((1, 64), np.float32)
    for factor in range(1, 4):
        weight = np.full(64, factor, np.float32)
        found, (normed,) = backend.add_norms(h, [(h, None)], None, None, [weight], EPS)
        np.testing.assert_allclose(found, 2)
        np.testing.assert_allclose(normed, factor, rtol=1e-5)


# Heads ---------------------------------------------------------------------------------------------------------------

ROPE = Rope(tuple(float(np.float32(1e4 ** -(i / 8))) for i in range(8)))
SPEC = Attention(n_heads=4, n_kv_heads=2, head_dim=16, rope=ROPE, scale=0.25)
WINDOW = replace(SPEC, window=9)
CASES: dict[str, tuple[Attention, dict[str, bool]]] = {
    "plain": (SPEC, {}),
    "sliding window with sinks": (WINDOW, {"sinks": True}),
    "neighbours are pairs": (replace(SPEC, rope=replace(ROPE, interleaved=True, amplitude=1.5)), {}),
    "part of a head turns, heads of 20": (replace(SPEC, head_dim=20), {}),
    "limits, no norms": (replace(SPEC, clip=0.7), {"norms": False}),
    "values are normed, one key-value head for 17": (
        replace(SPEC, n_heads=17, n_kv_heads=1, normalize_values=True),
        {},
    ),
    "keys serve as values": (replace(SPEC, normalize_values=True), {"shared": True}),
    "a norm over all heads, heads of 80": (replace(SPEC, head_dim=80, n_heads=2, norm_span="projection"), {}),
}
PLANS = ([[12], [1], [3], [1]], [[1, 8, 3], [1, 1, 1], [2, 0, 9], [70, 1, 1]], [[5], [4], [5], [1], [1], [5], [1], [3]])
"""How many tokens each sequence brings in each pass; 0 leaves it out. In the last, a window's store wraps around."""


class Cache:
    """The cache of a decoder of one layer."""

    def __init__(self, spec: Attention, limit: int) -> None:
        self.layers = [LayerStore(spec.n_kv_heads, spec.head_dim, spec.head_dim, limit)]
        self.length = 0


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("plan", PLANS)
def test_heads_of_prompts_steps_and_both_together(
    rng: np.random.Generator, name: str, plan: Sequence[Sequence[int]]
) -> None:
    spec, options = CASES[name]
    widths = (spec.n_heads, spec.n_kv_heads) if spec.norm_span == "projection" else (1, 1)
    norms = [normal(rng, n * spec.head_dim) if options.get("norms", True) else None for n in widths]
    vectors = HeadWeights(*norms, normal(rng, spec.n_heads) if options.get("sinks") else None)
    frequencies = {spec.rope: np.array(spec.rope.frequencies, np.float32)}
    most = max(map(max, plan))
    limit = sum(map(max, plan)) if spec.window is None else spec.window + most - 1
    ours, theirs = ([Cache(spec, limit) for _ in plan[0]] for _ in range(2))
    backend, kv = verbs(), spec.n_kv_heads * spec.head_dim
    for counts in plan:
        q, k, v = (normal(rng, sum(counts), size) for size in (spec.n_heads * spec.head_dim, kv, kv))
        v = k if options.get("shared") else v
        results = []
        for computes, caches, cast in ((PLAIN, theirs, wide), (backend, ours, lambda x: x)):
            pairs = [([0] * n, cache) for n, cache in zip(counts, caches, strict=True) if n]
            rows = rows_of(computes, pairs, frequencies)  # type: ignore[arg-type]
            new = (cast(k), cast(v)) if v is not k else (cast(k),) * 2
            results.append(attend_rows(computes, cast(q), new, spec, vectors, rows, 0, 1e-6))  # type: ignore[arg-type]
            for cache, n in zip(caches, counts, strict=True):
                cache.length += n
        exact, found = results
        assert_close(found, exact, 1e-5)


def test_heads_that_read_what_another_layer_has_stored(rng: np.random.Generator) -> None:
    vectors, frequencies = HeadWeights(None, None, None), {ROPE: np.array(ROPE.frequencies, np.float32)}
    results = []
    q, k, v = normal(rng, 6, 64), normal(rng, 6, 32), normal(rng, 6, 32)
    for computes, cast in ((PLAIN, wide), (verbs(), lambda x: x.copy())):
        cache = Cache(SPEC, 6)
        rows = rows_of(computes, [([0] * 6, cache)], frequencies)  # type: ignore[arg-type, list-item]
        attend_rows(computes, cast(q), (cast(k), cast(v)), SPEC, vectors, rows, 0, 1e-6)  # type: ignore[arg-type]
        results.append(attend_rows(computes, cast(-q), None, SPEC, vectors, rows, 0, 1e-6))  # type: ignore[arg-type]
    assert_close(results[1], results[0], 1e-5)


# Branches ------------------------------------------------------------------------------------------------------------


def matrix(rng: np.random.Generator, n_rows: int, n_inputs: int, fmt: Format | None) -> Packed | np.ndarray:
    whole = (rng.standard_normal((n_rows, n_inputs)) * n_inputs**-0.5).astype(np.float32)
    return whole if fmt is None else Packed(*quantize(whole, fmt), fmt.bits, fmt.group_size, fmt.mode)


@pytest.mark.parametrize("n_rows", [1, 3, MOST_ROWS, MOST_ROWS + 1])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("fmt", [FOUR_BITS, None], ids=["4 bits", "plain"])
@pytest.mark.parametrize("width", [64, 96, 41])
def test_a_dense_mlp(rng: np.random.Generator, n_rows: int, activation: str, fmt: Format | None, width: int) -> None:
    fmt = None if width % 32 else fmt
    gate, up, down = matrix(rng, width, 128, fmt), matrix(rng, width, 128, fmt), matrix(rng, 64, width, fmt)
    backend = verbs("exact")
    for _ in range(2):
        x = normal(rng, n_rows, 128)
        found = launches.mlp(backend, x, gate, up, down, activation)
        assert_close(found, launches.mlp(PLAIN, wide(x), gate, up, down, activation), bound("float32", 128, width))


@pytest.mark.parametrize("n_rows", [1, 2, MOST_ROWS, MOST_ROWS + 3])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("biased", [False, True])
def test_routed_experts(rng: np.random.Generator, n_rows: int, scoring: str, biased: bool) -> None:
    n_experts, hidden, inner = 8, 128, 64
    experts = experts_of(rng, "numpy", n_experts, hidden, inner, biases=biased)
    spec = RouteSpec(
        top_k=3,
        scoring=scoring,  # type: ignore[arg-type]
        per_expert_scale=np.abs(normal(rng, n_experts)) + 0.5 if biased else None,
        selection_bias=normal(rng, n_experts) if scoring == "sigmoid" else None,
        n_groups=2 if scoring == "sigmoid" else 1,
        top_groups=1,
        scaling_factor=1.5,
    )
    router = matrix(rng, n_experts, hidden, FOUR_BITS if biased else None)
    bias = normal(rng, n_experts) if biased else None
    routed, backend = launches.RoutedExperts(router, bias, spec, experts), verbs("exact")
    for _ in range(2):
        x, seen = normal(rng, n_rows, hidden), normal(rng, n_rows, hidden)
        found = launches.routed_experts(backend, x, seen, routed, 0, None)
        exact = launches.routed_experts(PLAIN, wide(x), wide(seen), routed, 0, None)
        assert_close(found, exact, bound("float32", hidden, inner, 3))


def test_rows_that_crowd_and_rows_that_spread(rng: np.random.Generator) -> None:
    """With many rows an expert a layer takes fewer phases; those of the call before must not run again."""
    experts, router = experts_of(rng, "numpy", 4, 64, 64), matrix(rng, 4, 64, None)
    routed, backend = launches.RoutedExperts(router, None, RouteSpec(top_k=2), experts), verbs("exact")
    spread, results = normal(rng, MOST_ROWS, 64), []
    for seen in (spread, np.repeat(spread[:1], MOST_ROWS, 0), spread):
        x = normal(rng, MOST_ROWS, 64)
        exact = launches.routed_experts(PLAIN, wide(x), wide(seen), routed, 0, None)
        results.append((launches.routed_experts(backend, x, seen, routed, 0, None), exact))
    for found, exact in results:
        assert_close(found, exact, bound("float32", 64, 64, 2))


def test_rows_that_cannot_be_routed_are_an_error(rng: np.random.Generator) -> None:
    experts, router = experts_of(rng, "numpy", 4, 64, 64), matrix(rng, 4, 64, None)
    routed, x = launches.RoutedExperts(router, None, RouteSpec(top_k=2), experts), normal(rng, 3, 64)
    x[1, 5] = np.nan
    with pytest.raises(NumericError, match="token 1"):
        launches.routed_experts(verbs(), np.ones_like(x), x, routed, 0, None)
    assert np.isfinite(launches.routed_experts(verbs(), np.ones_like(x), np.ones_like(x), routed, 0, None)).all()


def test_experts_without_weight_give_zeros(rng: np.random.Generator) -> None:
    experts: Experts = experts_of(rng, "numpy", 4, 64, 64)
    spec = RouteSpec(top_k=2, per_expert_scale=np.zeros(4, np.float32))
    routed, x = launches.RoutedExperts(matrix(rng, 4, 64, None), None, spec, experts), normal(rng, 2, 64)
    assert not launches.routed_experts(verbs(), x, x, routed, 0, None).any()
