"""Products of up to eight columns on Hopper GPUs, or a few times as many: the fastest where experts have few rows.

A program asks for all of its weights at once: `kernels.single`. Codes are multiplied exactly, and a column's bits are
its own, whatever stands beside it. Other GPUs, formats and numbers of columns go through the kernels of `products` and
`linear`.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from coterie.backends.cuda import gluon
from coterie.backends.cuda.arranged import Arranged, Arrangement
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.pieces import add_pieces, room_for
from coterie.backends.cuda.programs import (
    MOST_SHARES,
    MULTIPROCESSORS,
    ROWS,
    form_of_experts,
    form_of_whole,
    pieces_of,
    shares_of,
    tiles_of,
)
from coterie.backends.cuda.rows import Rows, Slots
from coterie.backends.cuda.sizes import cdiv, next_power_of_2
from coterie.backends.cuda.stacks import Biases, Stack, pair_of
from coterie.backends.cuda.tiles import Tile, few_tile

_COLUMNS = 8
"""Columns of a block of rows: what the matrix units take."""

_FORMATS = {("affine", 4), ("affine", 8), ("mxfp4", 4)}
_UNITS = (8, 16, 32)
"""16-bit units of a group: from 2 to 8 a thread, in one load."""

_MOST_BLOCKS = 4
"""Blocks of columns that meet the codes of a program, which become numbers once."""

_MOST_PROGRAMS = 65535

_FEW, _MORE = 2.5, 6
"""Routed rows an expert, up to which this is the fastest way; of bytes, and of short rows of 4-bit codes, there may be
more.
"""

_SHORT, _LARGE_GROUP = 2048, 64
"""Columns that short rows have at most, and codes that their groups have at least."""


def served(tile: Tile, parts: int, *stacks: Stack | None, last: Stack | None = None) -> Tile:
    """`tile`, which goes this way if products with all of these matrices can, activations in `parts`. last: a matrix
    whose rows may go in pieces.
    """
    if not tile.few or tile.rows * parts != _COLUMNS:
        return tile
    there = [stack for stack in stacks if stack is not None]
    can = all(_fits(stack) and pieces_of(stack) == 1 for stack in there) and (last is None or _fits(last))
    on_device = [stack for stack in (*there, last) if stack is not None]
    return replace(tile, single=can and all(gluon.serves(stack.codes.device) for stack in on_device))


def are_few(n_slots: int, parts: int, gate: Stack, up: Stack | None, down: Stack) -> bool:
    """Whether experts have few rows, and these can go this way."""
    is_quick = gate.bits == 8 or (gate.group >= _LARGE_GROUP and gate.n_columns <= _SHORT)
    most = (_MORE if is_quick else _FEW) * gate.n_experts
    return n_slots * parts <= most and served(few_tile(parts), parts, gate, up, last=down).single


def are_shared(n_rows: int, parts: int, *stacks: Stack) -> bool:
    """Whether rows that all meet the same matrices can go this way, and are so few that these are read once, or the
    matrices so small that all programs have a multiprocessor each.
    """
    n_blocks = cdiv(n_rows * parts, _COLUMNS)
    are_few = n_blocks <= _MOST_BLOCKS or max(tiles_of(stack) for stack in stacks) * n_blocks <= MULTIPROCESSORS
    return are_few and served(few_tile(parts), parts, *stacks).single


def _fits(stack: Stack) -> bool:
    """Whether there is a kernel for its format, and room for its rows or pieces of them."""
    is_known = (stack.mode, stack.bits) in _FORMATS and stack.group // stack.per_unit in _UNITS
    return is_known and pieces_of(stack) > 0 and stack.is_aligned


def multiply_together(
    x: torch.Tensor, described: Sequence[torch.Tensor | int], has_bias: Sequence[bool], stacks: Sequence[Stack]
) -> None:
    """Rows x [parts, n, K] times up to three matrices of one format, as the arguments `described` of `linear_kernel`
    say.
    """
    parts, n = x.shape[:2]
    first = stacks[0]
    n_tiles = sum(map(tiles_of, stacks))
    blocks, n_blocks = _blocks_of_columns(n, parts, n_tiles)
    form = form_of_whole(first, n_tiles, blocks, n_blocks)
    n_programs = sum(cdiv(stack.n_rows, ROWS * form.tiles) for stack in stacks)
    with on_device_of(x):
        launch(
            gluon.single_linear_kernel, (n_programs, n_blocks),
            x, *described, n, first.n_columns, first.mode, first.bits, first.group, first.per_unit, *has_bias,
            parts, form.tiles, blocks, form.warps,
            **early(x, fused=False), num_warps=form.warps, maxnreg=form.registers,
        )  # fmt: skip


def _blocks_of_columns(n: int, parts: int, n_tiles: int) -> tuple[int, int]:
    """(blocks of columns of a program, programs) for n rows that meet matrices of n_tiles: one, while that leaves every
    program a multiprocessor.
    """
    needed = cdiv(n * parts, _COLUMNS)
    blocks = 1 if n_tiles * needed <= MULTIPROCESSORS else min(_MOST_BLOCKS, next_power_of_2(needed))
    return blocks, cdiv(needed, blocks)


def as_it_is(x: torch.Tensor | Arranged, stack: Stack, parts: int, tile: Tile) -> Rows | None:
    """One row x [1, K] in the order of columns, which every program brings into the order of codes; None if this is not
    for it.
    """
    if isinstance(x, Arranged) or x.dtype != torch.bfloat16 or parts > 1 or not tile.single:
        return None
    return Rows(x[None], x.new_empty((1, 1, 0), dtype=torch.float32), stack.group, arranged=False)


def multiply(
    rows: Rows, slots: Slots, stack: Stack, bias: torch.Tensor | None, out: torch.Tensor, *, known: bool
) -> None:
    """Each slot's row times the transpose of its expert's matrix, plus its bias, into out [n, N]. known: as in
    `products.multiply`.
    """
    pieces = pieces_of(stack)
    if pieces == 1:
        _launch(rows, slots, stack, None, (bias, None), out, None, None, 1, known=known)
        return
    sums = room_for(pieces, out)
    _launch(rows, slots, stack, None, (bias, None), sums, None, None, 1, known=known)
    add_pieces(sums, out)


def gate_and_up(
    rows: Rows, slots: Slots, gate: Stack, up: Stack | None, biases: Biases,
    activation: str, down: Stack, parts: int, *, known: bool,
) -> Rows:  # fmt: skip
    """activation(gate) * up of each slot's row, as rows for products with `down`, which need no sums. up of None: gate
    holds both. known: as in `products.multiply`.
    """
    device = rows.values.device
    values = torch.empty((parts, slots.n, down.n_columns), dtype=torch.bfloat16, device=device)
    _launch(rows, slots, gate, up, biases, values, activation, down, parts, known=known)
    return Rows(values, torch.empty((parts, slots.n, 0), dtype=torch.float32, device=device), down.group)


def _is_kept(rows: Rows, stack: Stack) -> bool:
    """Whether one row goes through shared memory: it has to be brought into order, or would take registers that more
    programs can have. Of short rows of 4-bit codes in order it is no faster.
    """
    return not rows.arranged or stack.bits == 8 or shares_of(stack) == MOST_SHARES


def _launch(
    rows: Rows, slots: Slots, stack: Stack, up: Stack | None,
    biases: Biases, out: torch.Tensor, activation: str | None,
    target: Stack | None, out_parts: int, *, known: bool,
) -> None:  # fmt: skip
    """Run the kernel; gated if there is a `target`, the stack that hidden values are for."""
    gated = target is not None
    order = Arrangement.of_threads(stack if target is None else target, out_parts)
    second, n_rows, up_row, bias, up_bias = pair_of(stack, up, biases, gated=gated)
    x = nothing = rows.values
    is_dense, of_tile = slots.kind == "dense", ROWS // 2 if gated else ROWS
    n_tiles, pieces = cdiv(n_rows, of_tile), pieces_of(stack)
    blocks, n_blocks = 1, slots.n_blocks(_COLUMNS // rows.parts)
    is_one = slots.kind == "direct" and rows.parts == 1
    if is_dense:
        blocks, n_blocks = _blocks_of_columns(slots.n, rows.parts, n_tiles)
        form = form_of_whole(stack, n_tiles, blocks, n_blocks, gated=gated)
    else:
        form = form_of_experts(stack, n_tiles, n_blocks, gated=gated, one=is_one)
    n_programs = cdiv(n_rows, of_tile * form.tiles)
    with on_device_of(out):
        for first in range(0, n_blocks, _MOST_PROGRAMS):
            launch(
                gluon.single_rows_kernel, (n_programs, min(_MOST_PROGRAMS, n_blocks - first), pieces),
                x, stack.codes, stack.scales, stack.biases, second.codes, second.scales, second.biases,
                nothing if bias is None else bias, nothing if up_bias is None else up_bias,
                slots.order, slots.blocks, out,
                stack.n_experts, x.shape[1], slots.n, n_rows, stack.n_rows, up_row, first,
                stack.n_columns // pieces, stack.mode, stack.bits, stack.group, stack.per_unit,
                order.group, order.per_unit, gated, activation or "", bias is not None, slots.top_k, slots.kind,
                is_one and _is_kept(rows, stack), rows.arranged, rows.parts, out_parts, known,
                form.tiles, blocks, pieces, form.shares // form.warps, form.warps,
                **early(x, fused=False), num_warps=form.warps, maxnreg=form.registers,
            )  # fmt: skip
