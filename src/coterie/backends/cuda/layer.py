"""The experts of a layer, in four launches, which may be three for one row, and are six for many:

activations in the order of codes, slots by expert  ->  gate, up, activation  ->  down  ->  weighted sum
"""

from dataclasses import dataclass
from typing import Any

import torch

from coterie.backends.cuda import single, stream
from coterie.backends.cuda.activations import glu
from coterie.backends.cuda.arranged import Arranged
from coterie.backends.cuda.device import within_memory
from coterie.backends.cuda.halves import serves
from coterie.backends.cuda.kernels.slots import sum_slots_kernel
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.linear import whole_tile
from coterie.backends.cuda.products import gate_and_up, multiply, prepare, prepare_and_group
from coterie.backends.cuda.rows import Halves, Rows, Slots
from coterie.backends.cuda.sizes import cdiv, next_power_of_2
from coterie.backends.cuda.stacks import Biases, Stack, Weight, stack_of
from coterie.backends.cuda.tiles import Tile, few_tile, tile_for
from coterie.errors import UnsupportedError
from coterie.ops.routing import Routing

_SUM_BLOCK = 256
"""Columns that a warp sums, 16 bytes of each slot a thread."""

_MOST_PARTS = 2


@within_memory
def moe(x: torch.Tensor, routing: Routing, experts: Any, precision: str = "default") -> torch.Tensor:
    """bfloat16 activations are multiplied as they are, and hidden values as one bfloat16 number; "exact" makes hidden
    values the sum of two, as activations with more digits always are.
    """
    if precision == "int8":
        raise UnsupportedError(
            'precision="int8" was asked for on a GPU, but only the CPU back end has it; use precision="default"',
            code="int8",
        )
    parts = _MOST_PARTS if precision == "exact" else parts_of(x)
    return run_experts(x, routing.ids, routing.weights, experts, parts, x.dtype)


def parts_of(x: torch.Tensor) -> int:
    """How many bfloat16 numbers an activation of x is: enough for its digits, 16 of f32's 24."""
    return 1 if x.dtype == torch.bfloat16 else _MOST_PARTS


@dataclass(frozen=True, slots=True)
class SlotOutputs:
    """What tokens' experts give before it is weighted and summed: values [T * k, H], ids int32 [T * k], weights [T, k].

    Slots whose id is no expert's have no values.
    """

    values: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor
    n_experts: int


def run_experts(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, experts: Any, parts: int, dtype: torch.dtype
) -> torch.Tensor:
    """The weighted sums [T, H] of x [T, H] through the experts ids, weights [T, k]; each activation in `parts`."""
    return _sum_slots(run_slots(x, ids, weights, experts, parts, dtype if parts == 1 else torch.float32), dtype)


def run_slots(
    x: torch.Tensor | Arranged, ids: torch.Tensor, weights: torch.Tensor, experts: Any, parts: int, dtype: torch.dtype,
    *, alone: bool = False, known: bool = False,
) -> SlotOutputs:  # fmt: skip
    """`run_experts` without its last step, outputs in `dtype`.

    alone: each row comes out with the bits that it has in a call of its own. known: ids are older than the last launch.
    """
    gate, down = stack_of(experts.gate), stack_of(experts.down)
    up = None if experts.up is None else stack_of(experts.up)
    chosen, top_k = ids.view(torch.int32).reshape(-1), ids.shape[-1]
    bounded = experts.gate_bias is None or experts.activation == "swiglu_clamped"
    tile = _tile(gate, up, down, chosen.numel(), parts, alone=alone, bounded=bounded, several=len(x) > 1)
    if len(x) == 1:
        as_it_is = single.as_it_is(x, gate, parts, tile)
        rows, slots = as_it_is or prepare(x, gate, parts, tile), Slots.direct(chosen, top_k)
    else:
        rows, slots = prepare_and_group(x, gate, parts, tile, chosen, top_k)
    biases = (experts.gate_bias, experts.up_bias)
    known = known and slots.kind == "direct"
    hidden = _hidden(x, rows, slots, gate, up, biases, experts.activation, down, tile, known=known)
    values = multiply(hidden, slots.per_slot, down, experts.down_bias, tile, dtype, known=True)
    return SlotOutputs(values, chosen, weights, gate.n_experts)


def _tile(
    gate: Stack, up: Stack | None, down: Stack, n_slots: int, parts: int, *, alone: bool, bounded: bool, several: bool
) -> Tile:  # fmt: skip
    """The tile for the products of n_slots routed rows, remembered with the matrices that it was found for. alone: each
    has the bits that it has by itself. bounded: whether hidden values are, as float16 products want. several: whether
    they are more than one token's.
    """

    def find() -> tuple[Stack | None, Stack, Tile]:
        streams = several and not alone and bounded and parts == 1
        tile = stream.tile_for(n_slots, gate, up, down) if streams else None
        if tile is not None:
            return up, down, tile
        halves = bounded and serves(gate, up, down)
        are_few = alone or single.are_few(n_slots, parts, gate, up, down)
        tile = few_tile(parts) if are_few else tile_for(gate, n_slots, parts, halves)
        return up, down, single.served(tile, parts, gate, up, last=down)

    found: tuple[Stack | None, Stack, Tile] = gate.remembered((n_slots, parts, alone, bounded, several), find)
    return (found if found[0] is up and found[1] is down else find())[2]


def run_dense(
    x: torch.Tensor | Arranged, gate: Weight, up: Weight, down: Weight, activation: str, parts: int,
    *, alone: bool = False,
) -> torch.Tensor:  # fmt: skip
    """down(activation(gate(x)) * up(x)) of x [T, H] by matrices that all rows meet: f32 [T, H]; `alone` as above."""
    stack, second, last = (stack_of(weight) for weight in (gate, up, down))
    tile = whole_tile(len(x), parts, alone, stack, second, last)
    rows = prepare(x, stack, parts, tile)
    hidden = _hidden(x, rows, Slots.dense(rows), stack, second, (None, None), activation, last, tile, known=True)
    return multiply(hidden, Slots.dense(hidden), last, None, tile, torch.float32, known=True)


def _hidden(
    x: torch.Tensor | Arranged, rows: Rows | Halves, slots: Slots, gate: Stack, up: Stack | None,
    biases: Biases, activation: str, down: Stack, tile: Tile, *, known: bool,
) -> Rows | Halves:  # fmt: skip
    """The gated hidden values of every slot, for products with `down`."""
    if up is None or up.same_format == gate.same_format:
        return gate_and_up(rows, slots, gate, up, biases, activation, down, rows.parts, tile, known=known)
    gates = multiply(rows, slots, gate, biases[0], tile, torch.float32)
    ups = multiply(prepare(x, up, rows.parts, tile), slots, up, biases[1], tile, torch.float32)
    return prepare(glu(gates, ups, activation), down, rows.parts, tile)


def _sum_slots(slots: SlotOutputs, dtype: torch.dtype) -> torch.Tensor:
    """Each token's weighted sum [T, H]."""
    (n_tokens, top_k), n_columns = slots.weights.shape, slots.values.shape[1]
    out = torch.empty((n_tokens, n_columns), dtype=dtype, device=slots.values.device)
    with on_device_of(out):
        launch(
            sum_slots_kernel, (n_tokens, cdiv(n_columns, _SUM_BLOCK)),
            slots.values, slots.ids, slots.weights, out, slots.n_experts, top_k, n_columns,
            next_power_of_2(top_k), _SUM_BLOCK, **early(out), num_warps=1,
        )  # fmt: skip
    return out
