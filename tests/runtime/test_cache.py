"""Stores of keys and values: growth, the ring of a sliding window, and admission."""

import numpy as np
import pytest

from coterie.errors import CapacityError
from coterie.models.families import family_of
from coterie.runtime.cache import KeyValueCache, LayerStore
from models import tiny


@pytest.mark.parametrize("limit", [1, 5, 63, 64, 65, 300])
@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_every_position_that_is_kept_stands_at_its_slot(limit: int, chunk: int) -> None:
    chunk = min(chunk, limit)
    store = LayerStore(2, 4, 4, limit)
    seen = np.random.default_rng(0).standard_normal((310, 2, 4)).astype(np.float32)
    for begin in range(0, len(seen), chunk):
        new = seen[begin : begin + chunk]
        keys, values = store.extend(new, -new)
        end = begin + len(new)
        assert keys.shape == values.shape == (2, store.capacity, 4)
        kept = np.arange(max(0, end - limit), end)
        assert np.array_equal(keys[:, kept % store.capacity], seen[kept].transpose(1, 0, 2))
        assert np.array_equal(values[:, kept % store.capacity], -seen[kept].transpose(1, 0, 2))
    assert store.capacity == limit


def test_a_short_generation_takes_little_memory() -> None:
    store = LayerStore(1, 8, 8, 1_000_000)
    store.extend(np.zeros((1, 1, 8), np.float32), np.zeros((1, 1, 8), np.float32))
    assert store.capacity == 64


def test_growth_is_by_doubling() -> None:
    store, grown = LayerStore(1, 2, 2, 10_000), 0
    assert store.capacity == 0
    one = np.zeros((1, 1, 2), np.float32)
    store.extend(one, one)
    for _ in range(9_999):
        before = store.capacity
        store.extend(one, one)
        grown += store.capacity != before
    assert grown <= 8


def test_sliding_layers_keep_their_window_and_full_layers_everything() -> None:
    config = tiny.published_dialect(tiny.transformers_config(tiny.MODELS["gemma4"]).to_dict())
    architecture = family_of(config).architecture(config)
    cache = KeyValueCache(architecture, chunk=7, limit=200)
    for layer, store in zip(architecture.layers, cache.layers, strict=True):
        shape = (200, layer.attention.n_kv_heads, layer.attention.head_dim)
        for begin in range(0, 200, 7):
            part = np.zeros((min(7, 200 - begin), *shape[1:]), np.float32)
            store.extend(part, part)
    assert [store.capacity for store in cache.layers] == [tiny.WINDOW + 6, 200, tiny.WINDOW + 6, 200]
    expected = sum(
        keys.nbytes + values.nbytes for keys, values in (s.extend(part[:0], part[:0]) for s in cache.layers[3:])
    )
    only_last = 2 * 4 * 200 * shape[1] * shape[2]
    assert expected == only_last
    assert KeyValueCache.nbytes_for(architecture, chunk=7, limit=200) == 2 * 4 * (
        2 * (tiny.WINDOW + 6) * 2 * 32 + 2 * 200 * 1 * 64
    )


def test_no_room_is_an_error_before_anything_is_written() -> None:
    config = tiny.published_dialect(tiny.transformers_config(tiny.MODELS["qwen3_moe"]).to_dict())
    cache = KeyValueCache(family_of(config).architecture(config), chunk=4, limit=10)
    cache.length = 8
    cache.check_room(2)
    with pytest.raises(CapacityError) as refused:
        cache.check_room(3)
    assert refused.value.code == "cache_full"


def test_layers_that_share_keys_and_values_have_one_store() -> None:
    config = tiny.published_dialect(tiny.transformers_config(tiny.MODELS["gemma4_per_layer"]).to_dict())
    architecture = family_of(config).architecture(config)
    layers = KeyValueCache(architecture, chunk=7, limit=100).layers
    assert [layers.index(store) for store in layers] == [0, 1, 2, 2, 1, 1]
    one = np.ones((1, 1, 32), np.float32)
    assert layers[2].extend(one, one)[0] is layers[3].stores[0]
    assert KeyValueCache.nbytes_for(architecture, chunk=7, limit=100) == 2 * 4 * (2 * (tiny.WINDOW + 6) * 32 + 100 * 64)
