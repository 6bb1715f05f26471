"""One decoder for every family: it reads an `Architecture`, holds the weights, and turns token ids into logits."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from coterie.arrays import Array
from coterie.models.architecture import Architecture, LatentAttention, Layer, LayerInputs, Moe, Router
from coterie.models.backend import Backend, Cache, StoreTraits
from coterie.models.grouped import grouped_attention
from coterie.models.latent import LatentMatrices, latent_attention, matrices_of
from coterie.models.launches import Branch, RoutedExperts, add_norms, around_experts, mlp
from coterie.models.observer import RoutingObserver
from coterie.models.projections import products
from coterie.models.rows import Rows, rows_of
from coterie.models.steps import Draw, Steps
from coterie.models.weights import bias_of, layer_prefix
from coterie.moe import Experts
from coterie.ops import RouteSpec


@dataclass(frozen=True, slots=True)
class Segment:
    """Some tokens of one sequence, and the cache that they join."""

    ids: Sequence[int]
    cache: Cache


@dataclass(frozen=True, slots=True)
class _Pass:
    """What one pass knows beside its activations: its rows, who looks on, and what the layers read beside the residual
    stream, [T, n_layers, width].
    """

    rows: Rows
    observer: RoutingObserver | None
    layer_inputs: Array | None

    def last(self) -> "_Pass":
        """What is left of a pass of one sequence when only its last token goes on."""
        inputs = None if self.layer_inputs is None else self.layer_inputs[-1:]
        return _Pass(self.rows.last(), self.observer, inputs)


@dataclass(frozen=True, slots=True)
class _Block:
    """One layer's fields, its weights by their paths inside the layer, and the norms that its branches and its router
    read, by path.
    """

    layer: Layer
    weights: Mapping[str, Any]
    befores: Mapping[str, Array]
    routed: RoutedExperts | None
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
        h, x, current = self._start(self._rows([Segment(ids, cache)]), None)
        for index in range(len(self._blocks)):
            if index == self._n_writing:
                h, x, current = h[-1:], x[-1:], current.last()
            h, x = self._layer(index, h, x, current)
        cache.length += len(ids)
        return h[-1:]

    def hidden_of(self, segments: Sequence[Segment], observer: RoutingObserver | None = None) -> Array:
        """One pass over several sequences at once, which reads each weight once: f32 [sum of T, hidden_size].

        The rows of the segments stand one below the other, without padding. No two segments share a cache.
        An `observer` sees the routing of every layer with experts, and decides what the experts are given.
        """
        h, x, current = self._start(self._rows(segments), observer)
        for index in range(len(self._blocks)):
            h, x = self._layer(index, h, x, current)
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

    @property
    def store_traits(self) -> StoreTraits:
        """What the back end makes of caches."""
        traits: StoreTraits = getattr(self.backend, "store_traits", StoreTraits())
        return traits

    def logits(self, hidden: Array) -> np.ndarray:
        """Logits [T, vocab_size] in f32, on the host, of rows that `hidden` returned."""
        return self.backend.to_numpy(self._logits(hidden))  # type: ignore[no-any-return]

    def steps(self, caches: Sequence[Cache]) -> Steps:
        """Steps of the sequences in these caches, no two of which are one."""
        make = getattr(self.backend, "steps", None)
        if make is not None:
            return make(self._logits_of, caches, self._frequencies)  # type: ignore[no-any-return]
        return _Passes(self, caches)

    def _logits_of(self, rows: Rows) -> Array:
        """Logits [T, vocab_size] of the back end's own, of a pass over these rows."""
        h, x, current = self._start(rows, None)
        for index in range(len(self._blocks)):
            h, x = self._layer(index, h, x, current)
        return self._logits(h)

    def _logits(self, hidden: Array) -> Array:
        backend, architecture = self.backend, self.architecture
        z = backend.linear(backend.rms_norm(hidden, self._final_norm, architecture.norm_eps), self._head)
        return z if architecture.logit_cap is None else backend.softcap(z, architecture.logit_cap)

    def _rows(self, segments: Sequence[Segment]) -> Rows:
        return rows_of(self.backend, [(segment.ids, segment.cache) for segment in segments], self._frequencies)

    def _start(self, rows: Rows, observer: RoutingObserver | None) -> tuple[Array, Array, _Pass]:
        """The residual stream at the first layer, what that layer's attention reads, and the pass."""
        backend = self.backend
        h = backend.embed(self._embedding, rows.ids, self.architecture.embedding_scale)
        x = backend.rms_norm(h, self._before(0), self.architecture.norm_eps)
        return h, x, _Pass(rows, observer, self._layer_inputs(rows.ids, h))

    def _layer_inputs(self, ids: Any, embedded: Array) -> Array | None:
        inputs, backend = self.architecture.layer_inputs, self.backend
        if inputs is None:
            return None
        shape = (len(embedded), len(self._blocks), inputs.width)
        projection, norm, embedding = (
            self.weights[self.architecture.prefix + path] for path in (inputs.projection, inputs.norm, inputs.embedding)
        )
        context = backend.linear(embedded, projection) * np.float32(inputs.projection_scale)
        context = backend.rms_norm(context.reshape(shape), norm, self.architecture.norm_eps)
        tokens = backend.embed(embedding, ids, inputs.embedding_scale)
        return (context + tokens.reshape(shape)) * np.float32(inputs.scale)

    def _before(self, index: int) -> Array:
        """The norm in front of a layer's attention."""
        block = self._blocks[index]
        return block.weights[block.layer.attention.modules.before]

    def _layer(self, index: int, h: Array, x: Array, current: _Pass) -> tuple[Array, Array]:
        """The residual stream h behind the layer, and what the attention of the next reads; x is what this one's does.

        Behind the last layer there is no next, and x stays what it is.
        """
        block, inputs, eps = self._blocks[index], self.architecture.layer_inputs, self.architecture.norm_eps
        layer, weights, backend = block.layer, block.weights, self.backend
        scalar, after = (_optional(weights, path) for path in (layer.scalar, layer.after_branches))
        following = [self._before(index + 1)] if index + 1 < len(self._blocks) else []
        mixed = (self._attention(index, x, current), _optional(weights, layer.attention.modules.after))
        h, normed = add_norms(backend, h, [mixed], None, None, list(block.befores.values()), eps)
        branches = self._branches(index, h, dict(zip(block.befores, normed, strict=True)), current.observer)
        if inputs is not None and current.layer_inputs is not None:
            h, _ = add_norms(backend, h, branches, after, None, [], eps)
            branches = [self._gated_input(inputs, weights, h, current.layer_inputs[:, index])]
            after = None
        h, normed = add_norms(backend, h, branches, after, scalar, following, eps)
        return h, normed[0] if normed else x

    def _branches(
        self, index: int, h: Array, normed: Mapping[str, Array], observer: RoutingObserver | None
    ) -> list[Branch]:
        """The outputs of the dense and of the experts branch; `normed` are norms of h by their paths."""
        block = self._blocks[index]
        weights, dense, moe = block.weights, block.layer.mlp, block.layer.moe
        dense_branch: Callable[[], Array] | None = None
        if dense is not None:
            x = h if dense.before is None else normed[dense.before]
            matrices = (weights[dense.gate], weights[dense.up], weights[dense.down])
            dense_branch = partial(mlp, self.backend, x, *matrices, self.architecture.activation)
        made, experts = None, None
        if moe is not None:
            assert block.routed is not None
            x, seen = (normed[path] for path in (moe.before, moe.router.norm or moe.before))
            made, experts = around_experts(self.backend, dense_branch, x, seen, block.routed, index, observer)
        elif dense_branch is not None:
            made = dense_branch()
        return [
            (found, _optional(weights, branch.after))
            for found, branch in ((made, dense), (experts, moe))
            if found is not None and branch is not None
        ]

    def _gated_input(self, inputs: LayerInputs, weights: Mapping[str, Any], h: Array, own: Array) -> Branch:
        gated = self.backend.glu(self.backend.linear(h, weights[inputs.gate]), own, self.architecture.activation)
        return self.backend.linear(gated, weights[inputs.output]), weights[inputs.after]

    def _attention(self, index: int, x: Array, current: _Pass) -> Array:
        block, rows = self._blocks[index], current.rows
        spec, weights = block.layer.attention, block.weights
        if isinstance(spec, LatentAttention):
            assert block.latent is not None
            mixed = latent_attention(self.backend, spec, weights, block.latent, x, rows, index)
        else:
            mixed = grouped_attention(self.backend, spec, weights, x, rows, index, self.architecture.norm_eps)
        return products(self.backend, mixed, weights, {spec.modules.output: spec.output_bias})[0]


