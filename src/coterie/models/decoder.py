"""One decoder for every family: it reads an `Architecture`, holds the weights, and turns token ids into logits."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from coterie.arrays import Array
from coterie.models.architecture import (
    Architecture,
    Attention,
    LatentAttention,
    Layer,
    LayerInputs,
    Mlp,
    Moe,
    Rope,
    Router,
)
from coterie.models.backend import Backend, Cache
from coterie.models.latent import LatentMatrices, latent_attention, matrices_of
from coterie.models.observer import RoutingObserver
from coterie.models.projections import products
from coterie.models.rope import rotation_table
from coterie.models.weights import bias_of, layer_prefix
from coterie.moe import Experts
from coterie.ops import RouteSpec

Tables = Mapping[Rope, tuple[Array, Array]]
"""cos and sin for the rows of the current pass, by rotary embedding."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Some tokens of one sequence, and the cache that they join."""

    ids: Sequence[int]
    cache: Cache


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one pass knows beside its rows: their rotary tables, and which rows, from which position on, are whose.

    The rows of all segments stand one below the other: (rows, start, cache) for each segment. layer_inputs: what the
    layers read beside the residual stream, [T, n_layers, width].
    """

    tables: Tables
    parts: tuple[tuple[slice, int, Cache], ...]
    observer: RoutingObserver | None
    layer_inputs: Array | None


@dataclass(frozen=True, slots=True)
class _RoutedExperts:
    """An experts branch ready to run: how to route, the router's own norm if it has one, and the experts."""

    spec: RouteSpec
    router_norm: Array | None
    experts: Experts


@dataclass(frozen=True, slots=True)
class _Block:
    """One layer's fields, and its weights by their paths inside the layer."""

    layer: Layer
    weights: Mapping[str, Any]
    routed: _RoutedExperts | None
    latent: LatentMatrices | None


