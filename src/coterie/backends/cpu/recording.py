"""What a thread runs on the pool, written down so that it can be run again without Python.

While a recording is on, whoever runs jobs uses words of its own for them, which nobody else changes, and adds their
phases to it. Played again they read and write the same memory: what goes in is copied to where it was, and what comes
out is found where it came out.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from coterie.backends.cpu.jit import njit
from coterie.backends.cpu.pool import run_phases


class Recording:
    """Phases in the order in which they ran, and what they point to.

    `is_whole` is False when something ran that does not run on the pool, so that phases alone would not do it again.
    """

    def __init__(self) -> None:
        self.is_whole = True
        self._entries: list[tuple[int, int]] = []
        self._kept: list[Any] = []

    def add(self, phases: int, n_phases: int, *kept: Any) -> None:
        """Phases that have just been run, their address and number; `kept` is what they read and write."""
        self._entries.append((phases, n_phases))
        self._kept.append(kept)

    def entries(self) -> np.ndarray:
        """What `play` takes, int64 [n, 2]."""
        return np.array(self._entries, np.int64).reshape(-1, 2)


_local = threading.local()


def recording() -> Recording | None:
    """The recording of this thread that is on, if one is."""
    found: Recording | None = getattr(_local, "recording", None)
    return found


@contextmanager
def recorded(own: Recording) -> Iterator[None]:
    """Record what this thread runs."""
    _local.recording = own
    try:
        yield
    finally:
        _local.recording = None


def not_recorded() -> None:
    """Say that what follows does not run on the pool."""
    own = recording()
    if own is not None:
        own.is_whole = False


@njit
def play(block, entries):
    """Run recorded phases on the pool, which must be held."""
    for index in range(entries.shape[0]):
        run_phases(block, entries[index, 0], entries[index, 1])
