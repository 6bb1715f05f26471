"""Decoding steps on the CPU: a step of one sequence is recorded, and played again for all that follow.

A step takes some hundred calls of a few microseconds each between reading weights. In Python they cost several times
as much as by themselves: what Python needs has left the caches when the weights have passed through. Played again, a
step is one call.
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coterie.backends.cpu import isa
from coterie.backends.cpu.decoder.heads import place_stores
from coterie.backends.cpu.decoder.matrices import embed
from coterie.backends.cpu.decoder.recorded_step import RecordedStep
from coterie.backends.cpu.jit import njit
from coterie.backends.cpu.pool import Pool, get_pool
from coterie.backends.cpu.recording import play, recorded
from coterie.backends.cpu.routing import check_routed


@dataclass(frozen=True, slots=True)
class StepRows:
    """One row for each sequence, as `coterie.models.rows.Rows`."""

    ids: list[int]
    tables: Mapping[Any, tuple[np.ndarray, np.ndarray]]
    parts: tuple[tuple[slice, int, Any], ...]


Compute = Callable[[StepRows], np.ndarray]
"""Logits f32 [rows, V] of a step; the caches count their tokens afterwards."""


class Record:
    """A step that has been recorded, or could not be."""

    def __init__(self, compute: Compute, rows: StepRows, frequencies: Mapping[Any, np.ndarray]) -> None:
        """Run a step of one sequence, whose rows' tables belong to the record from now on."""
        self._frequencies, self._tables = frequencies, rows.tables
        self._step, self._isa, pool = RecordedStep(), isa.current(), get_pool()
        with pool.lock:
            self._generation = pool.generation
            with recorded(self._step):
                self.logits = compute(rows)
            # Buffers that have moved meanwhile are not where the first phases expect them.
            self.is_whole = self._step.is_whole and self._step.embedding is not None
            self._is_steady = pool.generation == self._generation
        self._entries = self._step.entries()

    def is_valid(self, pool: Pool) -> bool:
        """Whether it can be played; the pool must be held."""
        return self.is_whole and self._is_steady and (pool.generation, isa.current()) == (self._generation, self._isa)

    def place(self, cache: Any) -> None:
        """The stores of a cache are those to use from now on."""
        for layer, frame in self._step.stores.items():
            place_stores(frame, *cache.layers[layer].stores)

    def play(self, pool: Pool, token_id: int, position: int) -> np.ndarray:
        """The logits behind a token, which the next play overwrites; the pool must be held."""
        step = self._step
        assert step.embedding is not None
        table, scale, rows = step.embedding
        rows[...] = embed(table, [token_id], scale)
        for rope, (cos, sin) in self._tables.items():
            fill_tables(self._frequencies[rope], position, rope.amplitude, cos, sin)
        step.position[0], step.unusable[0] = position, -1
        play(pool.block, self._entries)
        check_routed(int(step.unusable[0]))
        return self.logits


class Records:
    """The records of decoders that nobody uses, by the decoder's frequencies."""

    def __init__(self) -> None:
        self._free: dict[int, list[tuple[Mapping[Any, np.ndarray], Record]]] = {}
        self._lock = threading.Lock()

    def take(self, frequencies: Mapping[Any, np.ndarray]) -> Record | None:
        """A record of this decoder's, if there is one."""
        with self._lock:
            free = self._free.get(id(frequencies))
            return free.pop()[1] if free else None

    def give(self, frequencies: Mapping[Any, np.ndarray], record: Record) -> None:
        """Somebody else may have it."""
        with self._lock:
            self._free.setdefault(id(frequencies), []).append((frequencies, record))


class PlayedSteps:
    """`coterie.models.steps.Steps`."""

    def __init__(
        self, compute: Compute, caches: Sequence[Any], frequencies: Mapping[Any, np.ndarray], records: Records
    ) -> None:
        self._compute, self._caches, self._frequencies, self._records = compute, caches, frequencies, records
        self._record = records.take(frequencies) if len(caches) == 1 else None
        self._is_placed = False

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        if len(self._caches) > 1 or (self._record is not None and not self._record.is_whole):
            found = self._compute(self._rows(ids))
        else:
            found = self._played(ids)
        for cache in self._caches:
            cache.length += 1
        return found

    def _played(self, ids: Sequence[int]) -> np.ndarray:
        (cache,), pool = self._caches, get_pool()
        with pool.lock:
            if self._record is None or not self._record.is_valid(pool):
                self._record = Record(self._compute, self._rows(ids), self._frequencies)
                self._is_placed = True
                return self._record.logits
            if cache.reserve(1) or not self._is_placed:
                self._record.place(cache)
                self._is_placed = True
            return self._record.play(pool, ids[0], cache.length)

    def tokens(self, ids: Sequence[int], draws: Sequence[Any]) -> None:  # noqa: ARG002 - the host chooses
        return None

    def close(self) -> None:
        if self._record is not None:
            self._records.give(self._frequencies, self._record)
            self._record = None

    def _rows(self, ids: Sequence[int]) -> StepRows:
        tables = {
            rope: tuple(np.empty((len(ids), len(own)), np.float32) for _ in range(2))
            for rope, own in self._frequencies.items()
        }
        for rope, (cos, sin) in tables.items():
            for row, cache in enumerate(self._caches):
                place = slice(row, row + 1)
                fill_tables(self._frequencies[rope], cache.length, rope.amplitude, cos[place], sin[place])
        parts = tuple((slice(row, row + 1), cache.length, cache) for row, cache in enumerate(self._caches))
        return StepRows(list(ids), tables, parts)  # type: ignore[arg-type]


@njit
def fill_tables(frequencies, position, amplitude, cos, sin):
    """cos and sin f32 [1, n], times the amplitude, of frequencies f32 [n] at a position."""
    for pair in range(frequencies.size):
        angle = np.float64(np.float32(position) * frequencies[pair])
        cos[0, pair], sin[0, pair] = np.float32(math.cos(angle) * amplitude), np.float32(math.sin(angle) * amplitude)
