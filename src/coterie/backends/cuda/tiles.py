"""How large the pieces are that a program of a kernel takes, by the number of rows that an expert has."""

from dataclasses import dataclass, replace

import torch

from coterie.backends.cuda.sizes import cdiv
from coterie.backends.cuda.stacks import Stack


@dataclass(frozen=True, slots=True)
class Tile:
    """`bn` rows of a matrix and `rows` routed rows, `stages` copies under way, and the warps of a program.

    few: whether a kernel for few rows takes it; single: whether that is the one of `single`. alone: how many times `bn`
    rows a program takes of a matrix that goes by itself, where gate and up are two. narrowest: rows that a float16
    product has at least; 0 if products are others. stream: whether the products are those of `stream`.
    """

    few: bool
    bn: int
    rows: int
    stages: int
    warps: int
    alone: int = 1
    narrowest: int = 0
    single: bool = False
    stream: bool = False

    @property
    def halves(self) -> bool:
        """Whether activations are float16 numbers, for products of `halves` or `stream`."""
        return self.narrowest > 0 or self.stream


_ROWS_OF_ONE = 16
"""Rows up to which whole matrices take the tile for single rows."""

_SHARED_COLUMNS = 32
"""Columns that the kernel for few rows multiplies with a whole matrix, which it reads once for all of them."""

_MOST_SMALL = 640
"""Programs up to which that kernel is the faster one for whole matrices: the other has a quarter of them, or fewer."""

_FEWEST_LARGE = 512
"""Programs below which a tile of twice the rows leaves multiprocessors without work."""

_FEWEST_WIDE = 256
"""The same of float16 products, two of which a multiprocessor has."""

_FEW_COLUMNS = 8
"""Columns of the smallest product of the matrix units."""

_BFLOAT16_BYTES = 2

_BLOCKS = ((5, 16, 16), (10, 32, 16), (96, 64, 16), (float("inf"), 128, 32))
"""Products of `halves`: up to so many rows an expert, the rows of a block, and of the narrowest product."""

_PLAIN_BLOCKS = ((5, 16, 16), (10, 32, 16), (24, 64, 16), (float("inf"), 128, 32))
"""The same where weights are plain, and it costs more to fetch them twice."""

_MATRIX_ROWS = 128
"""Rows of a matrix that a program of theirs has."""

_LARGE_GROUP = 64
"""Codes of a group from which on a step has work enough to wait for with few columns."""


def few_tile(parts: int) -> Tile:
    """The tile for single rows, whatever their number: each comes out with the bits that it has by itself."""
    return Tile(True, 16, _FEW_COLUMNS // parts, 3, 4)


def stream_tile(rows: int, stages: int) -> Tile:
    """The tile for products of `stream` with blocks of up to so many rows."""
    return Tile(False, 16, rows, stages, 4, stream=True)


def tile_for(stack: Stack, n_slots: int, parts: int, halves: bool = False) -> Tile:
    """The tile for n_slots routed rows, spread over the experts of the stack; each row is `parts` columns.

    halves: float16 products are there for it.
    """
    columns = parts * n_slots / stack.n_experts
    if n_slots * parts <= _FEW_COLUMNS:
        return few_tile(parts)
    if halves and parts == 1:
        blocks = _PLAIN_BLOCKS if stack.mode == "plain" else _BLOCKS
        return next(halves_tile(rows, least) for most, rows, least in blocks if columns <= most)
    if columns <= 4 and stack.group >= _LARGE_GROUP:
        tile = Tile(False, 64, 8 // parts, 4, 4)
    elif columns <= (16 if stack.group >= _LARGE_GROUP else 2):
        tile = Tile(False, 64, 16 // parts, 4, 4)
    elif columns <= 48:
        tile = Tile(False, 64, 32 // parts, 3, 4)
    elif columns > 192 and stack.codes.dtype == torch.bfloat16:
        tile = Tile(False, 128, 128 // parts, 3, 8)
    else:
        tile = Tile(False, 64, 64 // parts, 4, 4, 2)
    return replace(tile, stages=min(tile.stages, _stages_that_fit(stack, tile, parts)))


def halves_tile(rows: int, narrowest: int) -> Tile:
    """The tile of float16 products for blocks of up to so many rows."""
    return Tile(False, _MATRIX_ROWS // 2, rows, 4, 8, 2, narrowest)


def dense_tile(stack: Stack, n_rows: int, parts: int, halves: bool = False) -> Tile:
    """The tile for rows that all meet one matrix; each row is `parts` columns."""
    if n_rows <= _ROWS_OF_ONE:
        return few_tile(parts)
    rows = _SHARED_COLUMNS // parts
    n_blocks = cdiv(n_rows, rows)
    if n_blocks == 1 or cdiv(stack.n_rows, few_tile(parts).bn) * n_blocks <= _MOST_SMALL:
        return replace(few_tile(parts), rows=rows)
    if halves and parts == 1:
        return dense_halves_tile(stack.n_rows, n_rows)
    tile = tile_for(stack, n_rows, parts)
    n_programs = cdiv(stack.n_rows, tile.bn * tile.alone) * cdiv(n_rows, tile.rows)
    return replace(tile, alone=1) if n_programs < _FEWEST_LARGE else tile


def dense_halves_tile(n_matrix_rows: int, n_rows: int) -> Tile:
    """The tile of float16 products for rows that all meet the same matrix rows."""
    n_tiles = cdiv(n_matrix_rows, _MATRIX_ROWS)
    width = next((width for width in (128, 64) if n_tiles * cdiv(n_rows, width) >= _FEWEST_WIDE), 32)
    return halves_tile(width, width)


def _stages_that_fit(stack: Stack, tile: Tile, parts: int) -> int:
    """How many copies may be under way, the one that is read included, in the shared memory that any GPU has: 64 KiB on
    AMD's, 99 KiB on NVIDIA's.
    """
    copy = stack.group * (2 * tile.bn * stack.bytes_each + tile.rows * parts * _BFLOAT16_BYTES)
    return 1 + int(((64 if torch.version.hip else 99) << 10) // copy)


def batches_in_step(stack: Stack, tile: Tile) -> int:
    """Batches, of a group a warp, that the kernel for few rows takes at once: at least a line of memory a row."""
    return max(1, _groups_in_line(stack) // tile.warps)


def _groups_in_line(stack: Stack) -> int:
    """Groups of codes in 128 bytes; 1 where codes are plain, or fetched one by one."""
    if stack.mode == "plain" or stack.per_unit == 1:
        return 1
    return max(1, 64 * stack.per_unit // stack.group)
