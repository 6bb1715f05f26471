"""RMS norm, norms between a layer's branches, rotary embedding, limits and soft caps, in f32."""

from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import torch

from coterie.backends.cuda.arranged import Arranged, Made, Wishes
from coterie.backends.cuda.kernels.heads import turn_heads_kernel
from coterie.backends.cuda.kernels.norms import add_norms_kernel, rms_norm_kernel
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.layer import SlotOutputs
from coterie.backends.cuda.sizes import cdiv, next_power_of_2

_HEADS = 8
"""Heads of a token that are turned together."""

FEW = 64
"""Rows up to which what a launch leaves for the next is f32: with more it would cost more to write and read than it is
worth.
"""


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    size = x.shape[-1]
    rows = x.reshape(-1, size)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    with on_device_of(x):
        launch(
            rms_norm_kernel, (len(rows),),
            rows, weight, out, size, rows.stride(0), float(eps), HAS_WEIGHT=weight is not None,
            BLOCK=next_power_of_2(size), num_warps=_warps(size), **early(x, fused=False),
        )  # fmt: skip
    return out


Branch: TypeAlias = torch.Tensor | SlotOutputs


def add_norms(
    h: torch.Tensor,
    branches: Sequence[tuple[Branch, torch.Tensor | None]],
    after: torch.Tensor | None,
    scalar: torch.Tensor | None,
    befores: Sequence[torch.Tensor],
    eps: float,
    wishes: Wishes,
) -> tuple[torch.Tensor, list[Arranged]]:
    """`coterie.models.launches.add_norms`; the norms are made in the orders that were wished for, weight by weight, by
    whoever has few rows and by whoever has many. One that nobody wants in f32 is not made so.
    """
    n_rows, size = h.shape
    outputs = [branch if isinstance(branch, SlotOutputs) else None for branch, _ in branches]
    places = [(weight.data_ptr(), n_rows > FEW) for weight in befores]
    is_wide = tuple(wishes.wants_wide(place) for place in places)
    out, *normed = torch.empty((1 + sum(is_wide), n_rows, size), dtype=torch.float32, device=h.device).unbind()
    rest = iter(normed)
    wide = [next(rest) if wanted else None for wanted in is_wide]
    made = [[Made.empty(wish, n_rows, size, h.device) for wish in wishes.at(place)] for place in places]
    flat = [(norm, one) for norm, some in enumerate(made) for one in some]
    n_experts = max((slots.n_experts for slots in outputs if slots is not None), default=0)
    with on_device_of(h):
        launch(
            add_norms_kernel, (n_rows,),
            h,
            tuple(branch.values if isinstance(branch, SlotOutputs) else branch for branch, _ in branches),
            tuple(h if weight is None else weight for _, weight in branches),
            tuple(h if slots is None else slots.ids for slots in outputs),
            tuple(h if slots is None else slots.weights for slots in outputs),
            after, scalar, out, tuple(befores), tuple(h if one is None else one for one in wide),
            tuple(one.values for _, one in flat), tuple(one.sums for _, one in flat),
            n_rows, n_experts, float(eps), SIZE=size,
            TOP_K=tuple(0 if slots is None else slots.weights.shape[1] for slots in outputs),
            NORMS_OF=tuple(weight is not None for _, weight in branches), HAS_AFTER=after is not None,
            HAS_SCALAR=scalar is not None, WIDE=is_wide, ARRANGED=tuple((norm, *one.arrangement) for norm, one in flat),
            BLOCK=next_power_of_2(size), SOON=n_rows == 1, num_warps=_warps(size), **early(h, fused=False),
        )  # fmt: skip
    return out, [
        Arranged(n_rows, partial(rms_norm, out, weight, eps) if one is None else one, tuple(some), wishes, place)
        for weight, one, some, place in zip(befores, wide, made, places, strict=True)
    ]


def _warps(size: int) -> int:
    return 4 if size <= 1024 else 8 if size <= 2048 else 16


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    n_tokens, n_heads, dim = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    heads = min(_HEADS, next_power_of_2(n_heads))
    with on_device_of(x):
        launch(
            turn_heads_kernel, (n_tokens, cdiv(n_heads, heads)),
            x, out, cos, sin, n_heads, x.stride(0), x.stride(1), D=dim, N_PAIRS=cos.shape[1], INTERLEAVED=interleaved,
            HEADS=heads, BLOCK_D=next_power_of_2(dim), num_warps=4, **early(x),
        )  # fmt: skip
    return out


def clip(x: torch.Tensor, limit: float) -> torch.Tensor:
    return x.clamp(-limit, limit)


def softcap(x: torch.Tensor, cap: float) -> torch.Tensor:
    return torch.tanh(x / cap) * cap
