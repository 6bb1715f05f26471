"""Products of 16-bit numbers on Hopper GPUs, the fastest for more than a few rows.

Codes become float16 weights, rounded once, to eleven bits, where bfloat16 activations have eight:
`kernels.hopper.numbers`. Plain bfloat16 weights stay what they are, and so do their activations. Other GPUs, formats
and precisions go through `products`.
"""

from collections.abc import Sequence

import torch

from coterie.backends.cuda import gluon
from coterie.backends.cuda.arranged import Arrangement
from coterie.backends.cuda.kernels.halves import halve_kernel, largest_kernel
from coterie.backends.cuda.launch import INTERPRETED, early, launch, on_device_of
from coterie.backends.cuda.pieces import add_pieces, room_for
from coterie.backends.cuda.rows import Halves, Slots
from coterie.backends.cuda.sizes import cdiv, next_power_of_2
from coterie.backends.cuda.stacks import Biases, Stack, pair_of
from coterie.backends.cuda.tiles import Tile, dense_halves_tile

_ROWS = 128
"""Rows of a matrix that a program has, of gate and of up half of them each."""

_DIVISOR = 16
"""Of the rows of matrices that one launch takes: `kernels.hopper.linear`."""

_GROUPS = (32, 64)
_COLUMNS = 64
"""Columns that a step takes: a multiple of them is served."""

_REGISTERS = 128
"""Registers of a thread, so that a multiprocessor has room for two programs."""

_FORMATS = {("affine", 4), ("affine", 8), ("mxfp4", 4)}
_SCALES = (torch.bfloat16, torch.float16, torch.uint8)
MOST_COLUMNS = 4096
"""Columns of a row that a program has in its registers; longer ones are read twice, in a launch of their own."""

_LONG = 4096
"""Columns beyond which constants come in turns, and the compiler has no registers for three widths of products."""

_FEWEST_PROGRAMS = 1000
"""Programs below which the last ones leave many multiprocessors without work for long."""

_MOST_PROGRAMS = 65535


def serves(*stacks: Stack | None) -> bool:
    """Whether products with all of these matrices can go this way: each for itself, and from one into the next."""
    there = [stack for stack in stacks if stack is not None]
    are_plain = {stack.mode == "plain" for stack in there}
    return len(are_plain) == 1 and all(_fits(stack) and gluon.serves(stack.codes.device) for stack in there)


def _fits(stack: Stack) -> bool:
    if stack.n_columns % _COLUMNS != 0 or not stack.is_aligned:
        return False
    if stack.mode == "plain":
        return bool(stack.codes.dtype == torch.bfloat16)
    is_known = (stack.mode, stack.bits) in _FORMATS and stack.group in _GROUPS
    return is_known and stack.scales.dtype in _SCALES


def halve(x: torch.Tensor, stack: Stack, wanted: Arrangement) -> Halves:
    """Rows x [n, K] for products with `stack`, which wants them in an order."""
    if stack.mode == "plain":
        plain = x.to(torch.bfloat16).contiguous()[None]
        return Halves(plain, plain)
    n, k = x.shape
    values = torch.empty((1, n, k), dtype=torch.float16, device=x.device)
    sizes = torch.empty((n, 2), dtype=torch.float32, device=x.device)
    with on_device_of(x):
        launch(
            halve_kernel, (n,),
            x, values, sizes, k, wanted.group, wanted.per_unit, wanted.lifted, min(MOST_COLUMNS, next_power_of_2(k)),
            **early(x),
        )  # fmt: skip
    return Halves(values, sizes)


