"""Grouped-query attention for the decoder: from projections to mixed values, over the caches of a pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coterie.arrays import Array
from coterie.models.architecture import Attention
from coterie.models.backend import Backend
from coterie.models.projections import products
from coterie.models.rows import Rows


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """The vectors of an attention block that are no matrices; None where it has none."""

    query_norm: Array | None
    key_norm: Array | None
    sinks: Array | None


def grouped_attention(
    backend: Backend, spec: Attention, weights: Mapping[str, Any], x: Array, rows: Rows, layer: int, eps: float
) -> Array:
    """Mixed values [T, n_heads * head_dim] of rows x, whose keys and values join the caches."""
    modules = spec.modules
    wanted = [modules.query, *(() if spec.shares is not None else (modules.key, modules.value))]
    projections = {path: spec.input_bias for path in wanted if path is not None}
    # Scores grow with the queries and keys, and so do their errors; where a norm keeps both small, rounding x is safe.
    projected = products(backend, x, weights, projections, exact=modules.query_norm is None)
    new = None if spec.shares is not None else (projected[1], projected[-1])
    vectors = HeadWeights(
        *(
            None if path is None else weights[path]
            for path in (modules.query_norm, None if new is None else modules.key_norm, modules.sinks)
        )
    )
    return attend_rows(backend, projected[0], new, spec, vectors, rows, layer, eps)


def attend_rows(
    backend: Backend,
    queries: Array,
    new: tuple[Array, Array] | None,
    spec: Attention,
    vectors: HeadWeights,
    rows: Rows,
    layer: int,
    eps: float,
) -> Array:
    """Attention of projected rows: norms, limits, rotation, a place in the caches, and mixed values [T, heads * dim].

    queries [T, n_heads * head_dim]; new: keys and values [T, n_kv_heads * head_dim], one array where keys serve as
    values, None where the layer reads what another has put into the cache. As in `coterie.models.launches`, a back end
    with a verb of this name is asked.
    """
    own = getattr(backend, "attend_rows", None)
    if own is not None:
        return own(queries, new, spec, vectors, rows, layer, eps)
    tables, interleaved = rows.tables[spec.rope], spec.rope.interleaved
    turned = backend.rotary(_heads(backend, spec, queries, vectors.query_norm, eps), *tables, interleaved)
    made = None if new is None else _keys_and_values(backend, spec, *new, vectors, rows, eps)
    parts = []
    for own_rows, start, cache in rows.parts:
        store = cache.layers[layer]
        stored = store.stores if made is None else store.extend(made[0][own_rows], made[1][own_rows])
        parts.append(backend.attend(turned[own_rows], *stored, start, spec.window, spec.scale, vectors.sinks))
    return backend.join(parts).reshape(-1, spec.n_heads * spec.head_dim)


def _keys_and_values(
    backend: Backend, spec: Attention, keys: Array, values: Array, vectors: HeadWeights, rows: Rows, eps: float
) -> tuple[Array, Array]:
    """From projections [T, heads * head_dim] to what the cache stores; they are one where keys serve as values."""
    values = values.reshape(-1, spec.n_kv_heads, spec.head_dim)
    if spec.normalize_values:
        values = backend.rms_norm(values, None, eps)
    keys = _heads(backend, spec, keys, vectors.key_norm, eps)
    keys = backend.rotary(keys, *rows.tables[spec.rope], spec.rope.interleaved)
    return keys, values if spec.clip is None else backend.clip(values, spec.clip)


def _heads(backend: Backend, spec: Attention, projected: Array, norm: Array | None, eps: float) -> Array:
    """A projection [T, heads * head_dim] through its norm and limits: [T, heads, head_dim]."""
    shape = (-1, projected.shape[-1] // spec.head_dim, spec.head_dim)
    if spec.norm_span == "head":
        projected = projected.reshape(shape)
    if norm is not None:
        projected = backend.rms_norm(projected, norm, eps)
    heads = projected.reshape(shape)
    return heads if spec.clip is None else backend.clip(heads, spec.clip)
