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
from coterie.backends.cuda.launch import begins_early, early, on_device_of
from coterie.backends.cuda.rows import Rows, Slots
from coterie.backends.cuda.stacks import Stack
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
_CODES_IN_TURN = 256
"""Warps of a program, and codes of a thread at a time, where a row has too many for all at once."""

_FEWER_REGISTERS = 128
"""Registers of a thread with which a multiprocessor has room for four programs of four warps, or two of eight."""

_MOST_SUMMING = 8
"""Warps of a program that has all slots of a token."""

_MULTIPROCESSORS = 132
"""Those of a GPU: for more programs than that there must be room for two on each."""

_MOST_PROGRAMS = 65535


_SHARE = 4
"""Experts for a routed row, from which on so few have more than one that their own weights are all that counts."""


def served(tile: Tile, parts: int, *stacks: Stack | None) -> Tile:
    """`tile`, which goes this way if products with all of these matrices can, activations in `parts`."""
    if not tile.few or tile.rows * parts != _COLUMNS:
        return tile
    there = [stack for stack in stacks if stack is not None]
    return replace(tile, single=all(_fits(stack) and gluon.serves(stack.codes.device) for stack in there))


def tile_for_slots(n_slots: int, parts: int, *stacks: Stack | None) -> Tile | None:
    """The tile for routed rows that are few beside the experts, if it goes this way."""
    is_few = any(stack is not None and n_slots * parts * _SHARE <= stack.n_experts for stack in stacks)
    tile = served(few_tile(parts), parts, *stacks)
    return tile if is_few and tile.single else None


def _fits(stack: Stack) -> bool:
    return (stack.mode, stack.bits) in _FORMATS and stack.group // stack.per_unit in _UNITS


def _codes(stack: Stack, n_groups: int, warps: int) -> int:
    """Codes of so many groups that each thread has: of powers of two of groups (`kernels.single.numbers.runs_of`)."""
    first = 1 << n_groups.bit_length() - 1
    second = 0 if first == n_groups else max(warps, triton.next_power_of_2(n_groups - first))
    return max(warps, first + second) * stack.group * _ROWS // (32 * warps)


def _turn(stack: Stack) -> tuple[int, int]:
    """(groups at a time, warps of a program): all groups by the fewest warps whose threads have registers for them,
    because what warps share, they wait for; or some by the most.
    """
    n_groups, most = stack.n_columns // stack.group, _MOST_CODES[stack.bits]
    for warps in (1, 2, 4, _MOST_WARPS):
        if _codes(stack, n_groups, warps) <= most:
            return n_groups, warps
    return _CODES_IN_TURN * 32 * _MOST_WARPS // (_ROWS * stack.group), _MOST_WARPS


def _options(stack: Stack, turn: int, warps: int, *, routed: bool) -> dict[str, int]:
    """How the kernels are compiled: with fewer registers where so many more programs fit that it is worth what a thread
    then keeps in memory. Whole matrices have few programs.
    """
    is_light = stack.bits == 4 and _codes(stack, turn, warps) <= _CODES_IN_TURN
    fewer = is_light and (warps == 4 or (routed and warps == _MOST_WARPS and turn * stack.group == stack.n_columns))
    return {"num_warps": warps, **({"maxnreg": _FEWER_REGISTERS} if fewer else {})}


