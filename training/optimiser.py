"""The optimisers: Muon for the matrices inside the layers, AdamW for the rest.

Muon (Jordan et al., 2024) replaces a matrix's momentum by the nearest orthogonal matrix, found by five steps of a
Newton-Schulz iteration. Stacked experts [E, N, K] are E matrices, each orthogonalised by itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Approximate the orthogonal factor of each matrix of [..., N, K]; in bfloat16 on a GPU."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, with decoupled weight decay; every parameter has two or three axes."""

    def __init__(self, params: list[nn.Parameter], *, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                by_shape[p.shape].append(p)
            for alike in by_shape.values():
                self._step_alike(alike, group)

    def _step_alike(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """One step for parameters of one shape, their updates orthogonalised in one batch."""
        directions = []
        for p in parameters:
            state = self.state[p]
            if not state:
                state["average"] = torch.zeros_like(p)
            state["average"].lerp_(p.grad, 1 - group["momentum"])
            directions.append(p.grad.lerp(state["average"], group["momentum"]))
        updates = orthogonalise(torch.stack(directions))
        rows, columns = parameters[0].shape[-2:]
        scale = math.sqrt(max(1.0, rows / columns))
        for p, update in zip(parameters, updates, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def make_optimisers(model: nn.Module, settings: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """Muon over the layers' matrices but the routers; AdamW over embeddings, routers (no decay on norms and scales)."""
    matrices, wide, narrow = [], [], []
    for name, p in model.named_parameters():
        if p.ndim < 2:
            narrow.append(p)
        elif ".layers." in name and ".router." not in name:
            matrices.append(p)
        else:
            wide.append(p)
    decay = settings["weight_decay"]
    adam = torch.optim.AdamW(
        [{"params": wide, "weight_decay": decay}, {"params": narrow, "weight_decay": 0.0}],
        lr=settings["adam_lr"],
        betas=tuple(settings["adam_betas"]),
        fused=wide[0].is_cuda,
    )
    muon = Muon(matrices, lr=settings["muon_lr"], momentum=settings["muon_momentum"], weight_decay=decay)
    for optimiser in (adam, muon):
        for group in optimiser.param_groups:
            group["peak_lr"] = group["lr"]
    return [adam, muon]


def lr_fraction(step: int, steps: int, settings: dict[str, Any]) -> float:
    """The learning rate at `step` as a fraction of its peak: a linear warm-up, then half a cosine."""
    warmup = min(settings["warmup_steps"], max(1, steps // 5))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    floor = settings["final_lr_fraction"]
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
