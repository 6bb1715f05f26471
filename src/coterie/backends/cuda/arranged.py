"""Activations that whoever made them has brought into the order of codes already, for products seen before.

What makes activations does not know which matrices they will meet. So it hands out `Arranged` rows, which tell a
product what they are in; a product that finds nothing arranges them itself and leaves its wish, which is met from the
next time on. A model's layers are the same every time: after its first pass every wish is known.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from coterie.backends.cuda.stacks import Stack


class Arrangement(NamedTuple):
    """An order of codes: groups of so many, so many codes in a unit; activations as the sum of `parts` numbers, with or
    without their sums over groups.
    """

    group: int
    per_unit: int
    parts: int
    sums: bool

    @classmethod
    def of(cls, stack: Stack, parts: int, *, sums: bool = True) -> "Arrangement":
        """What products with `stack` want; without `sums` those that make them themselves."""
        return cls(stack.group, stack.per_unit, parts, stack.has_sums and sums)

    def serves(self, other: "Arrangement") -> bool:
        """Whether rows in this order are also in the other: the first part of two is the one of one."""
        return self.parts >= other.parts and self.sums >= other.sums and self[:2] == other[:2]


class Wishes:
    """Which arrangements were looked for in vain, by the place that made the activations."""

    def __init__(self) -> None:
        self._by_place: dict[Hashable, tuple[Arrangement, ...]] = {}

    def at(self, place: Hashable) -> tuple[Arrangement, ...]:
        return self._by_place.get(place, ())

    def add(self, place: Hashable, wish: Arrangement) -> None:
        kept = [one for one in self.at(place) if not wish.serves(one)]
        if not any(one.serves(wish) for one in kept):
            self._by_place[place] = (*kept, wish)


@dataclass(frozen=True, slots=True)
class Made:
    """Rows in an arrangement: bfloat16 [parts, n, K] and f32 [parts, n, K / group], which is empty without sums."""

    arrangement: Arrangement
    values: torch.Tensor
    sums: torch.Tensor

    @classmethod
    def empty(cls, arrangement: Arrangement, n: int, k: int, device: torch.device) -> "Made":
        group, _, parts, has_sums = arrangement
        values = torch.empty((parts, n, k), dtype=torch.bfloat16, device=device)
        sums = torch.empty((parts, n, k // group if has_sums else 0), dtype=torch.float32, device=device)
        return cls(arrangement, values, sums)


@dataclass(frozen=True, slots=True)
class Arranged:
    """Rows [n, K]: `wide` in f32, and those that were made of them for products."""

    wide: torch.Tensor
    made: tuple[Made, ...]
    wishes: Wishes
    place: Hashable

    def __len__(self) -> int:
        return len(self.wide)

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Some of the rows, for whoever brings them into order anew."""
        return self.wide[index]

    def find(self, wish: Arrangement) -> Made | None:
        """The rows in an arrangement; None leaves the wish for the next time."""
        for made in self.made:
            if made.arrangement.serves(wish):
                return Made(wish, made.values[: wish.parts], made.sums[: wish.parts])
        self.wishes.add(self.place, wish)
        return None
