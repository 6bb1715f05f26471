"""Products of routed rows on Hopper GPUs, the fastest where experts have a few: `kernels.stream`.

Activations are float16 numbers times a power of two for each row. Codes are multiplied exactly in blocks of eight rows,
in larger ones as weights in float16. Single rows go through `single`, more of them through `halves`.
"""

from typing import NamedTuple

import torch

from coterie.backends.cuda import gluon
from coterie.backends.cuda.arranged import Arrangement
from coterie.backends.cuda.halves import largest_of
from coterie.backends.cuda.kernels.words import words_kernel
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.rows import Halves, Slots
from coterie.backends.cuda.sizes import cdiv
from coterie.backends.cuda.stacks import Biases, Stack, pair_of
from coterie.backends.cuda.tiles import Tile, stream_tile

_FORMATS = {("affine", 4), ("affine", 8), ("mxfp4", 4)}
_SCALES = (torch.bfloat16, torch.float16, torch.uint8)
_UNITS = (8, 16, 32)
"""16-bit units of a group: from 2 to 8 a thread."""

_UNITS_OF_STEP = 64
"""Units of a row that are fetched together: 128 bytes."""

_GROUPS_OF_WORD = 4
"""Groups whose scales share a word, where there are no biases."""

_ROWS_OF_WORDS = 64
"""Rows of which a program puts the constants into words."""

_REGISTERS = 128

_EXACT = 8
"""Columns of a block up to which codes are multiplied exactly; for more they become weights first."""


class _Block(NamedTuple):
    """A block of up to so many rows, the fastest up to `most` routed rows an expert; stages: steps under way, the one
    that is read included.
    """

    rows: int
    most: int
    stages: int


_BLOCKS = (_Block(8, 6, 3), _Block(16, 16, 2))
_EXACT_BLOCKS = (_Block(8, 8, 3),)
"""Where codes cannot become weights."""

_FEWEST, _FEWEST_BYTES, _FEWEST_SHORT = 8, 2, 0.5
"""Routed rows from which this is faster than `single`; with codes of 8 bits, and with large groups of 4-bit codes in
short rows, routed rows an expert.
"""

_SHORT, _LARGE_GROUP = 2048, 64
"""Columns that short rows have at most, and codes that large groups have at least."""

_MOST_PROGRAMS = 65535


class _Shape(NamedTuple):
    """Rows of a matrix that a program has, of gate and up half of them each, and the warps that share them."""

    rows: int
    warps: int


_SHAPES = ((_Shape(128, 4), 2000), (_Shape(64, 2), 700), (_Shape(64, 4), 0), (_Shape(32, 2), 0))
"""What a program has, if there are at least so many programs of it, and no rows left over: the first that fits."""


def tile_for(n_slots: int, gate: Stack, up: Stack | None, down: Stack) -> Tile | None:
    """The tile for n_slots routed rows through experts of these matrices; None if they do not go this way."""
    there = [stack for stack in (gate, up, down) if stack is not None]
    is_alike = up is None or up.same_format == gate.same_format
    if not is_alike or n_slots < _fewest(gate) or not all(_fits(stack) for stack in there):
        return None
    blocks = _BLOCKS if all(stack.mode == "affine" for stack in there) else _EXACT_BLOCKS
    found = next((block for block in blocks if n_slots <= block.most * gate.n_experts), None)
    return None if found is None else stream_tile(found.rows, found.stages)


def _fewest(gate: Stack) -> float:
    """Routed rows below which `single` is faster."""
    if gate.bits == 8:
        return _FEWEST_BYTES * gate.n_experts
    is_short = gate.mode == "affine" and gate.group >= _LARGE_GROUP and gate.n_columns <= _SHORT
    return _FEWEST_SHORT * gate.n_experts if is_short else _FEWEST


def _fits(stack: Stack) -> bool:
    is_known = (stack.mode, stack.bits) in _FORMATS and stack.group // stack.per_unit in _UNITS
    return is_known and stack.scales.dtype in _SCALES and stack.is_aligned and gluon.serves(stack.codes.device)


def _height(shape: _Shape, *, gated: bool) -> int:
    return shape.rows // 2 if gated else shape.rows


