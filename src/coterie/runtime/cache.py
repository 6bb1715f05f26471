"""Keys and values of the tokens seen so far.

A store is f32 [Hkv, capacity, D], and position p stands at slot p % capacity. A full store grows before it would wrap.
A sliding window's store stops growing at window + chunk - 1 slots: when a chunk has just been appended, the keys that
its first query sees are still there.
"""

from collections.abc import Sequence

import numpy as np

from coterie.errors import CapacityError
from coterie.models.architecture import Architecture, Attention

_FIRST = 64
"""Slots of a new store; short generations never grow beyond it."""


class LayerStore:
    """Keys and values of one layer."""

    def __init__(self, n_heads: int, head_dim: int, limit: int) -> None:
        """At most `limit` positions are kept."""
        self._limit = limit
        self._length = 0
        self._keys = np.empty((n_heads, min(_FIRST, limit), head_dim), np.float32)
        self._values = np.empty_like(self._keys)

    def extend(self, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Append keys and values [T, Hkv, D], T <= limit; returns both stores, [Hkv, capacity, D]."""
        end = self._length + len(keys)
        if end > self.capacity and self.capacity < self._limit:
            self._grow(min(self._limit, max(end, 2 * self.capacity)))
        begin = self._length % self.capacity
        before_wrap = min(len(keys), self.capacity - begin)
        for store, new in ((self._keys, keys), (self._values, values)):
            by_head = new.transpose(1, 0, 2)
            store[:, begin : begin + before_wrap] = by_head[:, :before_wrap]
            store[:, : len(keys) - before_wrap] = by_head[:, before_wrap:]
        self._length = end
        return self._keys, self._values

    @property
    def stores(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values, [Hkv, capacity, D] each."""
        return self._keys, self._values

    @property
    def capacity(self) -> int:
        """Slots of the store as it is now."""
        return self._keys.shape[1]

    def _grow(self, capacity: int) -> None:
        """More slots. A store below its limit has never wrapped, so positions are slots and are copied."""
        for name in ("_keys", "_values"):
            old = getattr(self, name)
            new = np.empty((old.shape[0], capacity, old.shape[2]), np.float32)
            new[:, : self._length] = old[:, : self._length]
            setattr(self, name, new)


class KeyValueCache:
    """The stores of all layers of one sequence, and how many tokens they have seen."""

    def __init__(self, architecture: Architecture, *, chunk: int, limit: int) -> None:
        """For at most `limit` tokens, appended at most `chunk` at a time."""
        self.length = 0
        self.chunk = chunk
        self.limit = limit
        stores: list[LayerStore] = []
        for a in (layer.attention for layer in architecture.layers):
            if a.shares is None:
                stores.append(LayerStore(a.n_kv_heads, a.head_dim, n_slots(a, chunk, limit)))
            else:
                stores.append(stores[a.shares])
        self.layers: Sequence[LayerStore] = stores

    def check_room(self, n_tokens: int) -> None:
        """`CapacityError` if so many more tokens do not fit."""
        if self.length + n_tokens > self.limit:
            raise CapacityError(
                f"{self.length} tokens and {n_tokens} more are too many for a cache of {self.limit}; shorten the "
                "prompt or ask for fewer tokens",
                code="cache_full",
            )

    @staticmethod
    def nbytes_for(architecture: Architecture, *, chunk: int, limit: int) -> int:
        """Bytes that all stores take once `limit` tokens are in them."""
        attentions = [layer.attention for layer in architecture.layers if layer.attention.shares is None]
        return sum(2 * 4 * n_slots(a, chunk, limit) * a.n_kv_heads * a.head_dim for a in attentions)


def n_slots(attention: Attention, chunk: int, limit: int) -> int:
    """Slots that a layer's store needs for `limit` tokens appended at most `chunk` at a time."""
    return limit if attention.window is None else min(limit, attention.window + chunk - 1)
