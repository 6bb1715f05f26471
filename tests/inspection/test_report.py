"""The report's numbers on synthetic traces, against plain loops and against every possible choice written out."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest

from coterie.errors import ArgumentError, CoterieError
from coterie.inspect import LayerTrace, Report
from coterie.inspect import report as report_module
from coterie.inspect.independence import expected_pairs
from inspection.traces import layer, recomputed, trace

SHAPES = [
    (1, 1, 1),
    (1, 8, 2),
    (1, 8, 8),
    (50, 2, 1),
    (300, 8, 1),
    (300, 8, 8),
    (300, 16, 4),
    (40, 128, 8),
    (200, 40, 17),
]


@pytest.mark.parametrize(("n_tokens", "n_experts", "k"), SHAPES)
def test_sums_and_counts(rng: np.random.Generator, n_tokens: int, n_experts: int, k: int) -> None:
    made = trace(rng, layer(rng, 3, n_tokens, n_experts, k), n_layers=9)
    (found,) = Report.of(made).layers
    source = found.source
    counted = recomputed(made.tokens.tolist(), source.ids.tolist(), source.weights.tolist(), n_experts)
    assert found.counts.tolist() == counted["load"]
    assert found.counts.sum() == n_tokens * k
    assert found.load_entropy == pytest.approx(counted["entropy"], abs=1e-9)
    assert found.relative.mean() == pytest.approx(1)
    assert found.unused == [e for e in range(n_experts) if counted["load"][e] == 0]
    np.testing.assert_allclose(found.weights, counted["weight"], rtol=1e-6)
    assert found.router_entropy == pytest.approx(sum(source.entropy.tolist()) / n_tokens)
    seen, expected = found.coactivation()
    assert {(i, j): seen[i, j] for i, j in zip(*np.nonzero(np.triu(seen)), strict=True)} == counted["pairs"]
    np.testing.assert_array_equal(seen, seen.T)
    np.testing.assert_allclose(expected.sum(1), found.counts * (k - 1), atol=1e-6 * n_tokens)
    for expert in range(n_experts):
        assert {t.token: t.n for t in found.tokens.top(expert, "count", 99)} == counted["taken"][expert]


def test_layers_may_differ_in_experts_and_in_k(rng: np.random.Generator) -> None:
    layers = (layer(rng, 1, 60, 8, 2), layer(rng, 4, 60, 32, 6, unused=(3, 5)), layer(rng, 5, 60, 4, 1))
    report = Report.of(trace(rng, *layers, n_layers=7))
    assert [(found.layer, found.n_experts, found.source.top_k) for found in report.layers] == [
        (1, 8, 2),
        (4, 32, 6),
        (5, 4, 1),
    ]
    assert {3, 5} <= set(report.layer(4).unused)
    assert report.layer(5).pairs == ()
    with pytest.raises(ArgumentError, match="layer 2 has no experts"):
        report.layer(2)


@pytest.mark.parametrize(("E", "k"), [(4, 2), (5, 3), (6, 5), (7, 2), (6, 4)])
def test_pairs_by_loads_alone_agree_with_every_choice_written_out(rng: np.random.Generator, E: int, k: int) -> None:
    """The law of the module's text, summed over all sets of k experts, gives these loads and these pairs."""
    w = np.exp(rng.standard_normal(E) * 1.5)
    choices = list(combinations(range(E), k))
    chance = np.array([np.prod(w[list(choice)]) for choice in choices])
    chance /= chance.sum()
    loads, pairs = np.zeros(E), np.zeros((E, E))
    for choice, p in zip(choices, chance, strict=True):
        loads[list(choice)] += p
        for i, j in combinations(choice, 2):
            pairs[i, j] += p
            pairs[j, i] += p
    n = 10**9  # so many tokens that rounding the loads to whole ones does not show
    counts = np.round(loads * n).astype(np.int64)
    np.testing.assert_allclose(expected_pairs(counts, n, k) / n, pairs, atol=1e-7)


