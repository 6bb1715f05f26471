"""The rows of a pass on the device: ids, positions, and where the stores of their sequences are.

Kernels read positions and addresses from the device, so that launches which were recorded for one step serve the next
one, with other lengths and with stores that have grown.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from coterie.backends.cuda.device import within_memory
from coterie.backends.cuda.kernels.rotation import rotation_kernel
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.sizes import next_power_of_2

_ALIGNED = 4
"""Numbers: what is sent together begins at multiples of 32 bytes. Kernels would otherwise be compiled twice."""

_LAYERS_AT_ONCE = 8
"""Layers of a prompt whose stores are made together."""

Tables = dict[Any, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class DeviceRows:
    """`coterie.models.rows.Rows`, on the device.

    ids, positions and sequences (whose row it is) are int64 [T]; stores, by layer, int64 [sequences, 4]: the addresses
    of keys and of values, the capacity, and nothing. is_step: each sequence has one row. A row whose position is
    negative is none.
    longest: no row stands behind so many others; None where launches are recorded for steps of any length.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    sequences: torch.Tensor
    stores: "torch.Tensor | StoreTables"
    tables: Tables
    parts: tuple[Any, ...]
    is_step: bool
    longest: int | None

    def last(self) -> "DeviceRows":
        ((rows, start, cache),) = self.parts
        part = type(self.parts[0])(slice(0, 1), start + rows.stop - 1, cache)
        tables = {rope: (cos[-1:], sin[-1:]) for rope, (cos, sin) in self.tables.items()}
        narrow = (self.ids[-1:], self.positions[-1:], self.sequences[-1:])
        return DeviceRows(*narrow, self.stores, tables, (part,), True, self.longest)


@dataclass(frozen=True, slots=True)
class StoreTraits:
    """`coterie.models.backend.StoreTraits`."""

    chunk: int
    itemsize: int
    room: Callable[[], float]


class RowMaker:
    """Makes the rows of passes on a device, whose stores have a dtype."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._frequencies: dict[Any, torch.Tensor] = {}

    def __call__(self, ids: Sequence[int], parts: tuple[Any, ...], frequencies: Mapping[Any, np.ndarray]) -> DeviceRows:
        counts = [rows.stop - rows.start for rows, _, _ in parts]
        positions = np.concatenate([part.start + np.arange(n) for part, n in zip(parts, counts, strict=True)])
        numbers = np.zeros((3, -(-len(ids) // _ALIGNED) * _ALIGNED), np.int64)
        numbers[:, : len(ids)] = np.array(ids), positions, np.repeat(np.arange(len(parts)), counts)
        own, at, whose = self.send(numbers)[:, : len(ids)]
        is_step = max(counts) == 1
        stores = StoreTables([cache for _, _, cache in parts], counts, self, None if is_step else _LAYERS_AT_ONCE)
        rows = DeviceRows(own, at, whose, stores, {}, parts, is_step, int(positions.max()))
        self.turn(rows, frequencies)
        return rows

    def turn(self, rows: DeviceRows, frequencies: Mapping[Any, np.ndarray]) -> None:
        """Make the rows' tables for their positions."""
        for rope, numbers in frequencies.items():
            rows.tables[rope] = rotation_table(rows.positions, self._on_device(rope, numbers), rope.amplitude)

    def send(self, numbers: np.ndarray) -> torch.Tensor:
        """A copy on the device, for which nobody waits."""
        host = torch.from_numpy(numbers)
        if self.device.type != "cuda":
            return host
        return host.pin_memory().to(self.device, non_blocking=True)

    @within_memory
    def make_store(self, shape: tuple[int, int, int], old: Any) -> torch.Tensor:
        new = torch.empty(shape, dtype=self.dtype, device=self.device)
        if old.shape[1] > 0:
            new[:, : old.shape[1]] = torch.from_numpy(old) if isinstance(old, np.ndarray) else old
        return new

    def _on_device(self, rope: Any, numbers: np.ndarray) -> torch.Tensor:
        kept = self._frequencies.get(rope)
        if kept is None:
            kept = self._frequencies[rope] = torch.from_numpy(numbers).to(self.device)
        return kept


class StoreTables:
    """Where the stores of a pass are, by layer: int64 [sequences, 4].

    Stores grow when a layer is looked for, some layers at a time: so a GPU is at work on a prompt's first layers while
    the host makes room for the others.
    """

    def __init__(self, caches: Sequence[Any], counts: Sequence[int], make: RowMaker, at_once: int | None) -> None:
        """counts: rows that each sequence brings; at_once of None: all layers."""
        self._caches, self._counts, self._make = caches, counts, make
        self._n_layers = len(caches[0].layers)
        self._at_once = self._n_layers if at_once is None else at_once
        self._found: list[torch.Tensor] = []

    def __getitem__(self, layer: int) -> torch.Tensor:
        while layer >= len(self._found):
            first = len(self._found)
            layers = range(first, min(first + self._at_once, self._n_layers))
            for cache, n_rows in zip(self._caches, self._counts, strict=True):
                cache.reserve(n_rows, self._make.make_store, layers)
            self._found += self._make.send(store_table(self._caches, layers))
        return self._found[layer]


def store_table(caches: Sequence[Any], layers: Iterable[int]) -> np.ndarray:
    """int64 [layers, sequences, 4]: where each layer's keys and values of each sequence are, and their capacity."""
    table = [
        [
            (keys.data_ptr(), values.data_ptr(), keys.shape[1], 0)
            for keys, values in (c.layers[i].stores for c in caches)
        ]
        for i in layers
    ]
    return np.array(table, np.int64)


def rotation_table(
    positions: torch.Tensor, frequencies: torch.Tensor, amplitude: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin times `amplitude`, f32 [T, n] each, of frequencies f32 [n] at positions int64 [T]."""
    n_pairs = len(frequencies)
    cos, sin = torch.empty((2, len(positions), n_pairs), dtype=torch.float32, device=positions.device)
    with on_device_of(positions):
        launch(
            rotation_kernel, (len(positions),),
            positions, frequencies, cos, sin, float(amplitude), n_pairs, next_power_of_2(n_pairs), num_warps=1,
            **early(positions),
        )  # fmt: skip
    return cos, sin
