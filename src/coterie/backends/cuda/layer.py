"""The experts of a layer, in four launches:

activations in the order of codes, slots by expert  ->  gate, up, activation  ->  down  ->  weighted sum
"""

from typing import Any

import torch
import triton

from coterie.backends.cuda.activations import glu
from coterie.backends.cuda.device import within_memory
from coterie.backends.cuda.kernels.slots import sum_slots_kernel
from coterie.backends.cuda.launch import early, on_device_of
from coterie.backends.cuda.products import Rows, Slots, gate_and_up, multiply, prepare, prepare_and_group
from coterie.backends.cuda.stacks import Stack, stack_of
from coterie.backends.cuda.tiles import Tile, few_tile, tile_for
from coterie.errors import UnsupportedError
from coterie.ops.routing import Routing

_SUM_BLOCK = 512


@within_memory
def moe(x: torch.Tensor, routing: Routing, experts: Any, precision: str = "default") -> torch.Tensor:
    """bfloat16 activations are multiplied as they are, others as the sum of two bfloat16 numbers."""
    if precision == "int8":
        raise UnsupportedError(
            'precision="int8" was asked for on a GPU, but only the CPU back end has it; use precision="default"',
            code="int8",
        )
    return run_experts(x, routing.ids, routing.weights, experts, parts_of(x), x.dtype)


def parts_of(x: torch.Tensor) -> int:
    """How many bfloat16 numbers an activation of x is: enough for its digits, 16 of f32's 24."""
    return 1 if x.dtype == torch.bfloat16 else 2


def run_experts(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, experts: Any, parts: int, dtype: torch.dtype,
    *, alone: bool = False,
) -> torch.Tensor:  # fmt: skip
    """The weighted sums [T, H] of x [T, H] through the experts ids, weights [T, k]; each activation in `parts`.

    alone: each row comes out with the bits that it has in a call of its own.
    """
    gate, down = stack_of(experts.gate), stack_of(experts.down)
    chosen, top_k = ids.view(torch.int32).reshape(-1), ids.shape[-1]
    tile = few_tile(parts) if alone else tile_for(gate, chosen.numel(), parts)
    if len(x) == 1:
        rows, slots = prepare(x, gate, parts, tile), Slots.direct(chosen, top_k)
    else:
        rows, slots = prepare_and_group(x, gate, parts, tile, chosen, top_k)
    hidden = _hidden(x, rows, slots, gate, down, experts, tile)
    values = multiply(hidden, slots.per_slot, down, experts.down_bias, tile, dtype if parts == 1 else torch.float32)
    return _sum_slots(values, chosen, weights, gate.n_experts, dtype)


def _hidden(x: torch.Tensor, rows: Rows, slots: Slots, gate: Stack, down: Stack, experts: Any, tile: Tile) -> Rows:
    """The gated hidden values of every slot, for products with `down`."""
    up = None if experts.up is None else stack_of(experts.up)
    biases = (experts.gate_bias, experts.up_bias)
    if up is None or up.same_format == gate.same_format:
        return gate_and_up(rows, slots, gate, up, biases, experts.activation, down, rows.parts, tile)
    gates = multiply(rows, slots, gate, biases[0], tile, torch.float32)
    ups = multiply(prepare(x, up, rows.parts, tile), slots, up, biases[1], tile, torch.float32)
    return prepare(glu(gates, ups, experts.activation), down, rows.parts, tile)


def _sum_slots(
    values: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, n_experts: int, dtype: torch.dtype
) -> torch.Tensor:
    """Each token's weighted sum [T, H] of values [T * top_k, H]."""
    (n_tokens, top_k), n_columns = weights.shape, values.shape[1]
    out = torch.empty((n_tokens, n_columns), dtype=dtype, device=values.device)
    with on_device_of(out):
        sum_slots_kernel[(n_tokens, triton.cdiv(n_columns, _SUM_BLOCK))](
            values, ids, weights, out, n_experts, top_k, n_columns,
            triton.next_power_of_2(top_k), _SUM_BLOCK, **early(out),
        )  # fmt: skip
    return out
