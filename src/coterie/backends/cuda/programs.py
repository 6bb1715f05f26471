"""What a program of `kernels.single` has: how its warps share rows, and how much of a multiprocessor it takes.

As measured on an H200; docs/performance.md says what else was tried.
"""

from typing import NamedTuple

import torch

from coterie.backends.cuda.sizes import cdiv, next_power_of_2
from coterie.backends.cuda.stacks import Stack

ROWS = 16
"""Rows of a tile of a matrix; of gate and up half of them each."""

REGISTERS = 128
"""Of a thread."""

MULTIPROCESSORS = 132

_WARPS_RESIDENT = 16
"""Warps for which a multiprocessor has room, with so many registers."""

_SHARED_MEMORY = 220 << 10
"""Bytes of a multiprocessor's."""

_BYTES_OF_CONSTANTS = 8
"""Of a group of a row: scale and constant."""

_MOST_COLUMNS = {4: 8192, 8: 4096}
"""Columns of a row that a program has, by the bits of codes: its shared memory holds two tiles of them."""

_PIECE, _MOST_PIECES = 4096, 8
"""Columns of a piece of longer rows, and how many pieces they may have."""

_OF_WARP = 512
"""Columns up to which a warp has part of a row: with more, more warps share it. A thread's registers have room for the
activations of so many: `kernels.single.products`.
"""

_FEWEST_SHARES, MOST_SHARES = 2, 8
"""Of a row."""

_FEW_TILES = 8
"""Tiles for each multiprocessor up to which they are few: nothing hides a program's latency but its own warps."""

_REGISTERS_BY_PROGRAMS = {2: 128, 3: 80, 4: 64}
"""Registers of a thread, of eight warps a program, where a multiprocessor has so many programs."""

_MOST_CHUNKS = 32
"""Groups of a warp, one after the other: the compiler takes minutes for more."""


class Form(NamedTuple):
    """What a program has. shares: sums of a row that are added up in the end, as many as warps or a multiple of these;
    they decide about the bits of a product, and the rest does not.
    """

    shares: int
    warps: int
    tiles: int
    registers: int


def tiles_of(stack: Stack) -> int:
    """Tiles that a matrix has, none of them gate's and up's."""
    return cdiv(stack.n_rows, ROWS)


def pieces_of(stack: Stack) -> int:
    """How many pieces of equal length its rows have; 0 if they cannot be divided."""
    if stack.n_columns <= _MOST_COLUMNS[stack.bits]:
        return 1
    lengths = (
        (n, stack.n_columns // n) for n in range(2, _MOST_PIECES + 1) if stack.n_columns % (n * stack.group) == 0
    )
    return next((n for n, length in lengths if length <= _PIECE), 0)


def shares_of(stack: Stack, n_tiles: int | None = None) -> int:
    """The shares of a row. More where the programs of a whole matrix, n_tiles, have a multiprocessor each."""
    if n_tiles is not None and n_tiles <= MULTIPROCESSORS and stack.n_columns >= MOST_SHARES * stack.group:
        return MOST_SHARES
    shares = _FEWEST_SHARES
    while shares < MOST_SHARES and _columns_of(stack) > shares * _OF_WARP:
        shares *= 2
    return shares


def form_of_whole(stack: Stack, n_tiles: int, blocks: int, n_blocks: int, *, gated: bool = False) -> Form:
    """For a matrix of n_tiles that all of n_blocks meet, `blocks` blocks of columns in a program."""
    shares = shares_of(stack, n_tiles)
    return _of_warps(stack, shares, blocks, n_tiles * n_blocks, gated=gated)


def form_of_experts(stack: Stack, n_tiles: int, n_blocks: int, *, gated: bool, one: bool) -> Form:
    """For n_tiles of an expert's matrix for each of n_blocks, which have `one` row each or several."""
    shares, n_programs = shares_of(stack), n_tiles * n_blocks * pieces_of(stack)
    if one and shares == MOST_SHARES:
        return _of_long_rows(stack, n_programs, gated=gated)
    return _of_warps(stack, shares, 1, n_programs, gated=gated)


def _of_warps(stack: Stack, warps: int, blocks: int, n_programs: int, *, gated: bool) -> Form:
    """A warp for each share."""
    return Form(warps, warps, _tiles(stack, warps, blocks, n_programs, gated=gated), REGISTERS)


def _tiles(stack: Stack, warps: int, blocks: int, n_programs: int, *, gated: bool) -> int:
    """Tiles of a program: two, which share activations, where n_programs of one are more than there is room for at a
    time; with several `blocks` of columns, where there are more than half as many as multiprocessors. Of gate and up
    only if there is room for as many programs of two.
    """
    at_a_time = _WARPS_RESIDENT // warps
    if n_programs <= (MULTIPROCESSORS * at_a_time if blocks == 1 else MULTIPROCESSORS // 2):
        return 1
    return 1 if gated and 2 * _bytes_of_tile(stack, warps) * at_a_time > _SHARED_MEMORY else 2


def _of_long_rows(stack: Stack, n_programs: int, *, gated: bool) -> Form:
    """For one row a block. Few programs hide their latency by many warps, many by bytes under way: with half the warps,
    which have two shares each, twice as many programs fit.
    """
    warps, n_columns = MOST_SHARES // 2, _columns_of(stack)
    tile, row = _bytes_of_tile(stack, MOST_SHARES), n_columns * torch.bfloat16.itemsize
    if gated and n_programs <= _FEW_TILES * MULTIPROCESSORS:
        at_a_time = max(2, min(4, _SHARED_MEMORY // (tile + row)))
        return Form(MOST_SHARES, MOST_SHARES, 1, _REGISTERS_BY_PROGRAMS[at_a_time])
    if n_columns // stack.group > _MOST_CHUNKS * warps:
        return _of_warps(stack, MOST_SHARES, 1, n_programs, gated=gated)
    is_much = n_programs > MULTIPROCESSORS * _WARPS_RESIDENT // warps
    tiles = 2 if is_much and not gated and 3 * (2 * tile + row) <= _SHARED_MEMORY else 1
    return Form(MOST_SHARES, warps, tiles, REGISTERS)


def _bytes_of_tile(stack: Stack, warps: int) -> int:
    """What a tile's codes and constants take of shared memory, where so many warps share its rows."""
    n_columns = _columns_of(stack)
    held = next_power_of_2(cdiv(n_columns // stack.group, warps) * warps)
    return ROWS * (n_columns * stack.bits // 8 + held * _BYTES_OF_CONSTANTS)


def _columns_of(stack: Stack) -> int:
    """Columns of a row, or of a piece of it."""
    return stack.n_columns // pieces_of(stack)
