"""Recording a text's routing, in windows too, and forcing it through a model again."""

import dataclasses

import numpy as np
import pytest

from coterie.errors import ArgumentError, CapacityError, RequestError, UnsupportedError
from coterie.inspect import Report, Trace, read, record, recording, replay, save
from coterie.inspect.recording import router_entropy
from coterie.ops import RouteSpec, Routing
from coterie.runtime import Model, load
from models import tiny

IDS = tiny.token_ids(40)


@pytest.fixture(scope="module", params=["qwen3_moe", "gemma4"])
def model(request: pytest.FixtureRequest) -> Model:
    return load(tiny.checkpoint(request.param, "4 bits g64"))


@pytest.fixture(scope="module")
def qwen() -> Model:
    return load(tiny.checkpoint("qwen3_moe", "4 bits g64"))


def test_under_its_own_recorded_routing_the_logits_are_the_same_bits(model: Model) -> None:
    np.testing.assert_array_equal(replay(model, record(model, IDS)), model.logits(IDS))


def test_windows_are_read_one_by_one(model: Model) -> None:
    trace = record(model, IDS, window=16)
    assert (trace.window, trace.n_windows) == (16, 3)
    alone = [record(model, IDS[begin : begin + 16]) for begin in (0, 16, 32)]
    for place, layer in enumerate(trace.layers):
        for name in ("ids", "weights", "entropy"):
            parts = [getattr(part.layers[place], name) for part in alone]
            np.testing.assert_array_equal(getattr(layer, name), np.concatenate(parts))
    logits = np.concatenate([model.logits(IDS[begin : begin + 16]) for begin in (0, 16, 32)])
    np.testing.assert_array_equal(replay(model, trace), logits)


def test_the_forced_routing_is_used_and_not_the_routers_own(qwen: Model) -> None:
    trace = record(qwen, IDS)
    first = trace.layers[0]
    turned = dataclasses.replace(first, ids=((first.ids + 1) % 8).astype(np.uint32))
    forced = dataclasses.replace(trace, layers=(turned, *trace.layers[1:]))
    seen: list[np.ndarray] = []

    class Turn:
        def routed(self, layer: int, logits: np.ndarray, spec: RouteSpec, routing: Routing) -> Routing:
            assert (layer, spec.top_k, routing.ids.shape) == (trace.layers[len(seen)].layer, 2, (len(IDS), 2))
            kept = trace.layers[len(seen)]
            ids = (kept.ids + 1) % 8 if not seen else kept.ids
            seen.append(logits)
            return Routing(ids.astype(np.uint32), kept.weights, 8)

    np.testing.assert_array_equal(replay(qwen, forced), qwen.logits(IDS, observer=Turn()))
    assert np.abs(replay(qwen, forced) - qwen.logits(IDS)).max() > 0.01


def test_another_model_is_refused_unless_it_is_allowed_and_fits(qwen: Model) -> None:
    trace = record(qwen, IDS)
    finer = load(tiny.checkpoint("qwen3_moe", "8 bits g64"))
    with pytest.raises(ArgumentError, match="another one") as refusal:
        replay(finer, trace)
    assert refusal.value.code == "trace_model"
    forced = replay(finer, trace, any_model=True)
    assert 0 < np.linalg.norm(forced - finer.logits(IDS)) < np.linalg.norm(forced)
    with pytest.raises(ArgumentError, match=r"no such layer|experts"):
        replay(load(tiny.checkpoint("qwen3_moe_tied", "4 bits g64")), trace, any_model=True)


def test_a_text_is_what_the_tokenizer_makes_of_it(qwen: Model) -> None:
    text = "def f(x):\n    return 数学"
    trace = record(qwen, text, name="tiny")
    assert trace.tokens.tolist() == qwen.tokenizer.encode(text)
    assert trace.model == "tiny"
    assert trace.fingerprint == qwen.fingerprint
    assert set(trace.texts) == set(trace.tokens.tolist())
    assert "def" in trace.text_of(0)


def test_one_token(model: Model) -> None:
    trace = record(model, [7])
    report = Report.of(trace)
    for layer in report.layers:
        assert sorted(set(layer.counts.tolist())) == [0, 1]
        assert layer.counts.sum() == layer.source.top_k
        assert layer.load_entropy == pytest.approx(np.log2(layer.source.top_k))
        assert len(layer.unused) == layer.n_experts - layer.source.top_k


@pytest.mark.parametrize("text", ["", []])
def test_an_empty_text_is_refused_by_name(qwen: Model, text: str | list[int]) -> None:
    with pytest.raises(RequestError, match="empty") as refusal:
        record(qwen, text)
    assert refusal.value.code == "request_empty"


@pytest.mark.parametrize("window", [0, -1, 4097])
def test_windows_that_cannot_be_are_refused(qwen: Model, window: int) -> None:
    with pytest.raises(RequestError, match="window"):
        record(qwen, IDS, window=window)


def test_a_model_without_experts_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="no layer with experts"):
        record(load(tiny.checkpoint("gemma4_dense", "plain")), IDS)


def test_a_text_too_long_for_memory_is_refused(qwen: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "MAX_BYTES", 40 * 2 * (8 * 2 + 4) - 1)
    record(qwen, IDS[:39])
    with pytest.raises(CapacityError, match="take a part of the text"):
        record(qwen, IDS)


def test_progress_counts_tokens_to_the_end(qwen: Model) -> None:
    steps: list[tuple[int, int]] = []
    record(qwen, IDS, window=16, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(16, 40), (32, 40), (40, 40)]


def test_a_trace_survives_its_file(model: Model, tmp_path: object) -> None:
    path = f"{tmp_path}/a.trace"
    trace = record(model, IDS)
    save(trace, path)
    again = read(path)
    same(trace, again)
    np.testing.assert_array_equal(replay(model, again), model.logits(IDS))


def same(one: Trace, other: Trace) -> None:
    np.testing.assert_array_equal(one.tokens, other.tokens)
    assert dict(one.texts) == dict(other.texts)
    assert (one.model, one.fingerprint, one.n_layers, one.window) == (
        other.model,
        other.fingerprint,
        other.n_layers,
        other.window,
    )
    for mine, theirs in zip(one.layers, other.layers, strict=True):
        assert (mine.layer, mine.n_experts) == (theirs.layer, theirs.n_experts)
        for name in ("ids", "weights", "entropy"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


def test_router_entropy_in_bits(rng: np.random.Generator) -> None:
    even = np.zeros((1, 16), np.float32)
    sure = np.array([[500.0] + [0.0] * 15], np.float32)
    for scoring, expected in (("softmax", [4.0, 0.0]), ("sigmoid", [4.0, None])):
        spec = RouteSpec(2, scoring=scoring)  # type: ignore[arg-type]
        assert router_entropy(even, spec)[0] == pytest.approx(expected[0])
        if expected[1] is not None:
            assert router_entropy(sure, spec)[0] == pytest.approx(expected[1], abs=1e-9)
    z = rng.standard_normal((5, 6))
    for scoring in ("softmax", "sigmoid"):
        scores = np.exp(z) if scoring == "softmax" else 1 / (1 + np.exp(-z))
        p = scores / scores.sum(1, keepdims=True)
        found = router_entropy(z.astype(np.float32), RouteSpec(2, scoring=scoring))  # type: ignore[arg-type]
        np.testing.assert_allclose(found, -(p * np.log2(p)).sum(1), rtol=1e-5)
