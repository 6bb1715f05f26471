"""Multi-head latent attention (DeepSeek-V2, 2024) for the decoder: what is projected, cached and mixed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coterie.arrays import Array
from coterie.formats import Packed
from coterie.models.architecture import LatentAttention
from coterie.models.backend import Backend, Weight
from coterie.models.projections import products
from coterie.models.rows import Rows


@dataclass(frozen=True, slots=True)
class LatentMatrices:
    """The matrices out of the latent, by head: value [H, V, R], key [H, P, R] or, transposed, [H, R, P]."""

    key: Weight
    value: Weight
    key_transposed: bool


def latent_attention(
    backend: Backend,
    spec: LatentAttention,
    weights: Mapping[str, Any],
    matrices: LatentMatrices,
    x: Array,
    rows: Rows,
    layer: int,
) -> Array:
    """Mixed values [T, n_heads * value_dim] of rows x, whose latents and turned keys join the caches."""
    rank, plain, interleaved, tables = spec.rank, spec.plain_dim, spec.rope.interleaved, rows.tables[spec.rope]
    query_path = spec.modules.query if spec.query_rank is None else spec.modules.query_down
    # A latent passes a norm and two more products before it is a key or a value, and errors grow on the way.
    modules = {query_path: spec.bias and spec.query_rank is not None, spec.modules.down: spec.bias}
    query, down = products(backend, x, weights, modules, exact=True)
    queries = _queries(backend, spec, weights, query)
    turned = backend.rotary(queries[:, :, plain:], *tables, interleaved)
    latents = backend.rms_norm(down[:, :rank], weights[spec.modules.norm], spec.norm_eps).reshape(-1, 1, rank)
    keys = backend.rotary(down[:, rank:].reshape(-1, 1, spec.turned_dim), *tables, interleaved)
    mixed = attend_latent_rows(backend, queries[:, :, :plain], turned, latents, keys, matrices, rows, layer, spec.scale)
    return mixed.reshape(-1, spec.n_heads * spec.value_dim)


def attend_latent_rows(
    backend: Backend,
    queries: Array,
    turned: Array,
    latents: Array,
    keys: Array,
    matrices: LatentMatrices,
    rows: Rows,
    layer: int,
    scale: float,
) -> Array:
    """`Backend.attend_latent` of each sequence, whose new latents [T, 1, R] and keys [T, 1, D] join its cache first.

    As in `coterie.models.launches`, a back end with a verb of this name is asked.
    """
    own = getattr(backend, "attend_latent_rows", None)
    if own is not None:
        return own(queries, turned, latents, keys, matrices, rows, layer, scale)
    mixed = []
    for own_rows, start, cache in rows.parts:
        seen = cache.layers[layer].extend(latents[own_rows], keys[own_rows])
        mixed.append(
            backend.attend_latent(
                queries[own_rows],
                turned[own_rows],
                *seen,
                matrices.key,
                matrices.value,
                start,
                scale,
                key_transposed=matrices.key_transposed,
            )
        )
    return backend.join(mixed)


def _queries(backend: Backend, spec: LatentAttention, weights: Mapping[str, Any], query: Array) -> Array:
    """Queries of all heads from what the rows were projected to first: themselves, or a latent of theirs."""
    queries = query
    if spec.query_rank is not None:
        normed = backend.rms_norm(query, weights[spec.modules.query_norm], spec.norm_eps)
        queries = backend.linear(normed, weights[spec.modules.query_up], exact=True)
    return queries.reshape(-1, spec.n_heads, spec.plain_dim + spec.turned_dim)


def matrices_of(spec: LatentAttention, weights: Mapping[str, Any]) -> LatentMatrices:
    """The matrices out of the latent from whichever form they are stored in; nothing is copied."""
    modules = spec.modules
    if modules.up not in weights:
        return LatentMatrices(weights[modules.key_up], weights[modules.value_up], key_transposed=True)
    n_rows = spec.plain_dim + spec.value_dim
    key = _rows_of_heads(weights[modules.up], spec.n_heads, n_rows, slice(0, spec.plain_dim))
    value = _rows_of_heads(weights[modules.up], spec.n_heads, n_rows, slice(spec.plain_dim, n_rows))
    return LatentMatrices(key, value, key_transposed=False)


def _rows_of_heads(weight: Weight, n_heads: int, n_rows: int, rows: slice) -> Weight:
    """The same `rows` of each head's `n_rows` rows of a matrix [n_heads * n_rows, K]: a view [n_heads, n, K]."""

    def view(part: Array) -> Array:
        return part.reshape(n_heads, n_rows, part.shape[-1])[:, rows]

    if not isinstance(weight, Packed):
        return view(weight)
    biases = None if weight.biases is None else view(weight.biases)
    return Packed(view(weight.codes), view(weight.scales), biases, weight.bits, weight.group_size, weight.mode)
