"""A decoding step of one sequence as it was recorded: its phases, and what changes from step to step."""

from typing import Any

import numpy as np

from coterie.backends.cpu.recording import Recording, recording


class RecordedStep(Recording):
    """position int64 [1]: where the step's token stands, for whoever turns and attends. unusable int64 [1]: 0 if the
    logits of some router were not usable, else -1. embedding: a table, a factor, and rows f32 [1, H], the token's.
    stores: for each layer, the words that say where keys and values are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.position, self.unusable = np.zeros(1, np.int64), np.full(1, -1, np.int64)
        self.embedding: tuple[Any, float, np.ndarray] | None = None
        self.stores: dict[int, np.ndarray] = {}

    def embedded(self, table: Any, scale: float, rows: np.ndarray) -> None:
        """Rows of a table have been looked up; those of a second table are one thing too many."""
        self.is_whole = self.is_whole and self.embedding is None
        self.embedding = table, scale, rows


def recorded_step() -> RecordedStep | None:
    """The step that this thread records, if it does."""
    own = recording()
    return own if isinstance(own, RecordedStep) else None