def test_independent_choices_have_no_lift_and_uniform_ones_the_known_number() -> None:
    n, E, k = 1000, 10, 4
    expected = expected_pairs(np.full(E, n * k // E), n, k)
    off = expected[~np.eye(E, dtype=bool)]
    np.testing.assert_allclose(off, n * k * (k - 1) / (E * (E - 1)))


def test_an_expert_that_every_token_takes_is_no_news(rng: np.random.Generator) -> None:
    n, E = 200, 6
    others = np.argsort(rng.random((n, E - 1)), axis=1)[:, :2] + 1
    ids = np.concatenate((np.zeros((n, 1), int), others), axis=1).astype(np.uint32)
    source = LayerTrace(0, E, ids, np.ones(ids.shape, np.float32), np.zeros(n, np.float32))
    (found,) = Report.of(trace(rng, source)).layers
    seen, expected = found.coactivation()
    np.testing.assert_allclose(expected[0], seen[0])
    assert found.partners(0, 5) == []


@pytest.mark.parametrize("skew", [0.0, 1.0, 4.0, 9.0])
@pytest.mark.parametrize(("E", "k", "n"), [(16, 4, 7), (64, 8, 500), (256, 8, 3000), (30, 29, 100), (512, 10, 64)])
def test_expected_pairs_add_up_for_any_loads(rng: np.random.Generator, skew: float, E: int, k: int, n: int) -> None:
    z = rng.standard_normal(E) * skew + rng.gumbel(size=(n, E))
    counts = np.bincount(np.argsort(-z, axis=1)[:, :k].ravel(), minlength=E)
    expected = expected_pairs(counts, n, k)
    np.testing.assert_allclose(expected.sum(1), counts * (k - 1), atol=1e-6 * n)
    assert expected.min() >= 0
    assert (expected <= np.minimum(counts[:, None], counts) + 1e-6 * n).all()


def test_top_tokens_by_lift_need_enough_occurrences() -> None:
    tokens = np.array([0] * 20 + [1] * 4 + [2] * 16, np.uint32)
    chosen = np.array([0] * 10 + [1] * 10 + [0] * 4 + [1] * 16)[:, None].astype(np.uint32)
    source = LayerTrace(0, 2, chosen, np.ones((40, 1), np.float32), np.zeros(40, np.float32))
    made = dataclasses.replace(trace(np.random.default_rng(0), source), tokens=tokens, texts={0: "a", 1: "b", 2: "c"})
    (found,) = Report.of(made).layers
    assert [(t.token, t.n, t.of) for t in found.tokens.top(0, "count", 9)] == [(0, 10, 20), (1, 4, 4)]
    assert [t.token for t in found.tokens.top(0, "lift", 9, 1)] == [1, 0]
    assert [t.token for t in found.tokens.top(0, "lift", 9, 5)] == [0]
    assert found.tokens.top(0, "lift", 9, 1)[0].lift == pytest.approx(1 / (14 / 40))
    assert found.tokens.top(0, "count", 1)[0].lift == pytest.approx(0.5 / (14 / 40))


@pytest.mark.parametrize("broken", ["together", "expected_pairs"])
def test_sums_that_do_not_add_up_stop_the_report(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    right = getattr(report_module, broken)

    def wrong(*arguments: object) -> np.ndarray:
        out = right(*arguments)
        out[0, 1] += 1
        return out

    monkeypatch.setattr(report_module, broken, wrong)
    with pytest.raises(CoterieError, match=r"pairs do not add up to 50 tokens with 2 experts each") as refusal:
        Report.of(trace(rng, layer(rng, 0, 50, 8, 2)))
    assert refusal.value.code == "inconsistent"


def test_nonsense_is_refused(rng: np.random.Generator) -> None:
    made = trace(rng, layer(rng, 0, 5, 4, 2))
    with pytest.raises(ArgumentError, match="least is 0"):
        Report.of(made, least=0)
    with pytest.raises(ArgumentError, match="expert 4 of layer 0"):
        Report.of(made).layer(0).check_expert(4)
