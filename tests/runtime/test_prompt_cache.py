"""Prompt caches in memory: how far they go back, what they save, and that texts stay what they are without one."""

from typing import Any

import numpy as np
import pytest

from coterie.errors import CapacityError, RequestError
from coterie.models.decoder import Decoder
from coterie.runtime import Model, load
from coterie.runtime.cache import KeyValueCache, LayerStore
from coterie.runtime.prompt_cache import PromptCache, common_length
from models import tiny

HOT = 6.0
FAMILIES = ["qwen3_moe", "gemma4", "gemma4_per_layer", "gpt_oss", "deepseek_v3"]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Model:
    return load(tiny.checkpoint(request.param, "4 bits g64"))


@pytest.fixture(scope="module")
def gemma() -> Model:
    return load(tiny.checkpoint("gemma4", "4 bits g64"))


def ids_of(length: int, seed: int = 0) -> list[int]:
    return tiny.token_ids(length, seed=seed)


# Stores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [5, 20, 64, 70, 1000])
def test_a_store_that_goes_back_and_on_keeps_what_it_says(limit: int, rng: np.random.Generator) -> None:
    store, seen = LayerStore(2, 4, 4, limit), np.zeros((0, 2, 4), np.float32)
    for _ in range(300):
        if rng.random() < 0.3:
            length = int(rng.integers(store.oldest, len(seen) + 1))
            store.rewind(length)
            seen = seen[:length]
        new = rng.standard_normal((int(rng.integers(1, min(limit, 9) + 1)), 2, 4)).astype(np.float32)
        seen = np.concatenate((seen, new))
        keys, values = store.extend(new, -new)
        kept = np.arange(store.oldest, len(seen))
        assert np.array_equal(keys[:, kept % store.capacity], seen[kept].transpose(1, 0, 2))
        assert np.array_equal(values[:, kept % store.capacity], -seen[kept].transpose(1, 0, 2))
        in_order, _ = store.kept()
        assert np.array_equal(in_order, seen[kept].transpose(1, 0, 2))


@pytest.mark.parametrize("limits", [(1000, 1000), (20, 20), (30, 20), (20, 30), (64, 10), (100, 500)])
@pytest.mark.parametrize("length", [1, 19, 20, 57, 100])
def test_a_store_takes_over_what_another_kept(limits: tuple[int, int], length: int) -> None:
    seen = np.random.default_rng(0).standard_normal((length + 5, 2, 4)).astype(np.float32)
    first, second = (LayerStore(2, 4, 4, limit) for limit in limits)
    for position in range(length):
        first.extend(seen[position : position + 1], -seen[position : position + 1])
    second.restore(*first.kept(), length)
    assert second.oldest == max(0, length - min(limits))
    for position in range(length, length + 5):
        keys, values = second.extend(seen[position : position + 1], -seen[position : position + 1])
    kept = np.arange(second.oldest, length + 5)
    assert np.array_equal(keys[:, kept % second.capacity], seen[kept].transpose(1, 0, 2))
    assert np.array_equal(values[:, kept % second.capacity], -seen[kept].transpose(1, 0, 2))


def test_a_wrapped_window_goes_back_by_what_it_has_beyond_the_window(gemma: Model) -> None:
    cache = KeyValueCache(gemma._decoder.architecture, chunk=8, limit=200)
    for begin in range(0, 96, 8):
        gemma._decoder.hidden(ids_of(96)[begin : begin + 8], cache)
    # The next token sees the last 15 before it, and the ring has 16 + 8 - 1 slots.
    assert [length for length in range(97) if cache.can_rewind(length)] == list(range(88, 97))
    assert not cache.can_rewind(97)
    assert not cache.can_rewind(-1)
    cache.rewind(90)
    assert [length for length in range(97) if cache.can_rewind(length)] == [88, 89, 90]


@pytest.mark.parametrize("name", FAMILIES)
def test_going_back_gives_the_logits_of_a_fresh_cache(name: str) -> None:
    decoder = load(tiny.checkpoint(name, "4 bits g64"))._decoder
    used = KeyValueCache(decoder.architecture, chunk=12, limit=100)
    for part in (ids_of(12), ids_of(12, 1), ids_of(12, 2), ids_of(9, 3)):
        decoder.hidden(part, used)
    used.rewind(36)
    fresh = KeyValueCache(decoder.architecture, chunk=12, limit=100)
    for part in (ids_of(12), ids_of(12, 1), ids_of(12, 2)):
        decoder.hidden(part, fresh)
    for part in (ids_of(7, 5), ids_of(1, 6), ids_of(12, 7)):
        expected = decoder.logits(decoder.hidden(part, fresh))
        assert np.array_equal(decoder.logits(decoder.hidden(part, used)), expected)


# Models ---------------------------------------------------------------------------------------------------------------


def test_a_conversation_reads_only_what_is_new(model: Model) -> None:
    cache, history = model.prompt_cache(), []
    for turn in range(4):
        history += ids_of(11, turn)
        options: dict[str, Any] = {"max_tokens": 9, "temperature": HOT, "seed": turn}
        made = model.generate(history, cache=cache, **options)
        assert made.token_ids == model.generate(history, **options).token_ids
        before = len(history) - 11
        assert made.n_cached_tokens == max(0, before - 1)
        history += made.token_ids
        assert cache.token_ids == tuple(history[:-1])
    assert "tokens of the prompt were in the cache" in cache.note
    assert cache.nbytes > 0


