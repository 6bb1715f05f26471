"""Products of routed rows with the matrices of their experts: every matrix product of this back end is one."""

import torch

from coterie.backends.cuda import halves, single, stream
from coterie.backends.cuda.arranged import Arranged, Arrangement, Made
from coterie.backends.cuda.kernels.few import few_rows_kernel
from coterie.backends.cuda.kernels.many import many_rows_kernel
from coterie.backends.cuda.kernels.prepare import prepare_kernel
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.rows import Halves, Rows, Slots
from coterie.backends.cuda.sizes import cdiv, next_power_of_2
from coterie.backends.cuda.sorting import blocks_for, sort_slots
from coterie.backends.cuda.stacks import Biases, Stack, pair_of
from coterie.backends.cuda.tiles import Tile, batches_in_step

_MOST_EXPERTS = 4096
_MOST_SLOTS = 4096
"""Up to so many an expert's program looks through all slots by itself: one launch, and nobody waits for anybody."""

_CHUNK = 1024
"""Activations that a program brings into order."""

_MOST_PROGRAMS = 65535
"""Programs that a launch may have on its second axis."""


def prepare(x: torch.Tensor | Arranged, stack: Stack, parts: int, tile: Tile) -> Rows | Halves:
    """Rows x [n, K] for products with `stack` by the kernel of `tile`."""
    rows = _looked_for(x, stack, parts, tile)
    return _prepare(rows, stack, parts, tile, None)[0] if isinstance(rows, torch.Tensor) else rows


def _looked_for(x: torch.Tensor | Arranged, stack: Stack, parts: int, tile: Tile) -> Rows | Halves | torch.Tensor:
    """The rows, if whoever made them has brought them into order already, or if `halves` does, which is for long ones
    and plain weights; else as they are.
    """
    is_plain, wanted = tile.halves and stack.mode == "plain", _wanted(stack, parts, tile)
    if isinstance(x, Arranged) and not is_plain:
        made = x.find(wanted)
        if made is not None:
            return Halves(made.values, made.sums) if tile.halves else Rows(made.values, made.sums, stack.group)
    wide = x.wide if isinstance(x, Arranged) else x
    is_long = tile.halves and stack.n_columns > halves.MOST_COLUMNS
    return halves.halve(wide, stack, wanted) if is_plain or is_long else wide


def _wanted(stack: Stack, parts: int, tile: Tile) -> Arrangement:
    """The order in which products by the kernel of `tile` want rows."""
    if tile.halves:
        return Arrangement.of_stream(stack) if tile.stream else Arrangement.of_halves(stack)
    return Arrangement.of_threads(stack, parts) if tile.single else Arrangement.of(stack, parts)


def prepare_and_group(
    x: torch.Tensor | Arranged, stack: Stack, parts: int, tile: Tile, ids: torch.Tensor, top_k: int
) -> tuple[Rows | Halves, Slots]:
    """`prepare`, and the slots of ids int32 [n * top_k] by expert in blocks of the tile's rows."""
    if stack.n_experts > _MOST_EXPERTS or ids.numel() > _MOST_SLOTS:
        slots = sort_slots(ids, stack.n_experts, tile.rows)
        return prepare(x, stack, parts, tile), Slots(ids.numel(), top_k, "sorted", *slots)
    rows, found = _prepare(_looked_for(x, stack, parts, tile), stack, parts, tile, ids)
    assert found is not None
    return rows, Slots(ids.numel(), top_k, "sorted", *found)


