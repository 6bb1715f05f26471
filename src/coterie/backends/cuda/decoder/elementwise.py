"""RMS norm, norms between a layer's branches, rotary embedding, limits and soft caps, in f32."""

from collections.abc import Sequence

import torch
import triton

from coterie.backends.cuda.kernels.heads import turn_heads_kernel
from coterie.backends.cuda.kernels.norms import add_norms_kernel, rms_norm_kernel
from coterie.backends.cuda.launch import early, on_device_of

_HEADS = 8
"""Heads of a token that are turned together."""


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    size = x.shape[-1]
    rows = x.reshape(-1, size)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    with on_device_of(x):
        rms_norm_kernel[(len(rows),)](
            rows, weight, out, size, rows.stride(0), float(eps), HAS_WEIGHT=weight is not None,
            BLOCK=triton.next_power_of_2(size), num_warps=_warps(size), **early(x),
        )  # fmt: skip
    return out


def add_norms(
    h: torch.Tensor,
    branches: Sequence[tuple[torch.Tensor, torch.Tensor | None]],
    after: torch.Tensor | None,
    scalar: torch.Tensor | None,
    befores: Sequence[torch.Tensor],
    eps: float,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    size = h.shape[-1]
    (first, first_norm), (second, second_norm) = (*branches, (None, None))[:2]
    out, *normed = torch.empty((1 + len(befores), *h.shape), dtype=torch.float32, device=h.device)
    missing = [None] * (3 - len(befores))
    with on_device_of(h):
        add_norms_kernel[(len(h),)](
            h, first, second, first_norm, second_norm, after, scalar, out, *befores, *missing, *normed, *missing, size,
            float(eps), N_BRANCHES=len(branches), HAS_BRANCH_NORM_0=first_norm is not None,
            HAS_BRANCH_NORM_1=second_norm is not None, HAS_AFTER=after is not None, HAS_SCALAR=scalar is not None,
            N_BEFORES=len(befores), BLOCK=triton.next_power_of_2(size), num_warps=_warps(size), **early(h),
        )  # fmt: skip
    return out, normed


def _warps(size: int) -> int:
    return 4 if size <= 1024 else 8 if size <= 4096 else 16


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    n_tokens, n_heads, dim = x.shape
    x = x if x.stride(2) == 1 else x.contiguous()
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    heads = min(_HEADS, triton.next_power_of_2(n_heads))
    with on_device_of(x):
        turn_heads_kernel[(n_tokens, triton.cdiv(n_heads, heads))](
            x, out, cos, sin, n_heads, x.stride(0), x.stride(1), D=dim, N_PAIRS=cos.shape[1], INTERLEAVED=interleaved,
            HEADS=heads, BLOCK_D=triton.next_power_of_2(dim), num_warps=4, **early(x),
        )  # fmt: skip
    return out


def clip(x: torch.Tensor, limit: float) -> torch.Tensor:
    return x.clamp(-limit, limit)


def softcap(x: torch.Tensor, cap: float) -> torch.Tensor:
    return torch.tanh(x / cap) * cap
