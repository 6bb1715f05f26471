"""Keys and values of the tokens seen so far; of latent attention, latents and turned keys in their place.

A store is f32 [Hkv, capacity, D], and position p stands at slot p % capacity. A full store grows before it would wrap.
A sliding window's store stops growing at window + chunk - 1 slots: when a chunk has just been appended, the keys that
its first query sees are still there.

A cache can be taken back to an earlier length as long as every layer still has what the next token sees: always where
nothing was overwritten, and by some tokens where a window's ring has wrapped.

A store begins in NumPy, and is of the kind of the keys as soon as some join it: arrays of the decoder's back end.
"""

from collections.abc import Container, Sequence

import numpy as np

from coterie.arrays import Array, Kind, as_numpy, from_numpy, kind_of
from coterie.errors import CapacityError
from coterie.models.architecture import Architecture, Attention, LatentAttention
from coterie.models.backend import MakeStore
from coterie.ops import dispatch

CHUNK = 512
"""Tokens of a prompt that pass through the decoder together: enough to use each expert's matrices for many rows."""

_FIRST = 64
"""Slots of a store that has any; short generations never grow beyond it."""


class LayerStore:
    """Keys and values of one layer."""

    def __init__(self, n_heads: int, key_dim: int, value_dim: int, limit: int) -> None:
        """At most `limit` positions are kept."""
        self._limit = limit
        self._length = self._oldest = 0
        self._keys: Array = np.empty((n_heads, 0, key_dim), np.float32)
        self._values: Array = np.empty((n_heads, 0, value_dim), np.float32)

    def extend(self, keys: Array, values: Array) -> tuple[Array, Array]:
        """Append keys and values [T, Hkv, D], T <= limit; returns both stores, [Hkv, capacity, D]."""
        if type(keys) is not type(self._keys):
            self._become(kind_of(keys))
        end = self._length + len(keys)
        if end > self.capacity:
            self._grow(self._capacity_for(end))
        begin = self._length % self.capacity
        before_wrap = min(len(keys), self.capacity - begin)
        for store, new in ((self._keys, keys), (self._values, values)):
            by_head = new.transpose(1, 0, 2)
            store[:, begin : begin + before_wrap] = by_head[:, :before_wrap]
            if before_wrap < len(keys):
                store[:, : len(keys) - before_wrap] = by_head[:, before_wrap:]
        self._length, self._oldest = end, max(self._oldest, end - self.capacity)
        return self._keys, self._values

    def reserve(self, n_tokens: int, make: MakeStore | None = None) -> bool:
        """Count so many more positions, which the caller writes into the stores; whether new stores were made: by
        `make`, or in NumPy without it.
        """
        end = self._length + n_tokens
        capacity = self._capacity_for(end)
        is_numpy = type(self._keys) is np.ndarray
        is_made = capacity != self.capacity or is_numpy is (make is not None)
        if is_made and make is None:
            self._become("numpy")
            self._grow(capacity)
        elif is_made and make is not None:
            self._keys, self._values = (
                make((store.shape[0], capacity, store.shape[2]), store[:, : min(self._length, self.capacity)])
                for store in self.stores
            )
        self._length, self._oldest = end, max(self._oldest, end - capacity)
        return is_made

    @property
    def oldest(self) -> int:
        """The first position that has not been overwritten; all from there on are kept."""
        return self._oldest

    def rewind(self, length: int) -> None:
        """Forget the positions from `length` on."""
        self._length = min(self._length, length)

    def kept(self) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the keys and values from position `oldest` on, in order, on the host: [Hkv, n, D] each."""
        slots = np.arange(self._oldest, self._length) % self.capacity
        keys, values = (as_numpy(store)[:, slots].astype(np.float32, copy=False) for store in self.stores)
        return keys, values

    def restore(self, keys: np.ndarray, values: np.ndarray, length: int) -> None:
        """Take over what `kept` of another store gave, [Hkv, n, D], when it had `length` positions."""
        self._become("numpy")
        n_kept = min(keys.shape[1], self._limit)
        self._length, self._oldest = 0, length - n_kept
        self._grow(max(self.capacity, min(length, self._limit)))
        self._length = length
        slots = np.arange(self._oldest, length) % self.capacity
        for store, old in ((self._keys, keys), (self._values, values)):
            store[:, slots] = old[:, old.shape[1] - n_kept :]

    @property
    def stores(self) -> tuple[Array, Array]:
        """Keys and values, [Hkv, capacity, D] each."""
        return self._keys, self._values

    @property
    def capacity(self) -> int:
        """Slots of the store as it is now."""
        return int(self._keys.shape[1])

    def _become(self, kind: Kind) -> None:
        """Hold the stores as arrays of `kind`."""
        self._keys, self._values = (from_numpy(as_numpy(store), kind) for store in self.stores)

    def _capacity_for(self, length: int) -> int:
        """Slots of the store that holds so many positions, or as many of them as are kept."""
        if length <= self.capacity:
            return self.capacity
        first = min(_FIRST, self._limit)
        return first if length <= first else min(self._limit, max(length, 2 * max(first, self.capacity)))

    def _grow(self, capacity: int) -> None:
        """More slots, if any. A store below its limit has never wrapped, so positions are slots and are copied."""
        if capacity == self.capacity:
            return
        for name in ("_keys", "_values"):
            old = getattr(self, name)
            new = dispatch.zeros((old.shape[0], capacity, old.shape[2]), "float32", kind_of(old))
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
                stores.append(LayerStore(*a.cached, n_slots(a, chunk, limit)))
            else:
                stores.append(stores[a.shares])
        self.layers: Sequence[LayerStore] = stores
        self.own_layers = {index: store for index, store in enumerate(stores) if store not in stores[:index]}
        self._windows = [layer.attention.window for layer in architecture.layers]

    def check_room(self, n_tokens: int) -> None:
        """`CapacityError` if so many more tokens do not fit."""
        if self.length + n_tokens > self.limit:
            raise CapacityError(
                f"{self.length} tokens and {n_tokens} more are too many for a cache of {self.limit}; shorten the "
                "prompt or ask for fewer tokens",
                code="cache_full",
            )

    def reserve(self, n_tokens: int, make: MakeStore | None = None, layers: Container[int] | None = None) -> bool:
        """Count so many more positions in these layers, all if None, which the caller writes; whether any new store was
        made.
        """
        chosen = (store for index, store in self.own_layers.items() if layers is None or index in layers)
        made = [store.reserve(n_tokens, make) for store in chosen]
        return any(made)

    def can_rewind(self, length: int) -> bool:
        """Whether every layer still has all that the token after the first `length` sees."""
        if not 0 <= length <= self.length:
            return False
        first = [0 if window is None else max(0, length + 1 - window) for window in self._windows]
        return all(store.oldest <= position for store, position in zip(self.layers, first, strict=True))

    def rewind(self, length: int) -> None:
        """Forget the tokens from `length` on; also those of a pass that was broken off, which some layers have."""
        assert self.can_rewind(length)
        self.length = length
        for store in self.layers:
            store.rewind(length)

    @property
    def nbytes(self) -> int:
        """Bytes of all stores as they are now."""
        return sum(part.nbytes for store in self.own_layers.values() for part in store.stores)

    @staticmethod
    def nbytes_for(architecture: Architecture, *, chunk: int, limit: int, itemsize: int = 4) -> int:
        """Bytes that all stores take once `limit` tokens are in them, in numbers of `itemsize` bytes."""
        attentions = [layer.attention for layer in architecture.layers if layer.attention.shares is None]
        return sum(itemsize * n_slots(a, chunk, limit) * _numbers(*a.cached) for a in attentions)


def _numbers(n_heads: int, key_dim: int, value_dim: int) -> int:
    """What one token leaves in a store."""
    return n_heads * (key_dim + value_dim)


def n_slots(attention: Attention | LatentAttention, chunk: int, limit: int) -> int:
    """Slots that a layer's store needs for `limit` tokens appended at most `chunk` at a time."""
    return limit if attention.window is None else min(limit, attention.window + chunk - 1)