def _prepare(
    x: torch.Tensor | Rows | Halves, stack: Stack, parts: int, tile: Tile, ids: torch.Tensor | None
) -> tuple[Rows | Halves, tuple[torch.Tensor, ...] | None]:
    """The rows and the slots of `ids`; the slots alone where the rows are in order already."""
    wanted = _wanted(stack, parts, tile)
    found: Rows | Halves
    if isinstance(x, torch.Tensor):
        n, k = x.shape
        made = Made.empty(wanted, n, k, x.device)
        source = x
        found = Halves(made.values, made.sums) if wanted.halves else Rows(made.values, made.sums, stack.group)
    else:
        source, found, n, k = x.values, x, 0, x.values.shape[2]
    values, sums = found.values, found.sums if isinstance(found, Rows) else found.sizes
    slots: tuple[torch.Tensor, ...] | None = None
    n_slots, n_experts, experts = 0, 0, 0
    if ids is not None:
        n_slots, n_experts = ids.numel(), stack.n_experts
        experts = max(2, next_power_of_2(n_experts))
        order = torch.empty(n_slots, dtype=torch.int32, device=values.device)
        slots = (order, blocks_for(n_slots, n_experts, tile.rows, values.device))
    order, blocks = (values,) * 2 if slots is None else slots
    becomes_halves = wanted.halves and n > 0
    chunk = next_power_of_2(k) if becomes_halves else _CHUNK
    n_groups = max(1, chunk // wanted.group)
    block = next_power_of_2(max(n_slots, 32))
    with on_device_of(values):
        launch(
            prepare_kernel, (n * cdiv(k, n_groups * wanted.group) + n_experts,),
            source, values, sums, values if ids is None else ids, order, blocks,
            n, n_experts, n_slots, 0 if slots is None else len(blocks),
            k, wanted.group, wanted.per_unit, parts, wanted.sums, becomes_halves, wanted.lifted, n_groups,
            tile.rows, experts, block, **early(values), num_warps=8 if max(block, chunk) > _CHUNK else 4,
        )  # fmt: skip
    return found, slots


def multiply(
    rows: Rows | Halves, slots: Slots, stack: Stack, bias: torch.Tensor | None, tile: Tile, dtype: torch.dtype,
    *, empty: bool = True, known: bool = False,
) -> torch.Tensor:  # fmt: skip
    """Each slot's row times the transpose of its expert's matrix, plus its bias: [n, N].

    Slots whose id is no expert's are left as they were allocated; not `empty`, they are zeros. known: what the slots
    are does not come from the last kernel before this, so weights can be fetched before that one ends.
    """
    make = torch.empty if empty else torch.zeros
    out = make((slots.n, stack.n_rows), dtype=dtype, device=rows.values.device)
    if isinstance(rows, Halves) and tile.stream:
        stream.multiply(rows, slots, stack, bias, tile, out, known=known)
    elif isinstance(rows, Halves):
        halves.multiply(rows, slots, stack, bias, tile, out, known=known)
    elif tile.single:
        single.multiply(rows, slots, stack, bias, out, known=known)
    else:
        _launch(rows, slots, stack, None, (bias, None), tile, out, out, None, None, 1, 0)
    return out


def gate_and_up(
    rows: Rows | Halves, slots: Slots, gate: Stack, up: Stack | None,
    biases: Biases, activation: str, down: Stack, parts: int, tile: Tile, *, known: bool = False,
) -> Rows | Halves:  # fmt: skip
    """activation(gate) * up of each slot's row, as rows for products with `down`. up of None: gate holds both. known:
    as in `multiply`.
    """
    if isinstance(rows, Halves) and tile.stream:
        return stream.gate_and_up(rows, slots, gate, up, biases, activation, down, tile, known=known)
    if isinstance(rows, Halves):
        return halves.gate_and_up(rows, slots, gate, up, biases, activation, down, tile, known=known)
    if tile.single:
        return single.gate_and_up(rows, slots, gate, up, biases, activation, down, parts, known=known)
    device = rows.values.device
    span = min(tile.bn, down.group) if down.has_sums else 0
    values = torch.empty((parts, slots.n, down.n_columns), dtype=torch.bfloat16, device=device)
    n_sums = cdiv(down.n_columns, span) if span else 0
    sums = torch.empty((parts, slots.n, n_sums), dtype=torch.float32, device=device)
    _launch(rows, slots, gate, up, biases, tile, values, sums, activation, down, parts, span)
    return Rows(values, sums, span)


def _launch(
    rows: Rows, slots: Slots, stack: Stack, up: Stack | None, biases: Biases,
    tile: Tile, out: torch.Tensor, out_sums: torch.Tensor, activation: str | None, target: Stack | None, parts: int,
    span: int,
) -> None:  # fmt: skip
    """Run the kernel that `tile` names; gated if there is a `target`, the stack that hidden values are for."""
    gated = target is not None
    second, n_rows, up_row, bias, up_bias = pair_of(stack, up, biases, gated=gated)
    bn = tile.bn if gated else tile.bn * tile.alone
    kernel, own = many_rows_kernel, {}
    if tile.few:
        kernel, own = few_rows_kernel, {"STEPS": batches_in_step(stack, tile), "GB": tile.warps}
    x = rows.values
    no_bias = rows.sums
    n_blocks = slots.n_blocks(tile.rows)
    with on_device_of(x):
        for first in range(0, n_blocks, _MOST_PROGRAMS):
            launch(
                kernel, (cdiv(n_rows, bn), min(_MOST_PROGRAMS, n_blocks - first)),
                x, rows.sums, stack.codes, stack.scales, stack.biases, second.codes, second.scales, second.biases,
                no_bias if bias is None else bias, no_bias if up_bias is None else up_bias,
                slots.order, slots.blocks, out, out_sums,
                stack.n_experts, slots.top_k, x.shape[1], slots.n, n_rows, stack.n_rows, up_row, first,
                stack.n_columns, stack.mode, stack.bits, stack.group, stack.per_unit, stack.excess, rows.span,
                16 if target is None else target.group, 1 if target is None else target.per_unit,
                span, gated, activation or "", bias is not None,
                bn, tile.rows, slots.kind, rows.parts, parts, tile.stages, **own, **early(x), num_warps=tile.warps,
            )  # fmt: skip