def multiply_together(
    x: torch.Tensor, described: Sequence[torch.Tensor | int], has_bias: Sequence[bool], first: Stack, n_tiles: int
) -> None:
    """Rows x [parts, n, K] times up to three matrices of the format of `first`, which have n_tiles programs, as the
    arguments `described` of `linear_kernel` say.
    """
    parts, n = x.shape[:2]
    turn, warps = _turn(first)
    with on_device_of(x):
        gluon.single_linear_kernel[(n_tiles, triton.cdiv(n, _COLUMNS // parts))](
            x, *described, n, first.n_columns, first.mode, first.bits, first.group, first.per_unit, *has_bias,
            parts, turn, warps, **early(x, fused=False), **_options(first, turn, warps, routed=False),
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
    turn, warps = _turn(down)
    is_whole = turn * down.group == down.n_columns
    return rows.parts == 1 and is_whole and triton.next_power_of_2(top_k) * warps <= _MOST_SUMMING


def sum_slots(
    rows: Rows, ids: torch.Tensor, weights: torch.Tensor, stack: Stack, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """The weighted sum [1, N] of the slots' rows [top_k, K], each times the transpose of its expert's matrix."""
    x, top_k = rows.values, ids.numel()
    out = torch.empty((1, stack.n_rows), dtype=dtype, device=x.device)
    slots = triton.next_power_of_2(top_k)
    warps, n_tiles = slots * _turn(stack)[1], triton.cdiv(stack.n_rows, _ROWS)
    options: dict[str, int] = {"num_warps": warps}
    if warps == _MOST_SUMMING and n_tiles > _MULTIPROCESSORS:
        options["maxnreg"] = _FEWER_REGISTERS
    with on_device_of(x):
        gluon.single_slots_kernel[(n_tiles,)](
            x, stack.codes, stack.scales, stack.biases, x if bias is None else bias, ids, weights, out,
            stack.n_experts, stack.n_rows, stack.n_columns, stack.mode, stack.bits, stack.group, stack.per_unit,
            bias is not None, top_k, slots, warps, **early(x, fused=False), **options,
        )  # fmt: skip
    return out


def gate_and_up(
    rows: Rows, slots: Slots, gate: Stack, up: Stack | None, biases: tuple[torch.Tensor | None, torch.Tensor | None],
    activation: str, down: Stack, parts: int,
) -> Rows:  # fmt: skip
    """activation(gate) * up of each slot's row, as rows for products with `down`, which need no sums. up of None: gate
    holds both.
    """
    device = rows.values.device
    values = torch.empty((parts, slots.n, down.n_columns), dtype=torch.bfloat16, device=device)
    _launch(rows, slots, gate, up, biases, values, activation, down, parts, known=slots.kind == "dense")
    return Rows(values, torch.empty((parts, slots.n, 0), dtype=torch.float32, device=device), down.group)


def _launch(
    rows: Rows, slots: Slots, stack: Stack, up: Stack | None,
    biases: tuple[torch.Tensor | None, torch.Tensor | None], out: torch.Tensor, activation: str | None,
    target: Stack | None, out_parts: int, *, known: bool,
) -> None:  # fmt: skip
    """Run the kernel; gated if there is a `target`, the stack that hidden values are for."""
    gated, fused = target is not None, target is not None and up is None
    second = stack if up is None else up
    n_rows = stack.n_rows // 2 if fused else stack.n_rows
    bias, up_bias = (biases[0], biases[0]) if fused else biases
    x = nothing = rows.values
    n_tiles = triton.cdiv(n_rows, _ROWS // 2 if gated else _ROWS)
    n_blocks = slots.n_blocks(_COLUMNS // rows.parts)
    turn, warps = _turn(stack)
    options = _options(stack, turn, warps, routed=True)
    with on_device_of(out):
        for first in range(0, n_blocks, _MOST_PROGRAMS):
            gluon.single_rows_kernel[(n_tiles, min(_MOST_PROGRAMS, n_blocks - first))](
                x, stack.codes, stack.scales, stack.biases, second.codes, second.scales, second.biases,
                nothing if bias is None else bias, nothing if up_bias is None else up_bias,
                slots.order, slots.offsets, slots.blocks, out,
                stack.n_experts, slots.top_k, x.shape[1], slots.n, n_rows, stack.n_rows, n_rows if fused else 0, first,
                stack.n_columns, stack.mode, stack.bits, stack.group, stack.per_unit,
                16 if target is None else target.group, 1 if target is None else target.per_unit,
                gated, activation or "", bias is not None, slots.kind, rows.parts, out_parts,
                known and begins_early(x), turn, warps, **early(x, fused=False), **options,
            )  # fmt: skip
