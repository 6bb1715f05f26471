"""Attention from projections to mixed values: two launches, whether for a step or for a part of a prompt."""

from collections.abc import Sequence

import torch

from coterie.backends.cuda.arranged import Arranged, Arrangement, Made, Wishes
from coterie.backends.cuda.decoder import prompt
from coterie.backends.cuda.decoder.elementwise import FEW
from coterie.backends.cuda.decoder.projected import TRITON_DTYPES, Projected
from coterie.backends.cuda.decoder.rows import DeviceRows
from coterie.backends.cuda.decoder.shapes import StepShape, shared_memory, step_shape, tokens_shape
from coterie.backends.cuda.kernels.attend import attend_tokens_kernel
from coterie.backends.cuda.kernels.attend_step import attend_shares_kernel, combine_shares_kernel
from coterie.backends.cuda.kernels.heads import place_heads_kernel
from coterie.backends.cuda.launch import early, launch, on_device_of
from coterie.backends.cuda.sizes import cdiv, next_power_of_2

_HEADS = 8
"""Heads of a token that are made ready together."""

_CHUNK = 8192
"""Numbers of shares that a program adds up at a time."""


def attend_rows(
    projected: Projected, sinks: torch.Tensor | None, rows: DeviceRows, layer: int, wishes: Wishes, *, alone: bool
) -> Arranged:
    """Mixed values [T, heads * D], in f32, or of many rows of a prompt in the stores' dtype; keys and values join the
    stores. alone: each row of a step comes out with the bits that it has by itself.
    """
    place = ("attention", layer)
    if rows.is_step:
        n_together = 1 if alone else len(projected.queries)
        mixed, made = _step(projected, sinks, rows, layer, wishes.at(place), n_together)
    else:
        mixed, made = _tokens(projected, sinks, rows, layer), ()
    return Arranged(len(mixed), mixed.view(len(mixed), -1), made, wishes, place)


def _step(
    projected: Projected, sinks: torch.Tensor | None, rows: DeviceRows, layer: int, wished: Sequence[Arrangement],
    n_together: int,
) -> tuple[torch.Tensor, tuple[Made, ...]]:  # fmt: skip
    spec, n_rows = projected.spec, len(projected.queries)
    group = spec.n_heads // spec.n_kv_heads
    shape = step_shape(spec.head_dim, spec.n_kv_heads, group, projected.dtype, n_together)
    shares = Shares(n_rows, spec.n_heads, spec.head_dim, shape, spec.window, rows.positions)
    beside = spec.n_kv_heads * shape.parts
    with on_device_of(projected.queries):
        launch(
            attend_shares_kernel, (shape.n_programs(rows.longest, spec.window, beside * n_rows), beside, n_rows),
            *projected.pointers, None, projected.query_norm, projected.key_norm, *rows.tables[spec.rope],
            rows.positions, rows.stores[layer], shares.mixed, shares.states, *projected.numbers, spec.window or 0,
            float(spec.scale), GROUP=group, HEADS=shape.heads, D_TURNED=0, HAS_NEW=projected.keys is not None,
            HAS_WINDOW=spec.window is not None, LATENT=False, N_SPLITS=shape.n_splits, BLOCK_N=shape.n_keys,
            BLOCK_TURNED=1, num_warps=shape.warps, **projected.options, **early(projected.queries),
        )  # fmt: skip
    return shares.combined(sinks, wished)


def _tokens(projected: Projected, sinks: torch.Tensor | None, rows: DeviceRows, layer: int) -> torch.Tensor:
    spec, queries = projected.spec, projected.queries
    shape, made = (len(queries), spec.n_heads, spec.head_dim), None
    if not prompt.serves(projected):
        made = torch.empty(shape, dtype=projected.dtype, device=queries.device)
    _place_heads(projected, rows, layer, made)
    out = torch.empty(shape, dtype=torch.float32 if len(queries) <= FEW else projected.dtype, device=queries.device)
    all_rows = (queries if made is None else made, out, *rows.tables[spec.rope])
    for sequence, (own, start, cache) in enumerate(rows.parts):
        own_queries, own_out, cos, sin = all_rows if len(rows.parts) == 1 else (x[own] for x in all_rows)
        if made is None:
            prompt.attend(projected, own_queries, (cos, sin), start, cache.layers[layer].stores, sinks, own_out)
        else:
            over_tokens(
                own_queries, None, rows.stores[layer], sequence, cache.layers[layer].capacity, spec.n_kv_heads, start,
                spec.window, spec.scale, sinks, own_out,
            )  # fmt: skip
    return out


