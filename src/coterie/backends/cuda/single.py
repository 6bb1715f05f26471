"""Products of up to eight columns on Hopper GPUs, the fastest for single rows.

Weights go from memory into the registers of the matrix units at once: `kernels.single`. Codes are multiplied exactly,
and a column's bits are its own, whatever stands beside it. Other GPUs, formats and numbers of columns go through the
kernels of `products` and `linear`.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import triton

from coterie.backends.cuda import gluon
from coterie.backends.cuda.launch import early, on_device_of
from coterie.backends.cuda.rows import Rows, Slots
from coterie.backends.cuda.stacks import Biases, Stack, pair_of
from coterie.backends.cuda.tiles import Tile, few_tile

_COLUMNS = 8
_ROWS = 16
"""Columns and rows of a matrix that a program has; of gate and up half of the rows each."""

_FORMATS = {("affine", 4), ("affine", 8), ("mxfp4", 4)}
_UNITS = (8, 16, 32)
"""16-bit units of a group: from 2 to 8 a thread, in one load."""

_MOST_CODES = {4: 384, 8: 256}
"""Codes that a thread has registers for, by their bits."""

_MOST_WARPS = 8

_FEW_CODES, _SIXTEEN_WARPS = 256, 128
"""Codes of a thread with which its registers can be so many: a multiprocessor has room for sixteen warps."""

_MOST_SUMMING, _MULTIPROCESSORS = 8, 132
"""Warps of a program that has all slots of a token; a multiprocessor has room for one, so there may be as many of them.
"""

_SHARED_COLUMNS, _CACHED_BYTES = 64, 16 << 20
"""Columns that meet a matrix of so many bytes: the second-level cache has it from the first time on."""

_MOST_PROGRAMS = 65535

_SHARE = 4
"""Experts for a routed row, from which on so few have more than one that their own weights are all that counts."""


def served(tile: Tile, parts: int, *stacks: Stack | None) -> Tile:
    """`tile`, which goes this way if products with all of these matrices can, activations in `parts`."""
    if not tile.few or tile.rows * parts != _COLUMNS:
        return tile
    there = [stack for stack in stacks if stack is not None]
    return replace(tile, single=all(_fits(stack) and gluon.serves(stack.codes.device) for stack in there))


def are_few(n_slots: int, parts: int, gate: Stack, up: Stack | None, down: Stack) -> bool:
    """Whether routed rows are few beside the experts, and can go this way."""
    return n_slots * parts * _SHARE <= gate.n_experts and served(few_tile(parts), parts, gate, up, down).single


def are_shared(n_rows: int, parts: int, *stacks: Stack) -> bool:
    """Whether rows of one matrix each can go this way, and are few enough that reading it for every eight columns anew
    costs less than to have them in one program.
    """
    if n_rows * parts > _SHARED_COLUMNS or not served(few_tile(parts), parts, *stacks).single:
        return False
    are_small = all(stack.codes.numel() * stack.codes.element_size() <= _CACHED_BYTES for stack in stacks)
    return are_small and all(_codes(stack, _warps(stack)) <= _FEW_CODES for stack in stacks)


def _fits(stack: Stack) -> bool:
    """Whether there is a kernel for its format, whose threads have registers for a row's codes."""
    is_known = (stack.mode, stack.bits) in _FORMATS and stack.group // stack.per_unit in _UNITS
    return is_known and _codes(stack, _MOST_WARPS) <= _MOST_CODES[stack.bits]


def _codes(stack: Stack, warps: int) -> int:
    """Codes that a thread has: of powers of two of groups (`kernels.single.numbers.runs_of`)."""
    n_groups = stack.n_columns // stack.group
    first = 1 << n_groups.bit_length() - 1
    second = 0 if first == n_groups else max(warps, triton.next_power_of_2(n_groups - first))
    return max(warps, first + second) * stack.group * _ROWS // (32 * warps)


def _warps(stack: Stack, n_tiles: int | None = None) -> int:
    """The fewest warps whose threads have registers for all: what warps share, they wait for. More where the programs
    of a whole matrix, n_tiles for every eight columns, have a multiprocessor each.
    """
    if n_tiles is not None and n_tiles <= _MULTIPROCESSORS and stack.n_columns >= _MOST_WARPS * stack.group:
        return _MOST_WARPS
    return next(warps for warps in (1, 2, 4, _MOST_WARPS) if _codes(stack, warps) <= _MOST_CODES[stack.bits])


