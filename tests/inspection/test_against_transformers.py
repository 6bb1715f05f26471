"""The report on a tiny checkpoint against the routers of transformers, read by hooks and counted in plain loops."""

import math
from typing import Any

import numpy as np
import pytest

from coterie.inspect import Report, Trace, record
from coterie.runtime import Model, load
from inspection.traces import recomputed
from models import references, tiny

IDS = tiny.token_ids()
NAMES = ["qwen3_moe", "qwen3_moe_tied", "gemma4_text", "deepseek_v3"]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> tuple[str, Model, Trace]:
    model = load(tiny.checkpoint(request.param, "4 bits g64"), precision="exact")
    return request.param, model, record(model, IDS)


def routers(name: str) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Layer -> probabilities [T, E], ids and weights [T, k] as transformers computes them on the same weights."""
    import torch

    spec, folder = tiny.MODELS[name], tiny.checkpoint(name, "4 bits g64")
    made = tiny.transformers_model(spec)
    stored = references.transformers_names(references.dequantised(folder))
    state = {key: torch.from_numpy(value) for key, value in stored.items()}
    made.load_state_dict(state, strict=False)
    made.tie_weights()
    seen: dict[int, Any] = {}
    for path, module in made.named_modules():
        if type(module).__name__.endswith("Router"):
            number = int(path.split("layers.")[1].split(".")[0])
            module.register_forward_hook(lambda _, __, out, number=number: seen.update({number: out}))
    with torch.no_grad():
        made(torch.tensor([IDS]))
    return {number: _parts(name, out) for number, out in seen.items()}


def _parts(name: str, out: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gemma's router hands out probabilities, the others logits, which DeepSeek-V3 takes the sigmoid of."""
    first, weights, ids = (part.double().numpy() for part in out)
    if not name.startswith("gemma4"):
        first = 1 / (1 + np.exp(-first)) if name == "deepseek_v3" else np.exp(first - first.max(1, keepdims=True))
    return first / first.sum(1, keepdims=True), ids.astype(int), weights


def test_every_number_of_the_report(case: tuple[str, Model, Trace]) -> None:
    name, _, trace = case
    expected, report = routers(name), Report.of(trace, least=2)
    assert [layer.layer for layer in report.layers] == sorted(expected)
    for layer in report.layers:
        probabilities, ids, weights = expected[layer.layer]
        n_experts = probabilities.shape[1]
        counted = recomputed(IDS, ids.tolist(), weights.tolist(), n_experts)
        assert layer.counts.tolist() == counted["load"]
        assert layer.counts.sum() == len(IDS) * ids.shape[1]
        np.testing.assert_allclose(layer.weights, counted["weight"], rtol=1e-4)
        assert layer.load_entropy == pytest.approx(counted["entropy"], abs=1e-9)
        entropies = [-sum(p * math.log2(p) for p in row if p > 0) for row in probabilities.tolist()]
        assert layer.router_entropy == pytest.approx(sum(entropies) / len(entropies), abs=1e-4)
        seen, _ = layer.coactivation()
        assert {(i, j): seen[i, j] for i, j in zip(*np.nonzero(np.triu(seen)), strict=True)} == counted["pairs"]
        for expert in range(n_experts):
            top = layer.tokens.top(expert, "count", 1000)
            assert {found.token: found.n for found in top} == counted["taken"][expert]
            for found in top:
                of = IDS.count(found.token)
                assert found.of == of
                assert found.lift == pytest.approx(found.n / of / (counted["load"][expert] / len(IDS)))


def test_layers_without_experts_are_left_out_and_said(case: tuple[str, Model, Trace]) -> None:
    name, model, trace = case
    assert trace.n_layers == model.describe().n_layers
    expected = {"qwen3_moe": [0, 2], "qwen3_moe_tied": [1], "gemma4_text": [0, 1, 2, 3], "deepseek_v3": [1, 2]}
    assert [layer.layer for layer in trace.layers] == expected[name]
    n_chosen = {"qwen3_moe": 2, "qwen3_moe_tied": 3, "gemma4_text": 3, "deepseek_v3": 3}
    assert {layer.top_k for layer in trace.layers} == {n_chosen[name]}
