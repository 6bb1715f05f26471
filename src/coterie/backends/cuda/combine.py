"""Weighted sums in f32."""

import torch

from coterie.backends.cuda.device import within_memory
from coterie.backends.cuda.kernels.combine import accumulate_kernel, weighted_sum_kernel
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.sizes import cdiv, next_power_of_2

_BLOCK = 256
_MOST_SLOTS = 16
"""Slots whose outputs are in flight at once."""

_ACCUMULATED = 1024


@within_memory
def weighted_sum(expert_out: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    n_tokens, top_k, n_columns = expert_out.shape
    totals = torch.empty((n_tokens, n_columns), dtype=torch.float32, device=expert_out.device)
    slots = min(_MOST_SLOTS, next_power_of_2(top_k))
    with on_device_of(expert_out):
        launch(
            weighted_sum_kernel, (n_tokens, cdiv(n_columns, _BLOCK)),
            expert_out, weights, totals, top_k, n_columns, slots, _BLOCK, **early(expert_out),
        )  # fmt: skip
    return totals


@within_memory
def accumulate(accumulator: torch.Tensor, expert_out: torch.Tensor, weight: float | torch.Tensor) -> torch.Tensor:
    """weight: a number, or f32 [1] on the device, which is not waited for."""
    number, on_device = (weight, None) if isinstance(weight, float) else (1.0, weight)
    n_values = accumulator.numel()
    with on_device_of(accumulator):
        launch(
            accumulate_kernel, (cdiv(n_values, _ACCUMULATED),),
            accumulator, expert_out, number, on_device, n_values, on_device is not None, _ACCUMULATED,
            **early(accumulator),
        )  # fmt: skip
    return accumulator
