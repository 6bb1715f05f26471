"""Frames: the words of jobs that run back to back, and their phases, in one block of memory.

What stays the same from call to call, such as the addresses of weights, is written once. A decoding step calls a few
hundred verbs of a few microseconds each, and putting their words together in Python would take as long as the work.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from coterie.backends.cpu.pool import address_of

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

    def words(self, job: int) -> int:
        """The place in memory of the words of a job."""
        return (int(self.memory[4 * job + 1]) - self.at) // 8


def make_frame(jobs: Sequence[Job], owners: tuple[Any, ...]) -> Frame:
    """A frame of these jobs in order."""
    places = np.cumsum([4 * len(jobs), *(len(words) for _, words, _, _ in jobs)])
    memory = np.zeros(places[-1], np.int64)
    at = address_of(memory)
    for index, (function, words, units, worth) in enumerate(jobs):
        memory[4 * index : 4 * index + 4] = function, at + 8 * places[index], units, worth
        memory[places[index] : places[index] + len(words)] = words
    return Frame(memory, at, len(jobs), owners)


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """The frames of a decoder, by what they were made for."""

    held: dict[Hashable, Frame] = field(default_factory=dict)

    def get(self, key: Hashable, n_rows: int, make: Callable[[], Frame]) -> Frame:
        """The frame for a key that names everything that its words depend on; arrays by their identity."""
        frame = self.held.get(key)
        if frame is None:
            frame = make()
            if n_rows <= _MOST_ROWS:
                if len(self.held) >= _MOST_FRAMES:
                    self.held.clear()
                self.held[key] = frame
        return frame


def optional_address(array: np.ndarray | None) -> int:
    """The address of an array, 0 for None."""
    return 0 if array is None else address_of(array)
