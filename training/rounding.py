"""Training with the rounding that shipping will do: weights pass through the 4-bit format before each forward pass.

The gradient is taken at the rounded weights and applied to the exact ones (the straight-through estimator, Bengio et
al., 2013), so the exact weights learn to survive the rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

SMALLEST_STEP = 1e-7


def round_trip(weight: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """Affine quantise and dequantise along the last axis, group by group; step and offset are kept in bfloat16.

    weight [..., K] with K a multiple of `group`; the result has its shape and dtype. The rule is the format's own:
    the step is adjusted so that the group's value of largest magnitude is met exactly, and zero has a code.
    """
    grouped = weight.float().unflatten(-1, (-1, group))
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    top = (1 << bits) - 1
    step = ((high - low) / top).clamp(min=SMALLEST_STEP)
    low_is_larger = low.abs() > high.abs()
    step = torch.where(low_is_larger, step, -step)
    edge = torch.where(low_is_larger, low, high)
    codes_to_zero = (edge / step).round()
    step = torch.where(codes_to_zero != 0, edge / codes_to_zero, step)
    offset = torch.where(codes_to_zero != 0, edge, torch.zeros_like(edge))
    codes = ((grouped - offset) / step).round().clamp(0, top)
    step, offset = (x.to(torch.bfloat16).float() for x in (step, offset))
    return (codes * step + offset).flatten(-2).to(weight.dtype)


def quantised_parameters(model: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """The parameters the shipped format rounds, with a flag for those it keeps at 8 bits (the routers)."""
    found = []
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            found.append((p, 8 if name.endswith("router.proj.weight") else 0))
    return found


@contextmanager
def rounded_weights(model: nn.Module, bits: int, group: int) -> Iterator[None]:
    """Within this block the model computes with rounded weights; on leaving it, the exact weights are back."""
    parameters = quantised_parameters(model)
    exact = [p.detach().clone() for p, _ in parameters]
    with torch.no_grad():
        for p, own_bits in parameters:
            p.copy_(round_trip(p, own_bits or bits, group))
    try:
        yield
    finally:
        with torch.no_grad():
            for (p, _), saved in zip(parameters, exact, strict=True):
                p.copy_(saved)
