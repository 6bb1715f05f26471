"""Decoding steps as CUDA graphs: the launches of a step are recorded once and played again for all that follow.

What changes from step to step (token ids, positions, where the stores are) stands in tensors of its own, which the
recorded kernels read. A record belongs to one user at a time; it serves so many rows, some of which may be none.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from coterie.arrays import as_numpy
from coterie.backends.cuda.decoder.rows import DeviceRows, RowMaker, store_table
from coterie.backends.cuda.decoder.sampling import Chooser
from coterie.backends.cuda.device import within_memory
from coterie.backends.cuda.launch import recorded

Compute = Callable[[DeviceRows], torch.Tensor]
"""Logits f32 [rows, V] of a step; reads nothing of the host's that changes."""

_recording = threading.Lock()
"""PyTorch records one graph at a time."""


def rows_for(n: int) -> int:
    """Rows of the record that serves n sequences: every number up to 4, then few of them."""
    step = 1 if n <= 4 else 4 if n <= 16 else 8 if n <= 64 else 32
    return -(-n // step) * step


class Record:
    """A step of `n_rows` rows, to be filled in and run."""

    def __init__(self, compute: Compute, make: RowMaker, frequencies: Mapping[Any, np.ndarray], n_rows: int) -> None:
        device = make.device
        self.n_rows = n_rows
        self.ids, self.found = (torch.zeros(n_rows, dtype=torch.int64, device=device) for _ in range(2))
        self.positions = torch.full((n_rows,), -1, dtype=torch.int64, device=device)
        self._sequences = torch.arange(n_rows, dtype=torch.int64, device=device)
        self._stores: torch.Tensor | None = None
        self._compute, self._make, self._frequencies = compute, make, frequencies
        self._graph: Any = None
        self._has_run = False
        self._logits: torch.Tensor | None = None

    def place(self, table: np.ndarray) -> None:
        """Where the stores of the first rows are, as `store_table` says it."""
        whole = np.zeros((len(table), self.n_rows, table.shape[2]), np.int64)
        whole[:, : table.shape[1]] = table
        sent = self._make.send(whole)
        if self._stores is None:
            self._stores = torch.empty_like(sent)
        self._stores.copy_(sent)

    @within_memory
    def run(self, longest: int) -> torch.Tensor:
        """The logits, which the next run overwrites; `longest`: no row stands behind so many others."""
        if self._graph is not None:
            self._graph.replay()
        elif self._make.device.type != "cuda" or not self._has_run:
            # The first run compiles kernels, which nobody can record.
            self._logits = self._once(longest)
            self._has_run = True
        else:
            with _recording:
                graph = torch.cuda.CUDAGraph()
                with recorded(graph, capture_error_mode="thread_local"):
                    self._logits = self._once(None)
            self._graph = graph
            graph.replay()
        assert self._logits is not None
        return self._logits

    def _once(self, longest: int | None) -> torch.Tensor:
        assert self._stores is not None
        rows = DeviceRows(self.ids, self.positions, self._sequences, self._stores, {}, (), True, longest)
        self._make.turn(rows, self._frequencies)
        return self._compute(rows)


class Records:
    """The records of a decoder that nobody uses."""

    def __init__(self) -> None:
        self._free: dict[tuple[bool, int], list[Record]] = {}
        self._lock = threading.Lock()

    def take(self, key: tuple[bool, int], make: Callable[[], Record]) -> Record:
        with self._lock:
            free = self._free.get(key)
            record = free.pop() if free else None
        return make() if record is None else record

    def give(self, key: tuple[bool, int], record: Record) -> None:
        with self._lock:
            self._free.setdefault(key, []).append(record)


class DeviceSteps:
    """`coterie.models.steps.Steps`."""

    def __init__(
        self, compute: Compute, caches: Sequence[Any], frequencies: Mapping[Any, np.ndarray], make: RowMaker,
        records: Records, alone: bool,
    ) -> None:  # fmt: skip
        self._caches, self._make, self._records = caches, make, records
        self._key = (alone, rows_for(len(caches)))
        self._record = records.take(self._key, lambda: Record(compute, make, frequencies, self._key[1]))
        self._is_placed = False
        self._running: Any = None

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        self._fill(ids)
        logits = self._launch()
        return as_numpy(logits[: len(ids)])

    def tokens(self, ids: Sequence[int], draws: Sequence[Any]) -> Iterator[list[int]]:
        self._running = self._run(ids, Chooser(draws, self._key[1], self._make.device))
        return self._running  # type: ignore[no-any-return]

    def close(self) -> None:
        if self._running is not None:
            self._running.close()
        if self._record is not None:
            self._records.give(self._key, self._record)
            self._record = None  # type: ignore[assignment]

    def _run(self, ids: Sequence[int], chooser: Chooser) -> Iterator[list[int]]:
        """The tokens of a step are handed out while the next one runs, if every cache has room for it."""
        self._fill(ids)
        under_way = [self._step(chooser)]
        try:
            while True:
                if len(under_way) < 2 and all(cache.length < cache.limit for cache in self._caches):
                    under_way.append(self._step(chooser))
                found = under_way[0].wait()
                del under_way[0]
                yield found[: len(ids)]
                if not under_way:
                    under_way.append(self._step(chooser))
        finally:
            for cache in self._caches:
                cache.rewind(cache.length - len(under_way))

    def _step(self, chooser: Chooser) -> "_Found":
        chooser.choose(self._launch(), self._record.found, self._record.ids, self._record.positions)
        return _Found(self._record.found)

    def _fill(self, ids: Sequence[int]) -> None:
        """Ids and positions of the next step from the host."""
        n, record = len(ids), self._record
        numbers = np.zeros((2, record.n_rows), np.int64)
        numbers[1] = -1
        numbers[0, :n], numbers[1, :n] = ids, [cache.length for cache in self._caches]
        sent = self._make.send(numbers)
        record.ids.copy_(sent[0])
        record.positions.copy_(sent[1])

    def _launch(self) -> torch.Tensor:
        """Run a step, whose tokens join the caches."""
        moved = [cache.reserve(1, self._make.make_store) for cache in self._caches]
        if any(moved) or not self._is_placed:
            self._record.place(store_table(self._caches, range(len(self._caches[0].layers))))
            self._is_placed = True
        longest = max(cache.length for cache in self._caches)
        for cache in self._caches:
            cache.length += 1
        return self._record.run(longest)


class _Found:
    """Tokens on their way to the host."""

    def __init__(self, found: torch.Tensor) -> None:
        self._event: Any = None
        self._tokens = found.clone()
        if found.is_cuda:
            self._tokens = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            self._tokens.copy_(found, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> list[int]:
        if self._event is not None:
            self._event.synchronize()
        return self._tokens.tolist()  # type: ignore[no-any-return]
