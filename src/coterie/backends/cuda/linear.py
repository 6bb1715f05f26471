"""Products of rows with whole matrices: one launch for several matrices of one format where rows are few."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from coterie.backends.cuda import single
from coterie.backends.cuda.arranged import Arranged
from coterie.backends.cuda.halves import can_join, multiply_together, serves
from coterie.backends.cuda.kernels.linear import linear_kernel
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.products import multiply, prepare
from coterie.backends.cuda.rows import Halves, Rows, Slots
from coterie.backends.cuda.sizes import cdiv
from coterie.backends.cuda.stacks import Stack, Weight, stack_of
from coterie.backends.cuda.tiles import Tile, batches_in_step, dense_tile, few_tile

_TOGETHER = 3
"""Matrices that one launch takes."""


def linears(
    x: torch.Tensor | Arranged, weights: Sequence[Weight], biases: Sequence[torch.Tensor | None], *,
    parts: int, alone: bool = False, dtype: torch.dtype = torch.float32,
) -> list[torch.Tensor]:  # fmt: skip
    """x [T, K] times the transpose of each weight [N, K], plus its bias f32 [N]: a list of [T, N] in `dtype`.

    parts: how many bfloat16 numbers an activation is the sum of. alone: rows come out with the bits that they have in
    calls of their own; up to 16 rows do in any case.
    """
    stacks = [stack_of(weight) for weight in weights]
    n_rows = len(x)
    tiles = [
        stack.remembered((n_rows, parts, alone), partial(whole_tile, n_rows, parts, alone, stack)) for stack in stacks
    ]
    out: list[torch.Tensor | None] = [None] * len(stacks)
    prepared: dict[tuple[int, int, bool, bool, bool], Rows | Halves] = {}
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, (stack, tile, bias) in enumerate(zip(stacks, tiles, biases, strict=True)):
        joins = tile.halves and can_join(stack)
        way = (tile.few, tile.single, tile.halves, joins, joins and bias is not None)
        alike.setdefault((stack.same_format, way), []).append(index)
    for chosen in alike.values():
        stack, tile = stacks[chosen[0]], tiles[chosen[0]]
        arrangement = (stack.group, stack.per_unit, stack.has_sums, tile.halves, tile.single)
        if arrangement not in prepared:
            prepared[arrangement] = prepare(x, stack, parts, tile)
        rows = prepared[arrangement]
        together = _TOGETHER if tile.few or (tile.halves and can_join(stack)) else 1
        for first in range(0, len(chosen), together):
            some = chosen[first : first + together]
            if tile.few or len(some) > 1:
                products = _together(rows, [stacks[i] for i in some], [biases[i] for i in some], tile, dtype)
            else:
                index = some[0]
                products = [multiply(rows, Slots.dense(rows), stacks[index], biases[index], tiles[index], dtype)]
            for index, product in zip(some, products, strict=True):
                out[index] = product
    return [product for product in out if product is not None]


def whole_tile(n_rows: int, parts: int, alone: bool, *stacks: Stack) -> Tile:
    """The tile for rows that all meet each of these matrices, which go the same way."""
    few = alone or single.are_shared(n_rows, parts, *stacks)
    tile = few_tile(parts) if few else dense_tile(stacks[0], n_rows, parts, serves(*stacks))
    return single.served(tile, parts, *stacks)


def _together(
    rows: Rows | Halves, stacks: Sequence[Stack], biases: Sequence[torch.Tensor | None], tile: Tile, dtype: torch.dtype
) -> list[torch.Tensor]:
    """The products of few rows, or of float16, with up to three matrices of one format."""
    x = rows.values
    parts, n = x.shape[:2]
    nothing = rows.sums if isinstance(rows, Rows) else rows.sizes
    out = [torch.empty((n, stack.n_rows), dtype=dtype, device=x.device) for stack in stacks]
    described: list[torch.Tensor | int] = []
    for index in range(_TOGETHER):
        there = index < len(stacks)
        stack, bias, product = (stacks[index], biases[index], out[index]) if there else (stacks[0], None, out[0])
        added = nothing if bias is None else bias
        described += [stack.codes, stack.scales, stack.biases, added, product, stack.n_rows if there else 0]
    has_bias = [index < len(stacks) and biases[index] is not None for index in range(_TOGETHER)]
    if isinstance(rows, Halves):
        multiply_together(rows, described, has_bias[0], stacks)
        return out
    if tile.single:
        single.multiply_together(x, described, has_bias, stacks)
        return out
    n_tiles = sum(cdiv(stack.n_rows, tile.bn) for stack in stacks)
    first = stacks[0]
    with on_device_of(x):
        launch(
            linear_kernel, (n_tiles, cdiv(n, tile.rows)),
            x, rows.sums, *described, n,
            first.n_columns, first.mode, first.bits, first.group, first.per_unit, first.excess, rows.span,
            *has_bias, tile.bn, tile.rows, parts, tile.warps, batches_in_step(first, tile), tile.stages,
            **early(x), num_warps=tile.warps,
        )  # fmt: skip
    return out
