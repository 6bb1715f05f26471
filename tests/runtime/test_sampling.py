"""Sampling: greedy, restricted, seeded, and never from logits that are not numbers."""

import numpy as np
import pytest

from coterie.errors import NumericError
from coterie.runtime.request import Request
from coterie.runtime.sampling import Sampler, candidates

LOGITS = np.array([0.5, 2.0, -1.0, 2.0, 1.0, -30.0], np.float32)


def shares_of(request: Request, logits: np.ndarray = LOGITS) -> dict[int, float]:
    ids, shares = candidates(logits, request)
    return dict(zip(ids.tolist(), (shares / shares.sum()).tolist(), strict=True))


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max())
    return e / e.sum()


def test_greedy_takes_the_first_of_the_highest() -> None:
    assert Sampler(Request()).pick(LOGITS) == 1
    assert Sampler(Request(top_k=1, temperature=1.0)).pick(LOGITS) == 1


def test_shares_are_the_softmax_at_the_temperature() -> None:
    for temperature in (0.3, 1.0, 7.0):
        found = shares_of(Request(temperature=temperature))
        np.testing.assert_allclose(list(found.values()), softmax(LOGITS.astype(float) / temperature), rtol=1e-12)


@pytest.mark.parametrize(
    ("top_k", "kept"), [(0, [0, 1, 2, 3, 4, 5]), (1, [1]), (2, [1, 3]), (3, [1, 3, 4]), (6, range(6))]
)
def test_top_k(top_k: int, kept: list[int]) -> None:
    found = shares_of(Request(temperature=2.0, top_k=top_k))
    assert sorted(found) == list(kept)
    expected = softmax(LOGITS[list(kept)].astype(float) / 2)
    np.testing.assert_allclose([found[i] for i in kept], expected, rtol=1e-12)


def test_top_k_breaks_ties_by_the_lowest_id() -> None:
    assert sorted(shares_of(Request(temperature=1.0, top_k=3), np.zeros(10, np.float32))) == [0, 1, 2]


@pytest.mark.parametrize("top_p", [1e-9, 0.2, 0.34, 0.5, 0.68, 0.9, 0.999999, 1 - 1e-12])
def test_top_p_keeps_the_fewest_that_hold_the_share(top_p: float) -> None:
    found = shares_of(Request(temperature=1.0, top_p=top_p))
    probabilities = softmax(LOGITS.astype(float))
    order = np.argsort(-probabilities, kind="stable")
    count = 1 + int(np.searchsorted(np.cumsum(probabilities[order]), top_p))
    assert sorted(found) == sorted(order[:count].tolist())


def test_top_p_counts_within_top_k() -> None:
    # Of the two best, with half of the share each, the first alone holds 0.5 of what top_k left.
    assert sorted(shares_of(Request(temperature=1.0, top_k=2, top_p=0.5))) == [1]
    assert sorted(shares_of(Request(temperature=1.0, top_k=2, top_p=0.51))) == [1, 3]


def test_top_p_of_a_large_vocabulary_is_the_same_as_sorting_everything() -> None:
    rng = np.random.default_rng(5)
    logits = (rng.standard_normal(50_000) * 3).astype(np.float32)
    found = shares_of(Request(temperature=0.8, top_p=0.9), logits)
    probabilities = softmax(logits.astype(float) / 0.8)
    order = np.argsort(-probabilities, kind="stable")
    count = 1 + int(np.searchsorted(np.cumsum(probabilities[order]), 0.9))
    assert set(found) == set(order[:count].tolist())


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e300])
def test_extreme_temperatures_are_defined(temperature: float) -> None:
    found = shares_of(Request(temperature=temperature))
    assert np.isfinite(list(found.values())).all()
    if temperature < 1:
        assert found[1] == found[3] == 0.5
    else:
        np.testing.assert_allclose(list(found.values()), 1 / 6)


def test_draws_follow_the_shares() -> None:
    sampler, n = Sampler(Request(temperature=1.0, seed=3)), 20_000
    counts = np.bincount([sampler.pick(LOGITS) for _ in range(n)], minlength=len(LOGITS))
    expected = softmax(LOGITS.astype(float))
    # Five standard deviations of a binomial count.
    assert (np.abs(counts - n * expected) < 5 * np.sqrt(n * expected * (1 - expected)) + 1).all()


def test_a_seed_fixes_the_draws_and_none_does_not() -> None:
    logits = np.zeros(1000, np.float32)

    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(Request(temperature=1.0, seed=seed))
        return [sampler.pick(logits) for _ in range(20)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(None) != draws(None)
    assert draws(2**64 - 1) == draws(2**64 - 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "request_", [Request(), Request(temperature=1.0), Request(temperature=1.0, top_k=2, top_p=0.5)]
)
def test_logits_that_are_not_finite_are_an_error(bad: float, request_: Request) -> None:
    logits = LOGITS.copy()
    logits[4] = bad
    with pytest.raises(NumericError) as refused:
        Sampler(request_).pick(logits)
    assert refused.value.code == "logits_not_finite"
    assert "1 of 6" in str(refused.value)
