"""The hidden state of a prompt's last token: what a whole pass gives it, and the same keys and values in the cache."""

import numpy as np
import pytest

from coterie.models.decoder import Decoder
from coterie.runtime import load
from coterie.runtime.cache import KeyValueCache
from models import tiny

IDS = tiny.token_ids()
NAMES = ["gemma4_per_layer", "gemma4_per_layer_experts", "gemma4", "deepseek_v3"]


def decoder(name: str) -> Decoder:
    return load(tiny.checkpoint(name, "4 bits g64"), precision="exact")._decoder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunks", [[48], [20, 28], [1, 46, 1], [17, 1, 30]])
def test_the_last_token_of_every_part(name: str, chunks: list[int]) -> None:
    made = decoder(name)
    whole, last = (KeyValueCache(made.architecture, chunk=max(chunks), limit=len(IDS)) for _ in range(2))
    for end, n in zip(np.cumsum(chunks), chunks, strict=True):
        expected = made.logits(made.hidden(IDS[end - n : end], whole)[-1:])
        found = made.logits(made.last_hidden(IDS[end - n : end], last))
        assert found.shape == (1, tiny.VOCABULARY)
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    assert last.length == whole.length == len(IDS)
    for first, second in zip(whole.own_layers.values(), last.own_layers.values(), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(first.kept(), second.kept(), strict=True))


def test_earlier_tokens_do_not_reach_the_layers_that_share() -> None:
    made = decoder("gemma4_per_layer")
    rows: list[int] = []

    class Counting:
        def __getattr__(self, verb: str) -> object:
            return getattr(backend, verb)

        def attend_rows(self, queries: np.ndarray, *rest: object) -> np.ndarray:
            rows.append(len(queries))
            return backend.attend_rows(queries, *rest)

    backend, made.backend = made.backend, Counting()  # type: ignore[assignment]
    made.last_hidden(IDS, KeyValueCache(made.architecture, chunk=48, limit=48))
    assert rows == [48, 48, 48, 1, 1, 1]
