"""The rows of a pass: whose tokens they are, where in their sequences they stand, and how far they are turned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from coterie.arrays import Array
from coterie.models.architecture import Rope
from coterie.models.backend import Backend, Cache
from coterie.models.rope import rotation_table

Frequencies = Mapping[Rope, np.ndarray]
"""f32 [n] for each rotary embedding of a decoder."""


class Part(NamedTuple):
    """The rows of one sequence in a pass, from position `start` on."""

    rows: slice
    start: int
    cache: Cache


@dataclass(frozen=True, slots=True)
class Rows:
    """Token ids as `Backend.embed` takes them, tables of cos and sin [T, n], and the sequences' parts in order.

    A back end may have rows of its own, with these fields and whatever it wants to know on its device.
    """

    ids: Any
    tables: Mapping[Rope, tuple[Array, Array]]
    parts: tuple[Part, ...]

    def last(self) -> "Rows":
        """The last row alone, of a pass of one sequence."""
        ((rows, start, cache),) = self.parts
        tables = {rope: (cos[-1:], sin[-1:]) for rope, (cos, sin) in self.tables.items()}
        return Rows(self.ids[-1:], tables, (Part(slice(0, 1), start + rows.stop - 1, cache),))


def rows_of(backend: Backend, sequences: Sequence[tuple[Sequence[int], Cache]], frequencies: Frequencies) -> Rows:
    """The rows of ids that join the tokens in their caches; the back end's own kind of rows where it has one."""
    ids = [token_id for own, _ in sequences for token_id in own]
    ends = np.cumsum([len(own) for own, _ in sequences]).tolist()
    parts = tuple(
        Part(slice(end - len(own), end), cache.length, cache) for (own, cache), end in zip(sequences, ends, strict=True)
    )
    make = getattr(backend, "pass_rows", None)
    if make is not None:
        return make(ids, parts, frequencies)  # type: ignore[no-any-return]
    positions = np.concatenate([part.start + np.arange(part.rows.stop - part.rows.start) for part in parts])
    tables = {rope: rotation_table(own, positions, rope.amplitude) for rope, own in frequencies.items()}
    return Rows(ids, tables, parts)