def _shape(n_rows: int, n_blocks: int, *, gated: bool) -> _Shape:
    """What programs for n_rows rows of each block's matrix have, and no rows are left over: an expert's rows are the
    columns of its other matrices, groups of 32 or more.
    """
    fitting = ((shape, fewest) for shape, fewest in _SHAPES if n_rows % _height(shape, gated=gated) == 0)
    return next(shape for shape, fewest in fitting if n_rows // _height(shape, gated=gated) * n_blocks >= fewest)


def _groups_of_step(stack: Stack) -> int:
    return _UNITS_OF_STEP // (stack.group // stack.per_unit)


def words_of(stack: Stack) -> tuple[torch.Tensor, torch.Tensor]:
    """The constants of a stack, and the units of its rows, as `words_kernel` makes them; remembered by it. They are a
    ninth of 4-bit weights, once more.
    """
    if "words" not in stack.derived:
        n_groups, n_words = stack.n_columns // stack.group, _words_of_step(stack)
        steps, n_rows = cdiv(n_groups, _groups_of_step(stack)), stack.n_experts * stack.n_rows
        device = stack.codes.device
        words = torch.empty((n_rows // 8, steps, 8, n_words), dtype=torch.uint32, device=device)
        units = torch.empty(n_rows, dtype=torch.float32, device=device)
        with on_device_of(words):
            launch(
                words_kernel, (cdiv(n_rows, _ROWS_OF_WORDS),),
                stack.scales, stack.biases, words, units, n_rows,
                n_groups, stack.mode, stack.bits, steps, n_words, **early(words),
            )  # fmt: skip
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return words, units
        stack.derived["words"], stack.derived["units"] = words, units
    return stack.derived["words"], stack.derived["units"]


def is_ready(stack: Stack) -> bool:
    """Whether its words are older than the next launch. What makes them may be at work still when a kernel begins that
    fetches them before it waits for the kernel before.
    """
    return "words" in stack.derived


def _words_of_step(stack: Stack) -> int:
    return _groups_of_step(stack) // (1 if stack.mode == "affine" else _GROUPS_OF_WORD)


def multiply(
    rows: Halves, slots: Slots, stack: Stack, bias: torch.Tensor | None, tile: Tile, out: torch.Tensor, *, known: bool
) -> None:
    """Each slot's row times the transpose of its expert's matrix, plus its bias, into out [n, N]. known: as in
    `products.multiply`.
    """
    _launch(rows, slots, stack, None, (bias, None), tile, out, rows.sizes, None, None, known=known)


def gate_and_up(
    rows: Halves, slots: Slots, gate: Stack, up: Stack | None, biases: Biases, activation: str, down: Stack,
    tile: Tile, *, known: bool,
) -> Halves:  # fmt: skip
    """activation(gate) * up of each slot's row, as rows for products with `down`. up of None: gate holds both. known:
    as in `products.multiply`.
    """
    values = torch.empty((1, slots.n, down.n_columns), dtype=torch.float16, device=rows.values.device)
    sizes = torch.empty((slots.n, 2), dtype=torch.float32, device=values.device)
    _launch(rows, slots, gate, up, biases, tile, values, sizes, activation, down, known=known)
    return Halves(values, sizes)


def _launch(
    rows: Halves, slots: Slots, stack: Stack, up: Stack | None, biases: Biases, tile: Tile,
    out: torch.Tensor, out_sizes: torch.Tensor, activation: str | None, target: Stack | None, *, known: bool,
) -> None:  # fmt: skip
    """Run the kernel; gated if there is a `target`, the stack that hidden values are for."""
    gated = target is not None
    second, n_rows, up_row, bias, up_bias = pair_of(stack, up, biases, gated=gated)
    nothing = rows.sizes
    largest, up_largest = (largest_of(stack), largest_of(second)) if gated else (nothing, nothing)
    order = Arrangement.of_stream(stack if target is None else target)
    n_blocks = slots.n_blocks(tile.rows)
    shape = _shape(n_rows, min(n_blocks, slots.n), gated=gated)
    ahead = known and is_ready(stack) and is_ready(second)
    words, units = words_of(stack)
    up_words, up_units = words_of(second)
    with on_device_of(out):
        for first in range(0, n_blocks, _MOST_PROGRAMS):
            launch(
                gluon.stream_rows_kernel,
                (n_rows // _height(shape, gated=gated), min(_MOST_PROGRAMS, n_blocks - first)),
                rows.values, rows.sizes, stack.codes, words, units, second.codes, up_words, up_units,
                nothing if bias is None else bias, nothing if up_bias is None else up_bias, largest, up_largest,
                slots.order, slots.blocks, out, out_sizes,
                stack.n_experts, slots.n, n_rows, stack.n_rows, up_row, first,
                stack.n_columns, stack.mode, stack.bits, stack.group, stack.per_unit,
                tile.rows > _EXACT, order.group, order.per_unit, order.lifted,
                gated, activation or "", bias is not None, slots.top_k, slots.kind, ahead,
                shape.rows, tile.rows, _groups_of_step(stack), _words_of_step(stack), tile.stages, shape.warps,
                **early(out, fused=False), num_warps=shape.warps, maxnreg=_REGISTERS,
            )  # fmt: skip
