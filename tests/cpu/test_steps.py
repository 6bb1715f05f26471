"""Decoding steps that are recorded and played again: the same logits as passes, whatever changes between two steps."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from coterie.backends.cpu import isa
from coterie.backends.cpu.decoder import steps as steps_room
from coterie.backends.cpu.decoder.steps import PlayedSteps, Record
from coterie.backends.cpu.pool import get_pool, set_num_threads
from coterie.errors import NumericError
from coterie.models.decoder import Decoder
from coterie.runtime.cache import KeyValueCache
from coterie.runtime.generation import prefill
from models import tiny
from models.parity import DEFAULT, EXACT, Mode, decoder, relative_error

IDS = tiny.token_ids(100)
PROMPT, FORM = 5, "4 bits g64"
RECORDED = [
    "qwen3_moe", "gemma4", "gemma4_dense", "mixtral", "mixtral_sliding", "olmoe", "olmoe_clipped", "gpt_oss",
    "glm4_moe",
]  # fmt: skip
NOT_RECORDED = ["deepseek_v3", "gemma4_per_layer_experts"]
"""Latents, and what layers read beside the residual stream, are not computed on the pool alone."""


def made(name: str, mode: Mode = DEFAULT) -> Decoder:
    return decoder(tiny.checkpoint(name, FORM), mode)


def cache_after(prompt: list[int], model: Decoder, limit: int = len(IDS)) -> KeyValueCache:
    cache = KeyValueCache(model.architecture, chunk=PROMPT, limit=limit)
    prefill(model, prompt, cache)
    return cache


def by_passes(model: Decoder, ids: list[int], n_prompt: int = PROMPT) -> list[np.ndarray]:
    """Logits behind each token after the prompt, a pass for each."""
    cache = cache_after(ids[:n_prompt], model)
    return [model.logits(model.hidden([token_id], cache))[0].copy() for token_id in ids[n_prompt:]]


def by_steps(model: Decoder, ids: list[int], n_prompt: int = PROMPT) -> list[np.ndarray]:
    cache = cache_after(ids[:n_prompt], model)
    steps = model.steps([cache])
    found = [steps.logits([token_id])[0].copy() for token_id in ids[n_prompt:]]
    steps.close()
    assert cache.length == len(ids)
    return found


def plays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions of steps that are played, as they come."""
    positions, honest = list[int](), Record.play

    def counted(self: Record, pool: object, token_id: int, position: int) -> np.ndarray:
        positions.append(position)
        return honest(self, pool, token_id, position)  # type: ignore[arg-type]

    monkeypatch.setattr(Record, "play", counted)
    return positions


