"""Frames: the words of jobs that run back to back, and their phases, in one block of memory.

What stays the same from call to call, such as the addresses of weights, is written once. A decoding step calls a few
hundred verbs of a few microseconds each, and putting their words together in Python would take as long as the work.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coterie.backends.cpu.pool import Pool, address_of
from coterie.backends.cpu.recording import recording

Job = tuple[int, Sequence[int], int, bool]
"""The address of a job, its words, its units, and whether other threads are worth waking."""

_MOST_ROWS = 8
"""Frames of so many rows at most are remembered."""
_MOST_FRAMES = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """memory int64 [n]: four words for each of `n_phases`, which begin at address `at`, then the words of the jobs.

    owners: what the addresses among the words point to.
    """

    memory: np.ndarray
    at: int
    n_phases: int
    owners: tuple[Any, ...]

    def record(self, *kept: Any) -> None:
        """Add the jobs, which have just run, to the recording that is on, if one is."""
        own = recording()
        if own is not None:
            own.add(self.at, self.n_phases, self, *kept)


def make_frame(jobs: Sequence[Job], owners: tuple[Any, ...]) -> Frame:
    """A frame of these jobs in order; jobs with the same words, by identity, share them."""
    places: dict[int, int] = {}
    size = 4 * len(jobs)
    for _, words, _, _ in jobs:
        if id(words) not in places:
            places[id(words)] = size
            size += len(words)
    memory = np.zeros(size, np.int64)
    at = address_of(memory)
    for index, (function, words, units, worth) in enumerate(jobs):
        place = places[id(words)]
        memory[4 * index : 4 * index + 4] = function, at + 8 * place, units, worth
        memory[place : place + len(words)] = words
    return Frame(memory, at, len(jobs), owners)


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """The frames of a decoder, by what they were made for, with the generation of the pool's buffers."""

    held: dict[Hashable, tuple[int, Frame]] = field(default_factory=dict)

    def get(self, pool: Pool, key: Hashable, n_rows: int, make: Callable[[], Frame]) -> Frame:
        """The frame for a key that names everything that its words depend on; arrays by their identity. The pool must
        be held.
        """
        held = self.held.get(key)
        if held is not None and held[0] == pool.generation and recording() is None:
            return held[1]
        frame = make()
        if n_rows <= _MOST_ROWS and recording() is None:
            if len(self.held) >= _MOST_FRAMES:
                self.held.clear()
            # Making it may have moved a buffer, but then its words speak of the new place.
            self.held[key] = (pool.generation, frame)
        return frame


def optional_address(array: np.ndarray | None) -> int:
    """The address of an array, 0 for None."""
    return 0 if array is None else address_of(array)
