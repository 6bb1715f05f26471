"""What an observer of the routing sees, and what the decoder does with the routing that it hands back."""

from typing import Any

import numpy as np
import pytest

from coterie.models.fingerprint import fingerprint
from coterie.ops import Routing
from coterie.ops.routing import route_reference
from coterie.runtime import Model, load
from models import tiny

IDS = tiny.token_ids()


class Recorder:
    """Keeps copies, and hands back the routing that `change` makes of it."""

    def __init__(self, change: Any = None) -> None:
        self.seen: list[tuple[int, np.ndarray, Any, np.ndarray, np.ndarray]] = []
        self.change = change

    def routed(self, layer: int, logits: np.ndarray, spec: Any, routing: Routing) -> Routing:
        self.seen.append((layer, logits.copy(), spec, routing.ids.copy(), routing.weights.copy()))
        return routing if self.change is None else self.change(layer, routing)


@pytest.fixture(scope="module", params=["qwen3_moe", "gemma4"])
def model(request: pytest.FixtureRequest) -> Model:
    return load(tiny.checkpoint(request.param, "4 bits g64"))


def test_each_layer_with_experts_is_seen_once_a_pass(model: Model) -> None:
    recorder = Recorder()
    model.observe(IDS, recorder)
    with_experts = [e.n_layers for e in model.describe().experts]
    assert len(recorder.seen) == sum(with_experts)
    assert [layer for layer, *_ in recorder.seen] == sorted({layer for layer, *_ in recorder.seen})
    for _, logits, spec, ids, weights in recorder.seen:
        assert logits.shape == (len(IDS), 8)
        assert ids.shape == weights.shape == (len(IDS), 2)
        expected_ids, expected = route_reference(logits, spec)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_dense_layers_are_not_seen() -> None:
    recorder = Recorder()
    load(tiny.checkpoint("qwen3_moe", "4 bits g64")).observe(IDS, recorder)
    assert [layer for layer, *_ in recorder.seen] == [0, 2]


def test_an_observer_that_only_looks_changes_nothing(model: Model) -> None:
    np.testing.assert_array_equal(model.logits(IDS, observer=Recorder()), model.logits(IDS))


def test_logits_and_observe_show_the_same(model: Model) -> None:
    whole, alone = Recorder(), Recorder()
    model.logits(IDS, observer=whole)
    model.observe(IDS, alone)
    for one, other in zip(whole.seen, alone.seen, strict=True):
        np.testing.assert_array_equal(one[3], other[3])
        np.testing.assert_array_equal(one[4], other[4])


def test_the_experts_are_given_what_the_observer_returns(model: Model) -> None:
    def others(layer: int, routing: Routing) -> Routing:
        return Routing((routing.ids + 1) % 8, routing.weights, 8) if layer == 0 else routing

    changed = model.logits(IDS, observer=Recorder(others))
    assert np.linalg.norm(changed - model.logits(IDS)) > 0.01 * np.linalg.norm(changed)


def test_fingerprints_tell_models_and_quantisations_apart() -> None:
    made = [
        load(tiny.checkpoint(name, form)).fingerprint
        for name, form in [("qwen3_moe", "4 bits g64"), ("qwen3_moe", "8 bits g64"), ("gemma4", "4 bits g64")]
    ]
    assert len(set(made)) == 3
    assert load(tiny.checkpoint("qwen3_moe", "4 bits g64")).fingerprint == made[0]
    assert all(len(one) == 64 for one in made)


def test_a_change_anywhere_in_the_small_weights_shows_in_the_fingerprint() -> None:
    weights = {"norm": np.ones(8, np.float32), "big": np.zeros(100_000, np.float32)}
    names = {fingerprint({"a": 1}, weights), fingerprint({"a": 2}, weights)}
    weights["norm"] = weights["norm"] * 2
    names.add(fingerprint({"a": 1}, weights))
    for place in (0, -1):
        changed = weights["big"].copy()
        changed[place] = 1
        names.add(fingerprint({"a": 1}, {**weights, "big": changed}))
    names.add(fingerprint({"a": 1}, {**weights, "big": weights["big"].reshape(10, -1)}))
    assert len(names) == 6