class Decoder:
    """Token ids in, logits out; what lasts from one pass to the next is in the cache that the caller owns."""

    def __init__(self, architecture: Architecture, weights: Mapping[str, Any], backend: Backend) -> None:
        """`weights` are those of `read_weights`, by path, as arrays of the back end's kind."""
        self.architecture = architecture
        self.backend = backend
        self.weights = weights
        self._embedding = weights[architecture.prefix + architecture.embedding]
        self._final_norm = weights[architecture.prefix + architecture.final_norm]
        self._head = self._embedding if architecture.head is None else weights[architecture.head]
        self._blocks = [_block(architecture, index, weights) for index in range(len(architecture.layers))]
        writing = [index for index, layer in enumerate(architecture.layers) if layer.attention.shares is None]
        self._n_writing = writing[-1] + 1
        self._frequencies = {
            rope: np.array(rope.frequencies, np.float32)
            for rope in {layer.attention.rope for layer in architecture.layers}
        }

    def hidden(self, ids: Sequence[int], cache: Cache, observer: RoutingObserver | None = None) -> Array:
        """One pass over `ids`, which join the tokens in `cache`: f32 [T, hidden_size] before the last norm."""
        return self.hidden_of([Segment(ids, cache)], observer)

    def last_hidden(self, ids: Sequence[int], cache: Cache) -> Array:
        """`hidden`, of the last of the `ids` alone: f32 [1, hidden_size].

        Where the last layers read the keys and values of others, the tokens before it end at the first of those layers.
        """
        segment = Segment(ids, cache)
        h, current = self._start([segment], None)
        for index, block in enumerate(self._blocks):
            if index == self._n_writing:
                h, current = self._last_row(h, current)
            h = self._layer(block, h, index, current)
        cache.length += len(ids)
        return h[-1:]

    def hidden_of(self, segments: Sequence[Segment], observer: RoutingObserver | None = None) -> Array:
        """One pass over several sequences at once, which reads each weight once: f32 [sum of T, hidden_size].

        The rows of the segments stand one below the other, without padding. No two segments share a cache.
        An `observer` sees the routing of every layer with experts, and decides what the experts are given.
        """
        h, current = self._start(segments, observer)
        for index, block in enumerate(self._blocks):
            h = self._layer(block, h, index, current)
        for segment in segments:
            segment.cache.length += len(segment.ids)
        return h

    def row_by_row(self) -> "Decoder":
        """This decoder, every row of whose passes has the bits that it would have in a pass of its own.

        That is for decoding steps, in which each sequence has one row; with many rows it is slower.
        """
        twin = copy.copy(self)
        twin.backend = self.backend.row_by_row
        return twin

    def logits(self, hidden: Array) -> np.ndarray:
        """Logits [T, vocab_size] in f32, on the host, of rows that `hidden` returned."""
        backend, architecture = self.backend, self.architecture
        z = backend.linear(backend.rms_norm(hidden, self._final_norm, architecture.norm_eps), self._head)
        if architecture.logit_cap is not None:
            z = backend.softcap(z, architecture.logit_cap)
        return backend.to_numpy(z)  # type: ignore[no-any-return]

    def _start(self, segments: Sequence[Segment], observer: RoutingObserver | None) -> tuple[Array, _Pass]:
        ids = [token_id for segment in segments for token_id in segment.ids]
        h = self.backend.embed(self._embedding, ids) * np.float32(self.architecture.embedding_scale)
        return h, self._pass(segments, observer, self._layer_inputs(ids, h))

    @staticmethod
    def _last_row(h: Array, current: _Pass) -> tuple[Array, _Pass]:
        """What is left of a pass of one sequence when only its last token goes on."""
        ((rows, start, cache),) = current.parts
        tables = {rope: (cos[-1:], sin[-1:]) for rope, (cos, sin) in current.tables.items()}
        inputs = None if current.layer_inputs is None else current.layer_inputs[-1:]
        parts = ((slice(0, 1), start + rows.stop - 1, cache),)
        return h[-1:], _Pass(tables, parts, current.observer, inputs)

    def _pass(self, segments: Sequence[Segment], observer: RoutingObserver | None, layer_inputs: Array | None) -> _Pass:
        ends = np.cumsum([len(segment.ids) for segment in segments]).tolist()
        parts = tuple(
            (slice(end - len(segment.ids), end), segment.cache.length, segment.cache)
            for segment, end in zip(segments, ends, strict=True)
        )
        positions = np.concatenate([start + np.arange(rows.stop - rows.start) for rows, start, _ in parts])
        tables = {
            rope: rotation_table(frequencies, positions, rope.amplitude)
            for rope, frequencies in self._frequencies.items()
        }
        return _Pass(tables, parts, observer, layer_inputs)

    def _layer_inputs(self, ids: Sequence[int], embedded: Array) -> Array | None:
        inputs, backend = self.architecture.layer_inputs, self.backend
        if inputs is None:
            return None
        shape = (len(ids), len(self._blocks), inputs.width)
        projection, norm, embedding = (
            self.weights[self.architecture.prefix + path] for path in (inputs.projection, inputs.norm, inputs.embedding)
        )
        context = backend.linear(embedded, projection) * np.float32(inputs.projection_scale)
        context = backend.rms_norm(context.reshape(shape), norm, self.architecture.norm_eps)
        tokens = backend.embed(embedding, ids) * np.float32(inputs.embedding_scale)
        return (context + tokens.reshape(shape)) * np.float32(inputs.scale)

    def _layer(self, block: _Block, h: Array, index: int, current: _Pass) -> Array:
        layer, inputs = block.layer, self.architecture.layer_inputs
        h = h + self._attention(block, h, index, current)
        norms = {branch.before for branch in (layer.mlp, layer.moe) if branch is not None}
        normed = {path: self._norm(h, block.weights, path) for path in norms}
        branches = []
        if layer.mlp is not None:
            branches.append(self._mlp(layer.mlp, block.weights, normed[layer.mlp.before]))
        if layer.moe is not None:
            branches.append(self._moe(layer.moe, block, h, normed[layer.moe.before], index, current.observer))
        h = h + self._norm(sum(branches[1:], start=branches[0]), block.weights, layer.after_branches)
        if inputs is not None and current.layer_inputs is not None:
            h = h + self._gated_input(inputs, block.weights, h, current.layer_inputs[:, index])
        return h if layer.scalar is None else h * block.weights[layer.scalar]

    def _gated_input(self, inputs: LayerInputs, weights: Mapping[str, Any], h: Array, own: Array) -> Array:
        gated = self.backend.glu(self.backend.linear(h, weights[inputs.gate]), own, self.architecture.activation)
        return self._norm(self.backend.linear(gated, weights[inputs.output]), weights, inputs.after)

    def _attention(self, block: _Block, h: Array, index: int, current: _Pass) -> Array:
        spec, weights = block.layer.attention, block.weights
        x = self._norm(h, weights, spec.modules.before)
        if isinstance(spec, LatentAttention):
            assert block.latent is not None
            parts = [(rows, start, cache.layers[index]) for rows, start, cache in current.parts]
            tables = current.tables[spec.rope]
            mixed = latent_attention(self.backend, spec, weights, block.latent, x, tables, parts)
        else:
            mixed = self._grouped_attention(spec, weights, x, index, current)
        output = products(self.backend, mixed, weights, {spec.modules.output: spec.output_bias})[0]
        return self._norm(output, weights, spec.modules.after)

    def _grouped_attention(
        self, spec: Attention, weights: Mapping[str, Any], x: Array, index: int, current: _Pass
    ) -> Array:
        backend, modules, rope = self.backend, spec.modules, spec.rope
        shared = spec.shares is not None
        wanted = [modules.query, *(() if shared else (modules.key, modules.value))]
        projected = products(backend, x, weights, {path: spec.input_bias for path in wanted if path is not None})
        queries = self._heads(spec, weights, projected[0], modules.query_norm)
        queries = backend.rotary(queries, *current.tables[rope], rope.interleaved)
        new = None if shared else self._keys_and_values(spec, weights, projected[1], projected[-1], current)
        sinks = None if modules.sinks is None else weights[modules.sinks]
        parts = []
        for rows, start, cache in current.parts:
            store = cache.layers[index]
            stored = store.stores if new is None else store.extend(new[0][rows], new[1][rows])
            parts.append(backend.attend(queries[rows], *stored, start, spec.window, spec.scale, sinks))
        return backend.join(parts).reshape(-1, spec.n_heads * spec.head_dim)

    def _keys_and_values(
        self, spec: Attention, weights: Mapping[str, Any], keys: Array, values: Array, current: _Pass
    ) -> tuple[Array, Array]:
        """From projections [T, heads * head_dim] to what the cache stores; they are one where keys serve as values."""
        backend = self.backend
        values = values.reshape(-1, spec.n_kv_heads, spec.head_dim)
        if spec.normalize_values:
            values = backend.rms_norm(values, None, self.architecture.norm_eps)
        keys = self._heads(spec, weights, keys, spec.modules.key_norm)
        keys = backend.rotary(keys, *current.tables[spec.rope], spec.rope.interleaved)
        return keys, values if spec.clip is None else backend.clip(values, spec.clip)

    def _heads(self, spec: Attention, weights: Mapping[str, Any], projected: Array, norm: str | None) -> Array:
        """A projection [T, heads * head_dim] through its norm and limits: [T, heads, head_dim]."""
        shape = (-1, projected.shape[-1] // spec.head_dim, spec.head_dim)
        if spec.norm_span == "head":
            projected = projected.reshape(shape)
        heads = self._norm(projected, weights, norm).reshape(shape)
        return heads if spec.clip is None else self.backend.clip(heads, spec.clip)

    def _mlp(self, spec: Mlp, weights: Mapping[str, Any], x: Array) -> Array:
        backend = self.backend
        gate, up = backend.linears(x, (weights[spec.gate], weights[spec.up]), (None, None))
        activated = backend.glu(gate, up, self.architecture.activation)
        return self._norm(backend.linear(activated, weights[spec.down]), weights, spec.after)

    def _moe(self, spec: Moe, block: _Block, h: Array, x: Array, index: int, observer: RoutingObserver | None) -> Array:
        assert block.routed is not None
        backend, router, routed = self.backend, spec.router, block.routed
        seen = x if routed.router_norm is None else backend.rms_norm(h, routed.router_norm, self.architecture.norm_eps)
        # An error here does not only shift a result, it may choose another expert.
        logits = products(backend, seen, block.weights, {router.module: router.bias}, exact=True)[0]
        routing = backend.route(logits, routed.spec)
        if observer is not None:
            routing = observer.routed(index, logits, routed.spec, routing)
        return self._norm(backend.moe(x, routing, routed.experts), block.weights, spec.after)

    def _norm(self, x: Array, weights: Mapping[str, Any], path: str | None) -> Array:
        return x if path is None else self.backend.rms_norm(x, weights[path], self.architecture.norm_eps)


def _block(architecture: Architecture, index: int, weights: Mapping[str, Any]) -> _Block:
    prefix = layer_prefix(architecture, index)
    inside = {path.removeprefix(prefix): weight for path, weight in weights.items() if path.startswith(prefix)}
    layer = architecture.layers[index]
    routed = None if layer.moe is None else _routed(layer.moe, inside, architecture.activation)
    latent = matrices_of(layer.attention, inside) if isinstance(layer.attention, LatentAttention) else None
    return _Block(layer, inside, routed, latent)


def _routed(moe: Moe, weights: Mapping[str, Any], activation: str) -> _RoutedExperts:
    router = moe.router
    norm = None if router.norm is None else weights[router.norm] * np.float32(router.norm_scale)
    gate_bias, up_bias, down_bias = (
        weights[bias_of(module)] if moe.bias else None for module in (moe.gate, moe.up, moe.down)
    )
    experts = Experts(
        weights[moe.gate],
        weights[moe.up],
        weights[moe.down],
        activation,
        gate_bias=gate_bias,
        up_bias=up_bias,
        down_bias=down_bias,
    )
    return _RoutedExperts(_route_spec(router, weights), norm, experts)


def _route_spec(router: Router, weights: Mapping[str, Any]) -> RouteSpec:
    return RouteSpec(
        top_k=router.top_k,
        scoring=router.scoring,
        renormalize=router.renormalize,
        per_expert_scale=None if router.per_expert_scale is None else weights[router.per_expert_scale],
        selection_bias=None if router.selection_bias is None else weights[router.selection_bias],
        n_groups=router.n_groups,
        top_groups=router.top_groups,
        group_score=router.group_score,
        scaling_factor=router.scaling_factor,
    )