@dataclass(frozen=True, slots=True)
class _Passes:
    """`Steps`, each of which is a pass like any other."""

    decoder: Decoder
    caches: Sequence[Cache]

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        segments = [Segment([token_id], cache) for token_id, cache in zip(ids, self.caches, strict=True)]
        return self.decoder.logits(self.decoder.hidden_of(segments))

    def tokens(self, ids: Sequence[int], draws: Sequence[Draw]) -> None:  # noqa: ARG002
        return None

    def close(self) -> None:
        pass


def _optional(weights: Mapping[str, Any], path: str | None) -> Any:
    """The weight at a path, None for a module that the family does not have."""
    return None if path is None else weights[path]


def _block(architecture: Architecture, index: int, weights: Mapping[str, Any]) -> _Block:
    prefix = layer_prefix(architecture, index)
    inside = {path.removeprefix(prefix): weight for path, weight in weights.items() if path.startswith(prefix)}
    layer = architecture.layers[index]
    routed = None if layer.moe is None else _routed(layer.moe, inside, architecture.activation)
    latent = matrices_of(layer.attention, inside) if isinstance(layer.attention, LatentAttention) else None
    return _Block(layer, inside, _befores(layer, inside), routed, latent)


def _befores(layer: Layer, weights: Mapping[str, Any]) -> dict[str, Array]:
    branches = [branch.before for branch in (layer.mlp, layer.moe) if branch is not None]
    found = {path: weights[path] for path in branches if path is not None}
    router = None if layer.moe is None else layer.moe.router
    if router is not None and router.norm is not None:
        found[router.norm] = weights[router.norm] * np.float32(router.norm_scale)
    return found


def _routed(moe: Moe, weights: Mapping[str, Any], activation: str) -> RoutedExperts:
    router = moe.router
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
    bias = weights[bias_of(router.module)] if router.bias else None
    return RoutedExperts(weights[router.module], bias, _route_spec(router, weights), experts)


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