def _options(stack: Stack, warps: int, n_programs: int) -> dict[str, int]:
    """How the kernels are compiled."""
    can_be_less = stack.bits == 4 and _codes(stack, warps) <= _FEW_CODES
    is_worth_it = warps == _MOST_WARPS // 2 or (warps == _MOST_WARPS and n_programs > _MULTIPROCESSORS)
    return {"num_warps": warps, **({"maxnreg": _SIXTEEN_WARPS} if can_be_less and is_worth_it else {})}


def multiply_together(
    x: torch.Tensor, described: Sequence[torch.Tensor | int], has_bias: Sequence[bool], first: Stack, n_tiles: int
) -> None:
    """Rows x [parts, n, K] times up to three matrices of the format of `first`, which have n_tiles programs, as the
    arguments `described` of `linear_kernel` say.
    """
    parts, n = x.shape[:2]
    warps, n_blocks = _warps(first, n_tiles), triton.cdiv(n, _COLUMNS // parts)
    with on_device_of(x):
        gluon.single_linear_kernel[(n_tiles, n_blocks)](
            x, *described, n, first.n_columns, first.mode, first.bits, first.group, first.per_unit, *has_bias,
            parts, warps, **early(x, fused=False), **_options(first, warps, n_tiles * n_blocks),
        )  # fmt: skip


def multiply(
    rows: Rows, slots: Slots, stack: Stack, bias: torch.Tensor | None, out: torch.Tensor, *, known: bool
) -> None:
    """Each slot's row times the transpose of its expert's matrix, plus its bias, into out [n, N]. known: as in
    `products.multiply`.
    """
    _launch(rows, slots, stack, None, (bias, None), out, None, None, 1, known=known)


def sums_slots(down: Stack, top_k: int, rows: Rows) -> bool:
    """Whether a token's hidden values can go through the matrices of all its experts, and be summed, in one kernel."""
    fits = triton.next_power_of_2(top_k) * _warps(down) <= _MOST_SUMMING
    return rows.parts == 1 and fits and triton.cdiv(down.n_rows, _ROWS) <= _MULTIPROCESSORS


def sum_slots(
    rows: Rows, ids: torch.Tensor, weights: torch.Tensor, stack: Stack, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """The weighted sum [1, N] of the slots' rows [top_k, K], each times the transpose of its expert's matrix."""
    x, top_k = rows.values, ids.numel()
    out = torch.empty((1, stack.n_rows), dtype=dtype, device=x.device)
    slots = triton.next_power_of_2(top_k)
    warps = slots * _warps(stack)
    with on_device_of(x):
        gluon.single_slots_kernel[(triton.cdiv(stack.n_rows, _ROWS),)](
            x, stack.codes, stack.scales, stack.biases, x if bias is None else bias, ids, weights, out,
            stack.n_experts, stack.n_rows, stack.n_columns, stack.mode, stack.bits, stack.group, stack.per_unit,
            bias is not None, top_k, slots, warps, **early(x, fused=False), num_warps=warps,
        )  # fmt: skip
    return out


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


def _launch(
    rows: Rows, slots: Slots, stack: Stack, up: Stack | None,
    biases: Biases, out: torch.Tensor, activation: str | None,
    target: Stack | None, out_parts: int, *, known: bool,
) -> None:  # fmt: skip
    """Run the kernel; gated if there is a `target`, the stack that hidden values are for."""
    gated = target is not None
    second, n_rows, up_row, bias, up_bias = pair_of(stack, up, biases, gated=gated)
    x = nothing = rows.values
    n_tiles = triton.cdiv(n_rows, _ROWS // 2 if gated else _ROWS)
    n_blocks = slots.n_blocks(_COLUMNS // rows.parts)
    warps = _warps(stack, n_tiles if slots.kind == "dense" else None)
    with on_device_of(out):
        for first in range(0, n_blocks, _MOST_PROGRAMS):
            gluon.single_rows_kernel[(n_tiles, min(_MOST_PROGRAMS, n_blocks - first))](
                x, stack.codes, stack.scales, stack.biases, second.codes, second.scales, second.biases,
                nothing if bias is None else bias, nothing if up_bias is None else up_bias,
                slots.order, slots.offsets, slots.blocks, out,
                stack.n_experts, slots.top_k, x.shape[1], slots.n, n_rows, stack.n_rows, up_row, first,
                stack.n_columns, stack.mode, stack.bits, stack.group, stack.per_unit,
                16 if target is None else target.group, 1 if target is None else target.per_unit,
                gated, activation or "", bias is not None, slots.kind, rows.parts, out_parts,
                known, warps, **early(x, fused=False), **_options(stack, warps, n_tiles * n_blocks),
            )  # fmt: skip
