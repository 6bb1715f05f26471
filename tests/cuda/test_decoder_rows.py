"""Rows of a pass: where the stores of their sequences are, and when these are made."""

from collections.abc import Container
from typing import Any

import pytest

from coterie.models.rows import Part
from coterie.runtime.cache import LayerStore

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

LAYERS = 19


class Cache:
    """The cache of a decoder of many layers; notes of which stores were asked for."""

    def __init__(self) -> None:
        self.layers = [LayerStore(2, 4, 8, 100) for _ in range(LAYERS)]
        self.asked: list[tuple[int, int]] = []

    def reserve(self, n_tokens: int, make: Any, layers: Container[int]) -> None:
        for index in range(LAYERS):
            if index in layers:
                self.asked.append((index, n_tokens))
                self.layers[index].reserve(n_tokens, make)


def rows_of(*counts: int) -> tuple[Any, list[Cache]]:
    from coterie.backends.cuda.decoder.rows import RowMaker

    caches, begin, parts = [Cache() for _ in counts], 0, []
    for cache, count in zip(caches, counts, strict=True):
        parts.append(Part(slice(begin, begin + count), 0, cache))  # type: ignore[arg-type]
        begin += count
    return RowMaker(torch.device("cpu"), torch.float32)([7] * begin, tuple(parts), {}), caches


def test_a_prompts_first_layers_do_not_wait_for_the_stores_of_the_last() -> None:
    rows, caches = rows_of(65, 3)
    assert [cache.asked for cache in caches] == [[], []]
    for layer, n_made in ((0, 8), (7, 8), (8, 16), (18, LAYERS), (3, LAYERS)):
        table = rows.stores[layer]
        for cache, n_tokens, line in zip(caches, (65, 3), table.tolist(), strict=True):
            assert cache.asked == [(index, n_tokens) for index in range(n_made)]
            keys, values = cache.layers[layer].stores
            assert line == [keys.data_ptr(), values.data_ptr(), 100 if n_tokens == 65 else 64, 0]


def test_a_step_asks_for_all_stores_at_once() -> None:
    rows, caches = rows_of(1, 1)
    assert rows.is_step
    rows.stores[0]
    assert all(cache.asked == [(index, 1) for index in range(LAYERS)] for cache in caches)