def _place_heads(projected: Projected, rows: DeviceRows, layer: int, made: torch.Tensor | None) -> None:
    """Keys and values join the stores, heads of queries go to `made` [T, heads, D], if it is given."""
    spec, queries = projected.spec, projected.queries
    blocks_of_queries = 0 if made is None else cdiv(spec.n_heads, _HEADS)
    blocks_of_new = 0 if projected.keys is None else 2 * cdiv(spec.n_kv_heads, _HEADS)
    if blocks_of_queries + blocks_of_new == 0:
        return
    options = {**projected.options, "N_HEADS": 0 if made is None else spec.n_heads}
    with on_device_of(queries):
        launch(
            place_heads_kernel, (len(queries), blocks_of_queries + blocks_of_new),
            *projected.pointers, projected.query_norm, projected.key_norm, *rows.tables[spec.rope], rows.positions,
            rows.sequences, rows.stores[layer], queries if made is None else made, *projected.numbers,
            N_KV_HEADS=spec.n_kv_heads, HEADS=_HEADS, num_warps=4, **options, **early(queries),
        )  # fmt: skip


def over_tokens(
    queries: torch.Tensor,
    turned: torch.Tensor | None,
    stores: torch.Tensor,
    sequence: int,
    capacity: int,
    n_kv_heads: int,
    start: int,
    window: int | None,
    scale: float,
    sinks: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """Attention of one sequence's queries [T, Hq, D] from position `start` on, in the dtype of its stores, into `out`
    [T, Hq, D], f32 or of that dtype. Where `turned` [T, Hq, D2] are given too, the stores have latents and turned keys.
    """
    n_tokens, n_heads, dim = queries.shape
    group, d_turned = n_heads // n_kv_heads, 0 if turned is None else turned.shape[-1]
    block, block_turned = next_power_of_2(dim), next_power_of_2(max(d_turned, 1))
    shape = tokens_shape(block + (block_turned if d_turned else 0), queries.dtype, shared_memory(queries.device))
    with on_device_of(queries):
        launch(
            attend_tokens_kernel, (cdiv(n_tokens * group, shape.rows), n_kv_heads),
            queries, turned, stores, sequence, sinks, out, n_tokens, start, window or 0, float(scale),
            N_HEADS=n_heads, GROUP=group, HAS_WINDOW=window is not None, WRAPS=start + n_tokens > capacity,
            HAS_SINKS=sinks is not None, LATENT=turned is not None, D=dim, D_TURNED=d_turned,
            DTYPE=TRITON_DTYPES[queries.dtype], BLOCK_M=shape.rows, BLOCK_N=shape.n_keys,
            BLOCK_D=block, BLOCK_TURNED=block_turned, num_warps=shape.warps, num_stages=shape.stages, **early(queries),
        )  # fmt: skip


class Shares:
    """What the programs of a step leave for each other: mixed values, highest scores, sums of shares."""

    def __init__(
        self, n_rows: int, n_heads: int, dim: int, shape: StepShape, window: int | None, positions: torch.Tensor
    ) -> None:
        device = positions.device
        self.mixed = torch.empty((n_rows, n_heads, shape.n_splits, dim), dtype=torch.float32, device=device)
        self.states = torch.empty((n_rows, n_heads, shape.n_splits, 2), dtype=torch.float32, device=device)
        self._n_keys, self._window, self._positions = shape.n_keys, window, positions

    def combined(
        self, sinks: torch.Tensor | None, wished: Sequence[Arrangement] = ()
    ) -> tuple[torch.Tensor, tuple[Made, ...]]:
        """f32 [rows, heads, D], and in those of the wished orders of which a head's program can make its part."""
        n_rows, n_heads, n_splits, dim = self.mixed.shape
        made = tuple(
            Made.empty(wish, n_rows, n_heads * dim, self.mixed.device)
            for wish in wished
            if not wish.halves and dim % wish.group == 0
        )
        block, splits = next_power_of_2(dim), next_power_of_2(n_splits)
        out = torch.empty((n_rows, n_heads, dim), dtype=torch.float32, device=self.mixed.device)
        with on_device_of(out):
            launch(
                combine_shares_kernel, (n_heads, n_rows),
                self.mixed, self.states, sinks, self._positions, out, tuple(one.values for one in made),
                tuple(one.sums for one in made), n_rows, self._window or 0, N_HEADS=n_heads,
                ARRANGED=tuple(tuple(one.arrangement) for one in made),
                HAS_SINKS=sinks is not None, HAS_WINDOW=self._window is not None, D=dim, N_SPLITS=n_splits,
                SPLITS=splits, CHUNK=max(1, min(splits, _CHUNK // block)), BLOCK_N=self._n_keys, BLOCK_D=block,
                SOON=n_rows == 1, num_warps=4, **early(out, fused=False),
            )  # fmt: skip
        return out, made
