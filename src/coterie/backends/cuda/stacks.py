"""Matrices as the kernels read them: where they lie, in MLX's own layout. Codes are never repacked, and constants for
`stream` alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch

from coterie.backends.cuda.kernels.codes import excess, units
from coterie.errors import CapacityError
from coterie.formats import Packed

Weight: TypeAlias = Packed | torch.Tensor

_MOST_ELEMENTS = (1 << 31) - 1
_REMEMBERED = 64
"""Numbers of rows for which a matrix remembers how it is multiplied."""

_PLAIN_GROUP = 64
"""Columns that a product with plain weights takes at a time."""


@dataclass(frozen=True, slots=True)
class Stack:
    """E matrices [N, K] of one format: `codes` seen as uint16 units, as bytes where codes straddle units, or plain;
    scales and biases [E, N, K / group].

    per_unit: codes in a unit, 1 where they are fetched one by one. excess: what `kernels.codes` makes codes too large
    by. For plain weights scales and biases are `codes` itself, and are not read. derived: what was once
    computed of them; tiles: how they were multiplied with numbers of rows.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    biases: torch.Tensor
    n_experts: int
    n_rows: int
    n_columns: int
    mode: str
    bits: int
    group: int
    per_unit: int
    excess: int
    derived: dict[str, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)
    tiles: dict[tuple[Any, ...], Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def bytes_each(self) -> float:
        """Bytes of a weight, or of its code."""
        return float(self.codes.element_size()) if self.mode == "plain" else self.bits / 8

    @property
    def is_aligned(self) -> bool:
        """Whether rows of whole groups can be copied 16 bytes at a time: not if somebody cut them out of the middle."""
        return bool(self.codes.data_ptr() % 16 == 0)

    @property
    def same_format(self) -> tuple[object, ...]:
        """What two stacks must share to go through one kernel together."""
        return (self.mode, self.bits, self.group, self.codes.dtype, self.scales.dtype)

    def remembered(self, key: tuple[Any, ...], find: Callable[[], Any]) -> Any:
        """How it is multiplied; found once for a key, because to find it costs the host what a launch does."""
        found = self.tiles.get(key)
        if found is None:
            if len(self.tiles) >= _REMEMBERED:
                self.tiles.clear()
            found = self.tiles[key] = find()
        return found

    @property
    def has_sums(self) -> bool:
        """Whether products need the sums of activations over groups."""
        return self.mode == "affine"


class Pair(NamedTuple):
    """What goes beside a stack in one launch: the second stack, rows of an expert that are multiplied of each, the row
    at which the second's begin, and both biases.
    """

    second: Stack
    n_rows: int
    second_row: int
    bias: torch.Tensor | None
    second_bias: torch.Tensor | None


Biases: TypeAlias = tuple[torch.Tensor | None, torch.Tensor | None]


def pair_of(stack: Stack, up: Stack | None, biases: Biases, *, gated: bool) -> Pair:
    """Gate and up, if `gated`: two stacks, or, up of None, the halves of one. Else a stack stands beside itself."""
    if gated and up is None:
        half = stack.n_rows // 2
        return Pair(stack, half, half, biases[0], biases[0])
    return Pair(stack if up is None else up, stack.n_rows, 0, *biases)


def stack_of(weight: Weight) -> Stack:
    """A matrix [N, K], or a stack of them [..., N, K]; what is made of a `Packed` is remembered by it."""
    if not isinstance(weight, Packed):
        n_rows, n_columns = weight.shape[-2:]
        _check_size(n_rows, n_columns)
        n = weight.numel() // (n_rows * n_columns)
        return Stack(weight, weight, weight, n, n_rows, n_columns, "plain", 16, _PLAIN_GROUP, 1, 0)
    found: Stack | None = weight.derived.get("cuda")
    if found is None:
        found = weight.derived["cuda"] = _packed_stack(weight)
    return found


def _check_size(n_rows: int, width: int) -> None:
    """Refuse a matrix in which kernels could lose their way: they count 64 bits to a matrix, and 31 inside of it."""
    if n_rows * width > _MOST_ELEMENTS:
        raise CapacityError(
            f"a matrix has {n_rows} rows of {width} stored elements, expected at most {_MOST_ELEMENTS} in all; "
            "multiply with parts of its rows"
        )


def _packed_stack(packed: Packed) -> Stack:
    fmt = packed.format
    n_rows, n_columns = packed.shape[-2:]
    per_unit = units(fmt.bits)
    codes = packed.codes.contiguous().view(torch.uint16 if per_unit > 1 else torch.uint8)
    _check_size(n_rows, codes.shape[-1])
    scales = packed.scales.contiguous()
    biases = scales if packed.biases is None else packed.biases.contiguous()
    n = codes.numel() // (n_rows * codes.shape[-1])
    return Stack(
        codes, scales, biases, n, n_rows, n_columns, fmt.mode, fmt.bits, fmt.group_size, per_unit,
        excess(fmt.mode, fmt.bits),
    )  # fmt: skip