def test_the_same_prompt_again_is_read_at_its_last_token(model: Model) -> None:
    cache, ids = model.prompt_cache(), ids_of(40)
    first = model.generate(ids, cache=cache, max_tokens=12)
    again = model.generate(ids, cache=cache, max_tokens=12)
    assert (first.n_cached_tokens, again.n_cached_tokens) == (0, 39)
    assert again.token_ids == first.token_ids
    longer = model.generate([*ids[:30], *ids_of(5, 9)], cache=cache, max_tokens=3)
    assert longer.n_cached_tokens == 30
    assert longer.token_ids == model.generate([*ids[:30], *ids_of(5, 9)], max_tokens=3).token_ids
    assert model.generate(ids_of(8, 7), cache=cache, max_tokens=2).n_cached_tokens == 0


def test_windows_that_have_gone_on_are_read_again_and_said(gemma: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.runtime.prompt_cache.CHUNK", 8)
    cache, ids = gemma.prompt_cache(), ids_of(60)
    gemma.generate(ids, cache=cache, max_tokens=30, temperature=HOT, seed=1)
    asked = [*ids[:50], *ids_of(10, 1)]
    made = gemma.generate(asked, cache=cache, max_tokens=12)
    assert made.n_cached_tokens == 0
    assert "50 tokens of the prompt had been read" in cache.note
    assert "from its start" in cache.note
    assert made.token_ids == gemma.generate(asked, max_tokens=12).token_ids


def test_a_stream_that_is_left_leaves_what_it_read(model: Model) -> None:
    cache, ids = model.prompt_cache(), ids_of(20)
    stream = model.stream(ids, cache=cache, max_tokens=30, temperature=HOT, seed=5)
    running = iter(stream)
    next(running)
    assert cache.token_ids == ()
    running.close()  # type: ignore[attr-defined]
    assert cache.token_ids[:20] == tuple(ids)
    again = model.generate(ids, cache=cache, max_tokens=5)
    assert again.n_cached_tokens == 19
    assert again.token_ids == model.generate(ids, max_tokens=5).token_ids


def test_a_pass_that_breaks_off_leaves_a_cache_that_can_be_used(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.runtime.prompt_cache.CHUNK", 16)
    cache, ids = model.prompt_cache(), ids_of(75)
    model.generate(ids[:40], cache=cache, max_tokens=2)
    honest, calls = Decoder._attention, []

    def interrupted(self: Decoder, *arguments: Any) -> Any:
        found = honest(self, *arguments)
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(Decoder, "_attention", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.generate(ids, cache=cache, max_tokens=2)
    monkeypatch.setattr(Decoder, "_attention", honest)
    assert 40 <= len(cache.token_ids) < 75
    made = model.generate(ids, cache=cache, max_tokens=8)
    assert made.n_cached_tokens >= 40
    assert made.token_ids == model.generate(ids, max_tokens=8).token_ids


def test_two_streams_at_once_find_the_cache_empty_or_whole(model: Model) -> None:
    cache, ids = model.prompt_cache(), ids_of(20)
    model.generate(ids, cache=cache, max_tokens=2)
    options: dict[str, Any] = {"max_tokens": 30, "temperature": HOT, "seed": 5}
    expected = model.generate(ids, **options).token_ids
    first, second = (model.stream(ids, cache=cache, **options) for _ in range(2))
    pieces = iter(first)
    next(pieces, None)
    list(second)
    list(pieces)
    assert first.generation.token_ids == second.generation.token_ids == expected
    assert (first.generation.n_cached_tokens, second.generation.n_cached_tokens) == (19, 0)


def test_a_batch_shares_a_beginning_and_leaves_the_cache_as_it_was(model: Model) -> None:
    cache, ids = model.prompt_cache(), ids_of(30)
    model.generate(ids, cache=cache, max_tokens=1)
    before = cache.token_ids
    asked = [[*ids, *ids_of(4 + n, n)] for n in range(5)]
    batch = model.generate_batch(asked, cache=cache, max_tokens=6, max_batch_size=3)
    assert [made.n_cached_tokens for made in batch] == [30] * 5
    assert [made.token_ids for made in batch] == [model.generate(one, max_tokens=6).token_ids for one in asked]
    assert cache.token_ids == before


def test_a_cache_of_another_model_is_refused(gemma: Model) -> None:
    other = load(tiny.checkpoint("gemma4_text", "4 bits g64")).prompt_cache()
    for cache in (other, "cache", {}):
        for ask in (gemma.generate, gemma.generate_batch):
            with pytest.raises(RequestError) as refused:
                ask([[1]] if ask == gemma.generate_batch else [1], cache=cache)  # type: ignore[operator]
            assert refused.value.code == "request_cache"
            assert "prompt_cache()" in str(refused.value)


def test_a_cache_reaches_to_the_end_of_the_context(gemma: Model) -> None:
    cache = PromptCache(gemma._decoder.architecture, "").take([1])
    cache.length = gemma._decoder.architecture.context_length
    with pytest.raises(CapacityError):
        cache.check_room(1)


def test_common_length() -> None:
    assert common_length([], [1]) == 0
    assert common_length([1, 2], [1, 2, 3]) == 2
    assert common_length([1, 2, 3, 4], [1, 2, 4]) == 2
