"""Log-probabilities are the model's own, in float64, whatever was done to choose the token."""

import json

import numpy as np
import pytest

from coterie.runtime import Model, load
from coterie.runtime.logprobs import logprob_of
from coterie.runtime.request import Request
from coterie.runtime.sampling import Sampler
from models import tiny

PROMPT = "def read_lines(path):"


@pytest.fixture(scope="module")
def model() -> Model:
    return load(tiny.checkpoint("qwen3_moe", "4 bits g64"))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    import torch

    return np.asarray(torch.log_softmax(torch.from_numpy(logits.astype(np.float64)), -1))


def test_they_are_the_log_softmax() -> None:
    logits = (np.random.default_rng(0).standard_normal(1000) * 4).astype(np.float32)
    expected = log_softmax(logits)
    order = np.argsort(-expected, kind="stable")
    for n in (0, 1, 5, 1000):
        found = logprob_of(logits, 17, n)
        assert found.token_id == 17
        assert found.logprob == pytest.approx(expected[17], rel=1e-12)
        assert [i for i, _ in found.top] == order[:n].tolist()
        np.testing.assert_allclose([value for _, value in found.top], expected[order[:n]], rtol=1e-12)


def test_equal_ones_come_by_their_ids() -> None:
    logits = np.array([1.0, 2.0, 2.0, 1.0, 2.0, 0.0], np.float32)
    assert [i for i, _ in logprob_of(logits, 0, 2).top] == [1, 2]
    assert [i for i, _ in logprob_of(logits, 0, 4).top] == [1, 2, 4, 0]


@pytest.mark.parametrize("spread", [1e-30, 1.0, 1e4, 3e38])
def test_extreme_logits_give_finite_numbers(spread: float) -> None:
    logits = np.array([-1.0, 0.0, 1.0], np.float32) * np.float32(spread)
    found = logprob_of(logits, 0, 3)
    assert np.isfinite([found.logprob, *(value for _, value in found.top)]).all()
    json.dumps([found.logprob, found.top], allow_nan=False)


def test_bias_penalties_and_temperature_do_not_change_them() -> None:
    logits = np.array([3.0, 1.0, 0.5, -2.0], np.float32)
    expected = log_softmax(logits)
    request = Request(temperature=5.0, logit_bias=((0, -np.inf),), repetition_penalty=3.0, top_k=2, logprobs=2, seed=1)
    sampler = Sampler(request, [1, 2])
    picked = [sampler.pick(logits) for _ in range(8)]
    assert [record.token_id for record in sampler.logprobs] == picked
    assert 0 not in picked
    for record in sampler.logprobs:
        assert record.logprob == pytest.approx(expected[record.token_id], rel=1e-12)
        assert [i for i, _ in record.top] == [0, 1]


def test_a_generation_has_one_record_a_token_and_they_are_those_of_a_whole_pass(model: Model) -> None:
    made = model.generate(PROMPT, max_tokens=10, temperature=6.0, seed=3, logprobs=3)
    assert made.logprobs is not None
    assert [record.token_id for record in made.logprobs] == list(made.token_ids)
    ids = model.tokenizer.encode(PROMPT)
    rows = model.logits([*ids, *made.token_ids])[len(ids) - 1 : -1]
    for row, record in zip(rows, made.logprobs, strict=True):
        assert record.logprob == pytest.approx(log_softmax(row)[record.token_id], abs=1e-3)
        assert len(record.top) == 3
    plain = model.generate(PROMPT, max_tokens=10, temperature=6.0, seed=3)
    assert plain.logprobs is None
    assert plain.token_ids == made.token_ids


def test_a_stream_has_the_records_so_far(model: Model) -> None:
    stream = model.stream(PROMPT, max_tokens=10, logprobs=0)
    next(iter(stream))
    so_far = stream.generation
    assert so_far.logprobs is not None
    assert len(so_far.logprobs) == len(so_far.token_ids) >= 1
    assert so_far.logprobs[0].top == ()
