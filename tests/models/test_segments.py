"""Several sequences in one pass: the same logits as each sequence alone, however their tokens come together.

The judge is the float64 back end, one sequence at a time. The bound is that of the parity tests: rows of other
sequences may change which kernel multiplies a row, and so the order of a sum, never more.
"""

from pathlib import Path

import numpy as np
import pytest

from coterie.checkpoint import open_checkpoint
from coterie.models.backend import Backend
from coterie.models.decoder import Decoder, Segment
from coterie.models.families import family_of
from coterie.models.weights import read_weights
from coterie.ops import dispatch
from coterie.runtime.cache import KeyValueCache
from models import tiny
from models.plain_backend import PlainBackend

BOUND = 1e-5
TEXTS = [tiny.token_ids(length, seed=length) for length in (1, 5, 17, 40, 64)]
"""Shorter than, as long as and longer than the sliding window of 16."""
PLANS = {
    "whole": [[1, 5, 17, 40, 64]],
    "prompts together, then steps": [[1, 4, 14, 37, 61], [0, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 1, 1, 1]],
    "steps while others read their prompts": [[0, 1, 0, 30, 1], [1, 1, 16, 1, 30], [0, 3, 1, 9, 33]],
}
"""For each pass, how many tokens of each text take part; 0 leaves it out."""


def decoder(folder: Path, backend: Backend) -> Decoder:
    checkpoint = open_checkpoint(folder)
    family = family_of(checkpoint.config)
    architecture = family.architecture(checkpoint.config)
    weights = read_weights(architecture, checkpoint, family.name_map(checkpoint.config).drops)
    return Decoder(architecture, weights, backend)


def caches(made: Decoder) -> list[KeyValueCache]:
    return [KeyValueCache(made.architecture, chunk=len(ids), limit=len(ids)) for ids in TEXTS]


def together(made: Decoder, plan: list[list[int]]) -> list[np.ndarray]:
    """Logits [T, V] of every text, computed as the plan says."""
    stores, parts = caches(made), [[] for _ in TEXTS]
    for counts in plan:
        chosen = [index for index, count in enumerate(counts) if count]
        segments = [Segment(TEXTS[i][stores[i].length : stores[i].length + counts[i]], stores[i]) for i in chosen]
        rows = np.split(made.logits(made.hidden_of(segments)), np.cumsum([counts[i] for i in chosen])[:-1])
        for index, part in zip(chosen, rows, strict=True):
            parts[index].append(part)
    return [np.concatenate(part) for part in parts]


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4", "gemma4_per_layer_experts", "deepseek_v3"])
@pytest.mark.parametrize("plan", PLANS)
def test_sequences_together_are_what_each_is_alone(name: str, plan: str) -> None:
    folder = tiny.checkpoint(name, "4 bits g64")
    judge = decoder(folder, PlainBackend())
    found = together(decoder(folder, dispatch.decoder("cpu", "exact")), PLANS[plan])
    exact = together(judge, PLANS[plan])
    for ids, cache, logits, plain in zip(TEXTS, caches(judge), found, exact, strict=True):
        alone = judge.logits(judge.hidden(ids, cache))
        assert np.linalg.norm(plain - alone) <= 1e-6 * np.linalg.norm(alone)
        assert np.linalg.norm(logits - alone) <= BOUND * np.linalg.norm(alone)