@pytest.mark.parametrize("name", RECORDED)
def test_played_steps_have_the_bits_of_passes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores grow from 64 to 100 slots, and windows of 16 wrap around."""
    model, positions = made(name), plays(monkeypatch)
    expected, found = by_passes(model, IDS), by_steps(model, IDS)
    assert len(positions) >= len(found) - 2
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", NOT_RECORDED)
def test_what_is_not_computed_on_the_pool_alone_is_never_played(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, positions = made(name), plays(monkeypatch)
    expected, found = by_passes(model, IDS[:20]), by_steps(model, IDS[:20])
    assert positions == []
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_every_step_is_that_of_the_tokens_before_it() -> None:
    """Steps and passes add up in different orders: each may be off from the exact logits by the bound."""
    model = made("gpt_oss", EXACT)
    whole = model.logits(model.hidden(IDS, KeyValueCache(model.architecture, chunk=len(IDS), limit=len(IDS))))
    steps = by_steps(model, IDS)
    assert relative_error(np.stack(steps), whole[PROMPT:]) < EXACT.bound
    for row, found in zip(whole[PROMPT:], steps, strict=True):
        assert relative_error(found, row) < 2 * EXACT.bound


def test_another_text_takes_over_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("gemma4")
    by_steps(model, IDS[:12])
    positions = plays(monkeypatch)
    other = list(reversed(IDS[:40]))
    expected, found = by_passes(model, other, 3), by_steps(model, other, 3)
    assert positions[0] == 3
    assert all(np.array_equal(one, two) for one, two in zip(found, expected, strict=True))


def test_two_texts_at_a_time_have_records_of_their_own() -> None:
    model, texts = made("qwen3_moe"), (IDS[:30], list(reversed(IDS))[:30])
    expected = [by_passes(model, text) for text in texts]
    caches = [cache_after(text[:PROMPT], model) for text in texts]
    steps = [model.steps([cache]) for cache in caches]
    for place in range(PROMPT, 30):
        for text, own, logits in zip(texts, steps, expected, strict=True):
            assert np.array_equal(own.logits([text[place]])[0], logits[place - PROMPT])
    for own in steps:
        own.close()


def test_threads_each_with_a_text() -> None:
    model, texts = made("qwen3_moe"), [tiny.token_ids(30, seed=seed) for seed in range(4)]
    expected = [by_passes(model, text) for text in texts]
    found: dict[int, list[np.ndarray]] = {}
    threads = [
        threading.Thread(target=lambda index=index, text=text: found.update({index: by_steps(model, text)}))
        for index, text in enumerate(texts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, rows in enumerate(expected):
        assert all(np.array_equal(one, other) for one, other in zip(found[index], rows, strict=True))


@pytest.fixture
def _restored() -> Iterator[None]:
    yield
    set_num_threads(None)
    isa.use()


@pytest.mark.usefixtures("_restored")
def test_buffers_that_move_and_threads_that_change() -> None:
    """What was recorded speaks of memory that is no longer the pool's."""
    model, limit = made("qwen3_moe", EXACT), EXACT.bound
    expected, cache = by_passes(model, IDS[:40]), cache_after(IDS[:PROMPT], model)
    steps = model.steps([cache])
    for place in range(PROMPT, 40):
        if place == 12:
            with get_pool().lock:
                get_pool().buffer("prepared", 1 << 22)
        elif place == 20:
            set_num_threads(1 if get_pool().n_threads > 1 else 2)
        elif place == 30:
            isa.use("portable")
        assert relative_error(steps.logits([IDS[place]])[0], expected[place - PROMPT]) < limit
    steps.close()


def test_a_cache_that_was_taken_back_goes_on_from_there() -> None:
    model = made("qwen3_moe")
    expected, cache = by_passes(model, IDS[:20]), cache_after(IDS[:PROMPT], model)
    steps = model.steps([cache])
    for token_id in IDS[PROMPT:20]:
        steps.logits([token_id])
    cache.rewind(10)
    assert np.array_equal(steps.logits([IDS[10]])[0], expected[10 - PROMPT])
    steps.close()


def test_logits_of_a_router_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("qwen3_moe")
    cache = cache_after(IDS[:PROMPT], model)
    steps = model.steps([cache])
    for token_id in IDS[PROMPT:9]:
        steps.logits([token_id])
    honest = steps_room.embed
    with monkeypatch.context() as patch:
        patch.setattr(steps_room, "embed", lambda *arguments: honest(*arguments) * np.float32(np.nan))
        with pytest.raises(NumericError, match="NaN"):
            steps.logits([IDS[9]])
    cache.rewind(9)
    assert np.array_equal(steps.logits([IDS[9]])[0], by_passes(model, IDS[:10])[-1])
    steps.close()


def test_several_sequences_take_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, positions = made("qwen3_moe").row_by_row(), plays(monkeypatch)
    texts = [IDS[:12], list(reversed(IDS))[:12]]
    steps = model.steps([cache_after(text[:PROMPT], model) for text in texts])
    assert isinstance(steps, PlayedSteps)
    expected = [by_passes(model, text) for text in texts]
    for place in range(PROMPT, 12):
        rows = steps.logits([text[place] for text in texts])
        assert all(np.array_equal(row, own[place - PROMPT]) for row, own in zip(rows, expected, strict=True))
    assert positions == []
