"""Bias, penalties and restrictions against the processors of transformers and mlx-lm, alone and in a row."""

from typing import Any

import numpy as np
import pytest

from coterie.runtime.penalties import Penalties
from coterie.runtime.request import Request
from coterie.runtime.sampling import Sampler, candidates

V = 300
PROMPT = [3, 7, 7, 250, 0]
TEXT = [7, 9, 9, 9, 299, 12]
BIAS = ((9, 2.5), (11, -4.0), (250, -np.inf), (299, 0.0))


@pytest.fixture
def logits(rng: np.random.Generator) -> np.ndarray:
    return (rng.standard_normal(V) * 3).astype(np.float32)


def applied(request: Request, logits: np.ndarray) -> np.ndarray:
    penalties = Penalties(request, PROMPT)
    for token_id in TEXT:
        penalties.take(token_id)
    return penalties.apply(logits)


def by_transformers(processors: list[Any], logits: np.ndarray, ids: list[int]) -> np.ndarray:
    import torch
    from transformers import LogitsProcessorList

    made: np.ndarray = LogitsProcessorList(processors)(torch.tensor([ids]), torch.from_numpy(logits.copy())[None])
    return np.asarray(made)[0]


def by_mlx(options: dict[str, Any], logits: np.ndarray, ids: list[int]) -> np.ndarray:
    import mlx.core as mx
    from mlx_lm.sample_utils import make_logits_processors

    scores = mx.array(logits)[None]
    for processor in make_logits_processors(**options):
        scores = processor(mx.array(ids), scores)
    return np.array(scores)[0]


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal to what f32 can tell; the same tokens are banned."""
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_repetition_is_that_of_transformers_and_mlx(logits: np.ndarray, penalty: float) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    found = applied(Request(repetition_penalty=penalty), logits)
    assert_close(found, by_transformers([RepetitionPenaltyLogitsProcessor(penalty)], logits, [*PROMPT, *TEXT]))
    assert_close(found, by_mlx({"repetition_penalty": penalty}, logits, [*PROMPT, *TEXT]))
    assert not np.array_equal(found, logits)


@pytest.mark.parametrize("penalty", [-1.5, 0.75, 40.0])
@pytest.mark.parametrize("kind", ["presence_penalty", "frequency_penalty"])
def test_presence_and_frequency_are_those_of_mlx_over_the_text(logits: np.ndarray, kind: str, penalty: float) -> None:
    options: dict[str, Any] = {kind: penalty}
    found = applied(Request(**options), logits)
    assert_close(found, by_mlx(options, logits, TEXT))
    assert found[3] == logits[3]
    assert found[9] != logits[9]


def test_bias_is_that_of_transformers_and_mlx(logits: np.ndarray) -> None:
    from transformers import SequenceBiasLogitsProcessor

    found = applied(Request(logit_bias=BIAS), logits)
    as_sequences = {(token_id,): float(bias) for token_id, bias in BIAS}
    assert_close(found, by_transformers([SequenceBiasLogitsProcessor(as_sequences)], logits, TEXT))
    assert_close(found, by_mlx({"logit_bias": dict(BIAS)}, logits, TEXT))
    assert found[250] == -np.inf


def test_the_order_is_bias_repetition_presence_frequency(logits: np.ndarray) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor

    logits[9] = -1.0  # changes its sign by the bias, so the penalty divides it only if the bias came first
    request = Request(logit_bias=BIAS, repetition_penalty=1.7, presence_penalty=0.4, frequency_penalty=0.3)
    as_sequences = {(token_id,): float(bias) for token_id, bias in BIAS}
    first = [SequenceBiasLogitsProcessor(as_sequences), RepetitionPenaltyLogitsProcessor(1.7)]
    expected = by_transformers(first, logits, [*PROMPT, *TEXT])
    last = by_mlx({"presence_penalty": 0.4, "frequency_penalty": 0.3}, expected, TEXT)
    assert_close(applied(request, logits), last)


@pytest.mark.parametrize("min_p", [0.0, 1e-4, 0.05, 0.3, 1.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (40, 1.0), (0, 0.9), (25, 0.8)])
def test_what_may_be_drawn_is_what_transformers_leaves(
    logits: np.ndarray, min_p: float, top_k: int, top_p: float
) -> None:
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers: list[Any] = [TemperatureLogitsWarper(0.7)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    expected = np.exp(by_transformers(warpers, logits, TEXT).astype(float))
    ids, shares = candidates(logits, Request(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p))
    found = np.zeros(V)
    found[ids] = shares / shares.sum()
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-5, atol=0)


def test_min_p_is_that_of_mlx(logits: np.ndarray) -> None:
    import mlx.core as mx
    from mlx_lm.sample_utils import apply_min_p

    for min_p in (1e-5, 0.02, 0.2, 1.0):
        kept = np.flatnonzero(np.isfinite(np.array(apply_min_p(mx.array(logits)[None], min_p))[0]))
        assert candidates(logits, Request(temperature=1.0, min_p=min_p))[0].tolist() == kept.tolist()


def test_a_sampler_counts_what_it_picked() -> None:
    logits = np.array([4.0, 3.0, 2.0, 1.0], np.float32)

    def picks(n: int = 6, prompt: tuple[int, ...] = (), **options: Any) -> list[int]:
        sampler = Sampler(Request(**options), prompt)
        return [sampler.pick(logits) for _ in range(n)]

    assert picks() == [0] * 6
    assert picks(presence_penalty=1.5) == [0, 1, 0, 0, 0, 0]
    assert picks(frequency_penalty=1.5) == [0, 1, 0, 2, 1, 0]
    assert picks(frequency_penalty=1.5, prompt=(0, 0, 0)) == [0, 1, 0, 2, 1, 0]
    assert picks(repetition_penalty=10.0) == [0, 1, 2, 3, 0, 0]
    assert picks(repetition_penalty=10.0, prompt=(0, 2)) == [1, 3, 0, 0, 0, 0]
    assert picks(logit_bias=((0, -np.inf), (3, 2.5))) == [3] * 6


def test_a_banned_token_is_never_drawn_even_where_nothing_else_is_likely() -> None:
    logits = np.array([100.0, -100.0, 100.0, 0.0], np.float32)
    bans = tuple((i, -np.inf) for i in (0, 2, 3))
    for options in ({}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 1.0}, {"repetition_penalty": 1e6}):
        sampler = Sampler(Request(temperature=1.0, logit_bias=bans, seed=0, **options))
        assert {sampler.pick(logits) for _ in range(200)} == {1}


def test_the_largest_shifts_stay_finite() -> None:
    logits = np.array([3e38, -3e38, 1.0], np.float32)
    options: dict[str, Any] = {"presence_penalty": 1e6, "frequency_penalty": -1e6, "logit_bias": ((2, 1e6),)}
    for penalty in (1e-6, 1e6):
        request = Request(temperature=1e-300, repetition_penalty=penalty, **options)
        sampler = Sampler(request, [0, 1, 2])
        for _ in range(5):
            assert sampler.pick(logits) in (0, 1, 2)
        assert np.isfinite(Penalties(request, [0, 1, 2]).apply(logits)).all()


def test_the_logits_of_the_caller_stay_as_they_are(logits: np.ndarray) -> None:
    before = logits.copy()
    applied(Request(logit_bias=BIAS, repetition_penalty=2.0, presence_penalty=1.0), logits)
    assert np.array_equal(before, logits)
