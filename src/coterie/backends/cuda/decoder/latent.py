"""Attention over a cache of latents: queries are taken through the key matrices the other way round and meet the
latents themselves, which all heads share; the mixed latents become values at the end.
"""

from typing import Any

import torch

from coterie.backends.cuda.decoder.attention import Shares, over_tokens
from coterie.backends.cuda.decoder.projected import TRITON_DTYPES
from coterie.backends.cuda.decoder.rows import DeviceRows
from coterie.backends.cuda.decoder.shapes import step_shape
from coterie.backends.cuda.kernels.attend_step import attend_shares_kernel
from coterie.backends.cuda.kernels.by_head import keep_latents_kernel, multiply_by_head_kernel
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.sizes import cdiv, next_power_of_2

_ROWS, _COLUMNS, _DEPTH = 16, 32, 64
"""Of a program that multiplies by head."""


def attend_latent_rows(
    queries: torch.Tensor,
    turned: torch.Tensor,
    latents: torch.Tensor,
    keys: torch.Tensor,
    key_up: torch.Tensor,
    value_up: torch.Tensor,
    rows: DeviceRows,
    layer: int,
    scale: float,
    dtype: torch.dtype,
    *,
    alone: bool,
) -> torch.Tensor:
    """Values f32 [T, H, V] of queries [T, H, P] and turned [T, H, D]; latents [T, 1, R] and keys [T, 1, D] join the
    stores. key_up f32 [H, R, P], value_up f32 [H, V, R]. alone: each row of a step has the bits that it has by itself.
    """
    stores = rows.stores[layer]
    _keep(latents, keys, rows, stores, dtype)
    absorbed = by_head(queries, key_up)
    mixed = _step(absorbed, turned, rows, stores, scale, dtype, alone) if rows.is_step else None
    if mixed is None:
        mixed = torch.empty_like(absorbed)
        absorbed, turned = absorbed.to(dtype), turned.to(dtype)
        for sequence, (own, start, cache) in enumerate(rows.parts):
            capacity = cache.layers[layer].capacity
            over_tokens(absorbed[own], turned[own], stores, sequence, capacity, 1, start, None, scale, None, mixed[own])
    return by_head(mixed, value_up)


def by_head(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """x f32 [T, H, K] times each head's own matrix f32 [H, N, K]: f32 [T, H, N]."""
    n_rows, n_heads, depth = x.shape
    n = weights.shape[1]
    x = x if x.stride(2) == 1 else x.contiguous()
    out = torch.empty((n_rows, n_heads, n), dtype=torch.float32, device=x.device)
    with on_device_of(x):
        launch(
            multiply_by_head_kernel, (cdiv(n_rows, _ROWS), n_heads, cdiv(n, _COLUMNS)),
            x, weights, out, n_rows, x.stride(0), x.stride(1), N_HEADS=n_heads, N=n, K=depth, BLOCK_M=_ROWS,
            BLOCK_N=_COLUMNS, BLOCK_K=min(_DEPTH, max(16, next_power_of_2(depth))), num_warps=4, **early(x),
        )  # fmt: skip
    return out


def _keep(
    latents: torch.Tensor, keys: torch.Tensor, rows: DeviceRows, stores: torch.Tensor, dtype: torch.dtype
) -> None:
    rank, dim = latents.shape[-1], keys.shape[-1]
    with on_device_of(latents):
        launch(
            keep_latents_kernel, (len(latents),),
            latents, keys, rows.positions, rows.sequences, stores, RANK=rank, D=dim, DTYPE=TRITON_DTYPES[dtype],
            BLOCK_RANK=next_power_of_2(rank), BLOCK_D=next_power_of_2(dim), num_warps=4, **early(latents),
        )  # fmt: skip


def _step(
    absorbed: torch.Tensor, turned: torch.Tensor, rows: DeviceRows, stores: torch.Tensor, scale: float,
    dtype: torch.dtype, alone: bool,
) -> torch.Tensor:  # fmt: skip
    n_rows, n_heads, rank = absorbed.shape
    dim, shape = turned.shape[-1], step_shape(rank, 1, n_heads, dtype, 1 if alone else n_rows)
    shares = Shares(n_rows, n_heads, rank, shape, None, rows.positions)
    none: Any = None
    with on_device_of(absorbed):
        launch(
            attend_shares_kernel, (shape.n_programs(rows.longest, None, shape.parts * n_rows), shape.parts, n_rows),
            absorbed, none, none, turned, none, none, none, none, rows.positions, stores, shares.mixed, shares.states,
            0, 0, 0, 0.0, 0.0, 0, float(scale), N_HEADS=n_heads, GROUP=n_heads, HEADS=shape.heads, D=rank,
            D_TURNED=dim, N_PAIRS=0, INTERLEAVED=False, Q_NORM=False, K_NORM=False, V_NORM=False, HAS_LIMIT=False,
            HAS_NEW=False, HAS_WINDOW=False, LATENT=True, DTYPE=TRITON_DTYPES[dtype], N_SPLITS=shape.n_splits,
            BLOCK_N=shape.n_keys, BLOCK_D=next_power_of_2(rank), BLOCK_TURNED=next_power_of_2(dim),
            num_warps=shape.warps, **early(absorbed),
        )  # fmt: skip
    return shares.combined(None)[0]