def largest_of(stack: Stack) -> torch.Tensor:
    """No weight of matrix e has a larger magnitude than the e-th of these, f32 [E]; remembered by the stack."""
    found = stack.derived.get("largest")
    if found is None:
        found = torch.empty(stack.n_experts, dtype=torch.float32, device=stack.codes.device)
        n = stack.n_rows * (stack.n_columns // stack.group)
        with on_device_of(found):
            launch(
                largest_kernel, (stack.n_experts,),
                stack.scales, stack.biases, found, n, stack.mode, stack.bits, 1024, **early(found),
            )  # fmt: skip
        if INTERPRETED.value or not torch.cuda.is_current_stream_capturing():
            stack.derived["largest"] = found
    return found


def multiply(
    rows: Halves, slots: Slots, stack: Stack, bias: torch.Tensor | None, tile: Tile, out: torch.Tensor, *, known: bool
) -> None:
    """Each slot's row times the transpose of its expert's matrix, plus its bias, into out [n, N]. known: as in
    `products.multiply`.
    """
    pieces = 1 if bias is not None or stack.mode == "plain" else _pieces(stack, slots.n_blocks(tile.rows))
    sums = out if pieces == 1 else room_for(pieces, out)
    _launch(rows, slots, stack, None, (bias, None), tile, sums, rows.sizes, None, None, known=known, pieces=pieces)
    if pieces > 1:
        add_pieces(sums, out)


def _pieces(stack: Stack, n_blocks: int) -> int:
    """Pieces of equal length in which long rows are multiplied, where their programs are few."""
    pieces, n_programs = 1, n_blocks * cdiv(stack.n_rows, _ROWS)
    while (
        stack.n_columns // pieces > _LONG
        and stack.n_columns % (2 * pieces * _COLUMNS) == 0
        and n_programs * pieces < _FEWEST_PROGRAMS
    ):
        pieces *= 2
    return pieces


def can_join(stack: Stack) -> bool:
    """Whether `multiply_together` takes this matrix, with others of its format."""
    return stack.n_rows % _DIVISOR == 0


def multiply_together(
    rows: Halves, described: Sequence[torch.Tensor | int], has_bias: bool, stacks: Sequence[Stack]
) -> None:
    """Rows times up to three matrices, as the arguments `described` of `half_linear_kernel` say."""
    values, first = rows.values, stacks[0]
    width = dense_halves_tile(sum(stack.n_rows for stack in stacks), values.shape[1]).rows
    n_tiles = sum(cdiv(stack.n_rows, _ROWS) for stack in stacks)
    with on_device_of(values):
        launch(
            gluon.half_linear_kernel, (n_tiles, cdiv(values.shape[1], width)),
            values, rows.sizes, *described, values.shape[1],
            first.n_columns, first.mode, first.bits, first.group, first.per_unit, has_bias, width,
            **early(values), num_warps=8, maxnreg=_REGISTERS,
        )  # fmt: skip


def gate_and_up(
    rows: Halves, slots: Slots, gate: Stack, up: Stack | None, biases: Biases,
    activation: str, down: Stack, tile: Tile, *, known: bool,
) -> Halves:  # fmt: skip
    """activation(gate) * up of each slot's row, as rows for products with `down`. up of None: gate holds both. known:
    as in `products.multiply`.
    """
    values = torch.empty((1, slots.n, down.n_columns), dtype=rows.values.dtype, device=rows.values.device)
    sizes = rows.sizes
    if down.mode != "plain":
        sizes = torch.empty((slots.n, 2), dtype=torch.float32, device=values.device)
    _launch(rows, slots, gate, up, biases, tile, values, sizes, activation, down, known=known)
    return Halves(values, sizes)


def _launch(
    rows: Halves, slots: Slots, stack: Stack, up: Stack | None,
    biases: Biases, tile: Tile,
    out: torch.Tensor, out_sizes: torch.Tensor, activation: str | None, target: Stack | None, *, known: bool,
    pieces: int = 1,
) -> None:  # fmt: skip
    """Run the kernel; gated if there is a `target`, the stack that hidden values are for."""
    gated = target is not None
    second, n_rows, up_row, bias, up_bias = pair_of(stack, up, biases, gated=gated)
    nothing = rows.sizes
    bounded = gated and stack.mode != "plain"
    largest, up_largest = (largest_of(stack), largest_of(second)) if bounded else (nothing, nothing)
    n_blocks = slots.n_blocks(tile.rows)
    n_tiles = cdiv(n_rows, _ROWS // 2 if gated else _ROWS)
    with on_device_of(out):
        for first in range(0, n_blocks, _MOST_PROGRAMS):
            launch(
                gluon.half_rows_kernel, (n_tiles, min(_MOST_PROGRAMS, n_blocks - first), pieces),
                rows.values, rows.sizes, stack.codes, stack.scales, stack.biases,
                second.codes, second.scales, second.biases,
                nothing if bias is None else bias, nothing if up_bias is None else up_bias, largest, up_largest,
                slots.order, slots.blocks, out, out_sizes,
                stack.n_experts, slots.top_k, slots.n, n_rows, stack.n_rows, up_row, first,
                stack.n_columns // pieces, stack.mode, stack.bits, stack.group, stack.per_unit,
                16 if target is None else target.group, 1 if target is None else target.per_unit,
                gated, activation or "", bias is not None, tile.rows, _narrowest(stack, tile, pieces), slots.kind,
                known or slots.kind == "dense", pieces, **early(out), num_warps=8, maxnreg=_REGISTERS,
            )  # fmt: skip


def _narrowest(stack: Stack, tile: Tile, pieces: int) -> int:
    return max(tile.narrowest, tile.rows // 2) if stack.n_columns // pieces > _LONG else tile.narrowest
