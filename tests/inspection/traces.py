"""Synthetic traces, and an independent recomputation of what a report says: loops and dictionaries, no arrays."""

import math
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np

from coterie.inspect import LayerTrace, Trace

WORDS = ["def", " return", "\n", "    ", "(", ")", "\x1b[31m", "<script>alert(1)</script>", "$x$", "数", "\u202e", "ö"]


def layer(
    rng: np.random.Generator, number: int, n_tokens: int, n_experts: int, k: int, *, unused: tuple[int, ...] = ()
) -> LayerTrace:
    """Random routing with uneven loads; the experts in `unused` get no token."""
    z = rng.standard_normal((n_tokens, n_experts)) + 1.5 * rng.standard_normal(n_experts)
    z[:, list(unused)] = -1e9
    ids = np.argsort(-z, axis=1)[:, :k].astype(np.uint32)
    weights = rng.random((n_tokens, k)).astype(np.float32)
    entropy = (rng.random(n_tokens) * np.log2(n_experts)).astype(np.float32)
    return LayerTrace(number, n_experts, ids, weights, entropy)


def trace(rng: np.random.Generator, *layers: LayerTrace, n_layers: int | None = None, window: int = 64) -> Trace:
    """A text of random words through these layers."""
    tokens = rng.integers(0, len(WORDS), len(layers[0].ids)).astype(np.uint32)
    texts = {int(token): WORDS[token] for token in set(tokens.tolist())}
    return Trace("a <b>model</b>", "0f" * 32, n_layers or layers[-1].layer + 1, window, tokens, texts, layers)


def recomputed(tokens: list[int], ids: list[list[int]], weights: list[list[float]], n_experts: int) -> dict[str, Any]:
    """Loads, weights, load entropy, pairs and tokens of one layer."""
    load: Counter[int] = Counter()
    weight: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    taken: dict[int, Counter[int]] = {e: Counter() for e in range(n_experts)}
    for token, chosen, shares in zip(tokens, ids, weights, strict=True):
        for expert, share in zip(chosen, shares, strict=True):
            load[expert] += 1
            weight[expert] += share
            taken[expert][token] += 1
        pairs.update(combinations(sorted(chosen), 2))
    total = sum(load.values())
    return {
        "load": [load[e] for e in range(n_experts)],
        "weight": [weight[e] for e in range(n_experts)],
        "entropy": -sum(n / total * math.log2(n / total) for n in load.values()),
        "pairs": pairs,
        "taken": taken,
    }
