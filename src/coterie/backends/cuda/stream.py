"""Products of routed rows on Hopper GPUs, the fastest where experts have a few: `kernels.stream`.

Codes are multiplied exactly, and so are activations, as float16 numbers times a power of two for each row. A row's bits
are its own, whatever stands beside it. Single rows go through `single`, more of them through `halves`.
"""

from typing import NamedTuple

import torch

from coterie.backends.cuda import gluon
from coterie.backends.cuda.arranged import Arrangement
from coterie.backends.cuda.halves import largest_of
from coterie.backends.cuda.kernels.words import words_kernel
from coterie.backends.cuda.launch import INTERPRETED, early, launch, on_device_of
from coterie.backends.cuda.rows import Halves, Slots
from coterie.backends.cuda.sizes import cdiv
from coterie.backends.cuda.stacks import Biases, Stack, pair_of
from coterie.backends.cuda.tiles import stream_tile

_FORMATS = {("affine", 4), ("affine", 8), ("mxfp4", 4)}
_SCALES = (torch.bfloat16, torch.float16, torch.uint8)
_UNITS = (8, 16, 32)
"""16-bit units of a group: from 2 to 8 a thread."""

_UNITS_OF_STEP = 64
"""Units of a row that are fetched together: 128 bytes."""

_GROUPS_OF_WORD = 4
"""Groups whose scales share a word, where there are no biases."""

_ROWS = 16
"""Rows of a matrix that the matrix units take at a time."""

_STAGES = 3
_REGISTERS = 128
_MOST = 8
"""Routed rows an expert, up to which this is the fastest way."""

_MOST_PROGRAMS = 65535


class _Shape(NamedTuple):
    """Rows of a matrix that a program has, of gate and up half of them each, and the warps that share them."""

    rows: int
    warps: int


_SHAPES = ((_Shape(128, 4), 2000), (_Shape(64, 2), 1000), (_Shape(64, 4), 0), (_Shape(32, 2), 0))
"""What a program has, if there are at least so many programs of it, and no rows left over: the first that fits."""


def serves(n_slots: int, gate: Stack, up: Stack | None, down: Stack) -> bool:
    """Whether n_slots routed rows go this way through experts of these matrices."""
    if n_slots > _MOST * gate.n_experts or (up is not None and up.same_format != gate.same_format):
        return False
    return all(_fits(stack) for stack in (gate, up, down) if stack is not None)


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


def words_of(stack: Stack) -> torch.Tensor:
    """The constants of a stack as `words_kernel` puts them, remembered by it: a ninth of 4-bit weights, once more."""
    found = stack.derived.get("words")
    if found is None:
        n_groups, n_words = stack.n_columns // stack.group, _words_of_step(stack)
        steps = cdiv(n_groups, _groups_of_step(stack))
        eights = stack.n_experts * stack.n_rows // 8
        found = torch.empty((eights, steps, 8, n_words), dtype=torch.uint32, device=stack.codes.device)
        with on_device_of(found):
            launch(
                words_kernel, (eights,),
                stack.scales, stack.biases, found, n_groups, stack.mode, steps, n_words, 256, **early(found),
            )  # fmt: skip
        if INTERPRETED.value or not torch.cuda.is_current_stream_capturing():
            stack.derived["words"] = found
    return found


def _words_of_step(stack: Stack) -> int:
    return _groups_of_step(stack) // (1 if stack.mode == "affine" else _GROUPS_OF_WORD)


def multiply(
    rows: Halves, slots: Slots, stack: Stack, bias: torch.Tensor | None, out: torch.Tensor, *, known: bool
) -> None:
    """Each slot's row times the transpose of its expert's matrix, plus its bias, into out [n, N]. known: as in
    `products.multiply`.
    """
    _launch(rows, slots, stack, None, (bias, None), out, rows.sizes, None, None, known=known)


def gate_and_up(
    rows: Halves, slots: Slots, gate: Stack, up: Stack | None, biases: Biases, activation: str, down: Stack,
    *, known: bool,
) -> Halves:  # fmt: skip
    """activation(gate) * up of each slot's row, as rows for products with `down`. up of None: gate holds both. known:
    as in `products.multiply`.
    """
    values = torch.empty((1, slots.n, down.n_columns), dtype=torch.float16, device=rows.values.device)
    sizes = torch.empty((slots.n, 2), dtype=torch.float32, device=values.device)
    _launch(rows, slots, gate, up, biases, values, sizes, activation, down, known=known)
    return Halves(values, sizes)


def _launch(
    rows: Halves, slots: Slots, stack: Stack, up: Stack | None, biases: Biases,
    out: torch.Tensor, out_sizes: torch.Tensor, activation: str | None, target: Stack | None, *, known: bool,
) -> None:  # fmt: skip
    """Run the kernel; gated if there is a `target`, the stack that hidden values are for."""
    gated = target is not None
    second, n_rows, up_row, bias, up_bias = pair_of(stack, up, biases, gated=gated)
    nothing = rows.sizes
    largest, up_largest = (largest_of(stack), largest_of(second)) if gated else (nothing, nothing)
    order = Arrangement.of_stream(stack if target is None else target)
    n_blocks = slots.n_blocks(stream_tile().rows)
    shape = _shape(n_rows, min(n_blocks, slots.n), gated=gated)
    with on_device_of(out):
        for first in range(0, n_blocks, _MOST_PROGRAMS):
            launch(
                gluon.stream_rows_kernel,
                (n_rows // _height(shape, gated=gated), min(_MOST_PROGRAMS, n_blocks - first)),
                rows.values, rows.sizes, stack.codes, words_of(stack), second.codes, words_of(second),
                nothing if bias is None else bias, nothing if up_bias is None else up_bias, largest, up_largest,
                slots.order, slots.offsets, slots.blocks, out, out_sizes,
                stack.n_experts, slots.n, n_rows, stack.n_rows, up_row, first,
                stack.n_columns, stack.mode, stack.bits, stack.group, stack.per_unit,
                stack.scales.dtype == torch.float16, order.group, order.per_unit, order.lifted,
                gated, activation or "", bias is not None, slots.top_k, slots.kind, known,
                shape.rows, _groups_of_step(stack), _words_of_step(stack), _STAGES, shape.warps,
                **early(out, fused=False), num_warps=shape.warps, maxnreg=_REGISTERS,
            )  # fmt: skip
