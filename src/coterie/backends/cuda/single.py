"""Products of up to eight columns, on GPUs whose kernels Gluon can write."""

import contextlib
import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
import triton

from coterie.backends.cuda.device import version_of
from coterie.backends.cuda.halves import NEWEST_TRITON
from coterie.backends.cuda.launch import INTERPRETED, begins_early, early, on_device_of
from coterie.backends.cuda.rows import Rows, Slots
from coterie.backends.cuda.stacks import Stack
from coterie.backends.cuda.tiles import Tile

single_linear_kernel: Any = None
single_rows_kernel: Any = None
if version_of(triton.__version__) <= NEWEST_TRITON:
    with contextlib.suppress(ImportError):  # builds for other GPUs may lack what is for NVIDIA's
        from coterie.backends.cuda.kernels.single.linear import single_linear_kernel
        from coterie.backends.cuda.kernels.single.rows import single_rows_kernel

_CAPABILITY = 9
_COLUMNS = 8
_ROWS = 16
_FORMATS = {("affine", 4), ("affine", 8), ("mxfp4", 4)}
_UNITS = (8, 16, 32)
_MOST_UNITS = 1024
_MOST_PROGRAMS = 65535
TOGETHER = 3


def serves(stack: Stack, parts: int, tile: Tile) -> bool:
    """Whether products with this matrix can go this way."""
    return os.environ.get("SINGLE", "1") == "1" and tile.few and tile.rows * parts == _COLUMNS and _fits(stack) and _has_products(stack.codes.device)


def _fits(stack: Stack) -> bool:
    return (
        (stack.mode, stack.bits) in _FORMATS
        and stack.group // stack.per_unit in _UNITS
        and stack.n_columns // stack.per_unit <= _MOST_UNITS * stack.bits // 4
    )


@functools.cache
def _has_products(device: torch.device) -> bool:
    if INTERPRETED.value or torch.version.hip is not None or single_rows_kernel is None:
        return False
    return torch.cuda.get_device_capability(device)[0] == _CAPABILITY


_MOST_CODES = {4: 384, 8: 256}
"""Codes that a thread has at most, by their bits."""

_MOST_WARPS = 16


def _warps(stack: Stack) -> int:
    """Warps of a program: the fewest whose threads have registers for all."""
    if "WARPS" in os.environ and os.environ["WARPS"] != "0":
        return int(os.environ["WARPS"])
    n_groups, warps = stack.n_columns // stack.group, 1
    while warps < _MOST_WARPS and _codes(stack, n_groups, warps) > _MOST_CODES[stack.bits]:
        warps *= 2
    return warps


def _codes(stack: Stack, n_groups: int, warps: int) -> int:
    """Codes that a thread has."""
    first = 1 << n_groups.bit_length() - 1
    second = 0 if first == n_groups else max(warps, triton.next_power_of_2(n_groups - first))
    return max(warps, first + second) * stack.group * _ROWS // (32 * warps)


def _registers(stack: Stack, warps: int) -> dict[str, int]:
    n = int(os.environ.get("REGS", "-1"))
    if n < 0:
        n = 128 if stack.bits == 4 and warps == 4 and _codes(stack, stack.n_columns // stack.group, warps) <= 256 else 0
    return {"maxnreg": n} if n else {}


def linears(
    rows: Rows, stacks: Sequence[Stack], biases: Sequence[torch.Tensor | None], dtype: torch.dtype
) -> list[torch.Tensor]:
    """Rows times the transposes of up to three matrices of one format, plus their biases."""
    x = rows.values
    parts, n = x.shape[:2]
    out = [torch.empty((n, stack.n_rows), dtype=dtype, device=x.device) for stack in stacks]
    described: list[torch.Tensor | int] = []
    for index in range(TOGETHER):
        there = index < len(stacks)
        stack, bias, product = (stacks[index], biases[index], out[index]) if there else (stacks[0], None, out[0])
        added = rows.sums if bias is None else bias
        described += [stack.codes, stack.scales, stack.biases, added, product, stack.n_rows if there else 0]
    n_tiles = sum(triton.cdiv(stack.n_rows, _ROWS) for stack in stacks)
    first = stacks[0]
    has_bias = [index < len(stacks) and biases[index] is not None for index in range(TOGETHER)]
    warps = _warps(first)
    with on_device_of(x):
        single_linear_kernel[(n_tiles, triton.cdiv(n, _COLUMNS // parts))](
            x, *described, n, first.n_columns, first.mode, first.bits, first.group, first.per_unit,
            *has_bias, parts, warps, **early(x), num_warps=warps, **_registers(first, warps),
        )  # fmt: skip
    return out


def multiply(rows: Rows, slots: Slots, stack: Stack, bias: torch.Tensor | None, out: torch.Tensor) -> None:
    """Each slot's row times the transpose of its expert's matrix, plus its bias, into out [n, N]."""
    _launch(rows, slots, stack, None, (bias, None), out, None, None, 1, True)


def gate_and_up(
    rows: Rows, slots: Slots, gate: Stack, up: Stack | None, biases: tuple[torch.Tensor | None, torch.Tensor | None],
    activation: str, down: Stack, parts: int, ahead: bool,
) -> Rows:  # fmt: skip
    """activation(gate) * up of each slot's row, as rows for products with `down`. up of None: gate holds both."""
    values = torch.empty((parts, slots.n, down.n_columns), dtype=torch.bfloat16, device=rows.values.device)
    _launch(rows, slots, gate, up, biases, values, activation, down, parts, ahead)
    return Rows(values, rows.sums, down.group)


def _launch(
    rows: Rows, slots: Slots, stack: Stack, up: Stack | None,
    biases: tuple[torch.Tensor | None, torch.Tensor | None],
    out: torch.Tensor, activation: str | None, target: Stack | None, out_parts: int, ahead: bool,
) -> None:  # fmt: skip
    """Run the kernel; gated if there is a `target`, the stack that hidden values are for."""
    gated, fused = target is not None, target is not None and up is None
    second = stack if up is None else up
    n_rows = stack.n_rows // 2 if fused else stack.n_rows
    bias, up_bias = (biases[0], biases[0]) if fused else biases
    x = rows.values
    nothing = x
    n_blocks = slots.n_blocks(_COLUMNS // rows.parts)
    rows_each = _ROWS // 2 if gated else _ROWS
    warps = _warps(stack)
    with on_device_of(out):
        for first in range(0, n_blocks, _MOST_PROGRAMS):
            single_rows_kernel[(triton.cdiv(n_rows, rows_each), min(_MOST_PROGRAMS, n_blocks - first))](
                x, stack.codes, stack.scales, stack.biases, second.codes, second.scales, second.biases,
                nothing if bias is None else bias, nothing if up_bias is None else up_bias,
                slots.order, slots.offsets, slots.blocks, out,
                stack.n_experts, slots.top_k, x.shape[1], slots.n, n_rows, stack.n_rows, n_rows if fused else 0, first,
                stack.n_columns, stack.mode, stack.bits, stack.group, stack.per_unit,
                16 if target is None else target.group, 1 if target is None else target.per_unit,
                gated, activation or "", bias is not None, slots.kind, rows.parts, out_parts,
                ahead and begins_early(x), warps, **early(x), num_warps=warps, **_registers(stack, warps),
            )  # fmt: skip
