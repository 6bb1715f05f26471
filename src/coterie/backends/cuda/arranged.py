"""Activations that whoever made them has brought into the order of codes already, for products seen before.

What makes activations does not know which matrices they will meet. So it hands out `Arranged` rows, which tell a
product what they are in; a product that finds nothing arranges them itself and leaves its wish, which is met from the
next time on. A model's layers are the same every time: after its first pass every wish is known.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from coterie.backends.cuda.stacks import Stack

_THREADS = 4
"""Of a warp, that share a group of codes in the kernels of `single`."""


class Arrangement(NamedTuple):
    """An order of codes: groups of so many, so many codes in a unit; activations as the sum of `parts` numbers, with or
    without their sums over groups. halves: as `rows.Halves` has them; lifted: a sixteenth for every second code of a
    unit, whose number is 16 times the code.
    """

    group: int
    per_unit: int
    parts: int
    sums: bool
    halves: bool = False
    lifted: bool = False

    @classmethod
    def of(cls, stack: Stack, parts: int) -> "Arrangement":
        """What products with `stack` want."""
        return cls(stack.group, stack.per_unit, parts, stack.has_sums)

    @classmethod
    def of_threads(cls, stack: Stack, parts: int) -> "Arrangement":
        """What products of single rows with `stack` want: four threads share a group, and each has its own part of the
        group in the order of codes, so that it reads all of that at once.
        """
        return cls(stack.group // _THREADS, stack.per_unit, parts, False)

    @classmethod
    def of_halves(cls, stack: Stack) -> "Arrangement":
        """What float16 products with `stack` want."""
        return cls(stack.group, stack.per_unit, 1, False, True)

    @classmethod
    def of_stream(cls, stack: Stack) -> "Arrangement":
        """What products of `stream` with `stack` want: the order of `of_threads`, in float16."""
        return cls(stack.group // _THREADS, stack.per_unit, 1, False, True, (stack.mode, stack.bits) == ("affine", 4))

    def serves(self, other: "Arrangement") -> bool:
        """Whether rows in this order are also in the other: the first part of two is the one of one."""
        same = self[:2] == other[:2] and self[4:] == other[4:]
        return same and self.parts >= other.parts and self.sums >= other.sums


class Wishes:
    """Which arrangements were looked for in vain, by the place that made the activations; and where they are wanted in
    f32, too.
    """

    def __init__(self) -> None:
        self._by_place: dict[Hashable, tuple[Arrangement, ...]] = {}
        self._wide: set[Hashable] = set()

    def at(self, place: Hashable) -> tuple[Arrangement, ...]:
        return self._by_place.get(place, ())

    def add(self, place: Hashable, wish: Arrangement) -> None:
        kept = [one for one in self.at(place) if not wish.serves(one)]
        if not any(one.serves(wish) for one in kept):
            self._by_place[place] = (*kept, wish)

    def wants_wide(self, place: Hashable) -> bool:
        """Whether rows may be looked for in f32: somebody did, or nobody has looked for any yet."""
        return place in self._wide or place not in self._by_place

    def add_wide(self, place: Hashable) -> None:
        self._wide.add(place)


@dataclass(frozen=True, slots=True)
class Made:
    """Rows in an arrangement: bfloat16 [parts, n, K] and f32 [parts, n, K / group], which is empty without sums. Halves
    are float16 [1, n, K] and f32 [n, 2].
    """

    arrangement: Arrangement
    values: torch.Tensor
    sums: torch.Tensor

    @classmethod
    def empty(cls, arrangement: Arrangement, n: int, k: int, device: torch.device) -> "Made":
        group, _, parts, has_sums, halves, _ = arrangement
        values = torch.empty((parts, n, k), dtype=torch.float16 if halves else torch.bfloat16, device=device)
        shape = (n, 2) if halves else (parts, n, k // group if has_sums else 0)
        return cls(arrangement, values, torch.empty(shape, dtype=torch.float32, device=device))


class Arranged:
    """Rows [n, K], and those that were made of them for products."""

    def __init__(
        self, n: int, wide: torch.Tensor | Callable[[], torch.Tensor], made: tuple[Made, ...], wishes: Wishes,
        place: Hashable,
    ) -> None:  # fmt: skip
        """wide: the rows in f32, or how to make them."""
        self._n, self._wide, self._made, self._wishes, self._place = n, wide, made, wishes, place

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Some of the rows, for whoever brings them into order anew."""
        return self.wide[index]

    @property
    def wide(self) -> torch.Tensor:
        """All of them in f32. Where they have to be made for this, they are there the next time."""
        if not isinstance(self._wide, torch.Tensor):
            self._wishes.add_wide(self._place)
            self._wide = self._wide()
        return self._wide

    def find(self, wish: Arrangement) -> Made | None:
        """The rows in an arrangement; None leaves the wish for the next time."""
        for made in self._made:
            if made.arrangement == wish:
                return made
            if made.arrangement.serves(wish):
                sums = made.sums if wish.halves else made.sums[: wish.parts]
                return Made(wish, made.values[: wish.parts], sums)
        self._wishes.add(self._place, wish)
        return None
