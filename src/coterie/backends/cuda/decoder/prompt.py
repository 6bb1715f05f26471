"""Attention of a prompt's tokens on Hopper GPUs, which makes the queries itself."""

import torch

from coterie.backends.cuda import gluon
from coterie.backends.cuda.decoder.projected import Projected
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.sizes import cdiv

_ROWS = 128
"""Tokens times heads of a group in a program."""

_DIM = 128
"""Numbers of a head."""

_ALIGNED = 8
"""Numbers: queries of tokens begin at multiples of them."""


def serves(projected: Projected) -> bool:
    """Whether there is a kernel for such heads: whole ones are turned, their halves being pairs."""
    spec, queries = projected.spec, projected.queries
    is_turned = len(spec.rope.frequencies) * 2 == spec.head_dim and not spec.rope.interleaved
    is_known = spec.head_dim == _DIM and projected.dtype == torch.bfloat16 and is_turned
    return is_known and queries.stride(0) % _ALIGNED == 0 and gluon.serves(queries.device)


def attend(
    projected: Projected, queries: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor], start: int,
    stores: tuple[torch.Tensor, torch.Tensor], sinks: torch.Tensor | None, out: torch.Tensor,
) -> None:  # fmt: skip
    """One sequence's projected queries [T, heads * D], from position `start` on, over its stores, into out
    [T, heads, D]; tables: their cos and sin.
    """
    spec, (keys, values) = projected.spec, stores
    n_tokens, capacity = len(queries), keys.shape[1]
    group = spec.n_heads // spec.n_kv_heads
    with on_device_of(queries):
        launch(
            gluon.attend_prompt_kernel, (cdiv(n_tokens * group, _ROWS), spec.n_kv_heads),
            queries, projected.query_norm, *tables, keys, values, sinks, out, n_tokens,
            start, spec.window or 0, capacity, queries.stride(0), float(spec.scale), float(projected.eps),
            float(spec.clip or 0.0), spec.n_heads, group, spec.head_dim, projected.query_norm is not None,
            spec.clip is not None, spec.window is not None, start + n_tokens > capacity, sinks is not None,
            **early(queries), num_warps=8,
        )  # fmt: skip
