"""Shapes of the tiles that attention kernels work on, by the size of a head: what fits into registers."""

from dataclasses import dataclass

import torch

from coterie.backends.cuda.sizes import cdiv, next_power_of_2

_PROGRAMS = 256
"""Programs that a step is divided among, if its sequences are long enough: two for each multiprocessor."""

_WIDE_PROGRAMS = 128
"""The same where heads are wider, and fill a multiprocessor's registers."""

_PROGRAMS_AT_ONCE = 1024
"""Programs of a step of many sequences: about as many as multiprocessors have room for."""

_MOST_SPLITS = 64

_LEAST_SHARED = 48 << 10
"""Bytes of shared memory that every GPU's programs may have."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """heads: of a group in a program, at least the 16 rows of a tile that matrix units take; parts: programs that a
    group needs; n_splits: programs among which a sequence's positions are divided; n_keys: met at a time.
    """

    heads: int
    parts: int
    n_splits: int
    n_keys: int
    warps: int

    def n_programs(self, longest: int | None, window: int | None, n_beside: int) -> int:
        """Programs for the splits that have positions, of rows that stand behind at most `longest` others; `n_beside`
        of each are there, for other rows and heads. Where these are many, a program takes several splits.
        """
        most = max(1, _PROGRAMS_AT_ONCE // n_beside)
        if longest is None:
            return min(self.n_splits, most)
        seen = longest + 1 if window is None else min(longest + 1, window)
        return min(self.n_splits, -(-seen // self.n_keys), most)


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have."""
    if device.type != "cuda":
        return _LEAST_SHARED
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", _LEAST_SHARED))


def step_shape(head_dim: int, n_kv_heads: int, group: int, dtype: torch.dtype, n_together: int = 1) -> StepShape:
    """The shape for steps of any length, on which it must not depend; nor on the number of rows, if each has the bits
    that it has alone. Where rows need not, they are `n_together`, and fewer shares of each are written and read again.
    """
    block = next_power_of_2(head_dim)
    heads = 16 if group <= 16 else 32
    parts = cdiv(group, heads)
    # A record of a step has a few rows more than there are texts: with powers of two it has the bits of a pass.
    beside = n_kv_heads * parts * next_power_of_2(n_together)
    n_splits = max(1, min(_MOST_SPLITS, (_PROGRAMS if block <= 128 else _WIDE_PROGRAMS) // beside))
    n_keys = 64 if block <= 128 else 32
    if dtype == torch.float32:
        n_keys = 16
    return StepShape(heads, parts, n_splits, n_keys, 4 if block <= 256 else 8)


@dataclass(frozen=True, slots=True)
class TokensShape:
    """rows: tokens times heads of a group in a program; n_keys: met at a time."""

    rows: int
    n_keys: int
    warps: int
    stages: int


_WIDE = 128
"""Numbers of a head from which on the shape with the most keys pays."""

_LARGEST_FIRST = (
    TokensShape(128, 128, 8, 3),
    TokensShape(128, 64, 8, 3),
    TokensShape(128, 64, 8, 2),
    TokensShape(64, 32, 8, 2),
    TokensShape(32, 32, 4, 2),
)


def tokens_shape(block: int, dtype: torch.dtype, shared: int) -> TokensShape:
    """The shape for prompts, of heads that take `block` numbers of a tile: the largest whose queries, keys and values
    fit into so many bytes of shared memory.
    """
    if dtype == torch.float32:
        return TokensShape(16, 16, 4 if block <= 128 else 8, 1)
    for shape in _LARGEST_FIRST if block >= _WIDE else _LARGEST_FIRST[1:]:
        if 2 * block * (shape.rows + 2 * shape.stages * shape.n_keys) <= shared:
            return shape
    return TokensShape(16, 16, 4, 1)
