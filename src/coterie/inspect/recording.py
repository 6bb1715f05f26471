"""From a model and a text to a `Trace`, and from a `Trace` back through the model."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from coterie.arrays import Array, as_numpy, from_numpy, kind_of
from coterie.errors import ArgumentError, CapacityError, RequestError, UnsupportedError
from coterie.inspect.trace import LayerTrace, Trace
from coterie.models.description import Description
from coterie.ops import RouteSpec, Routing
from coterie.runtime import Model

MAX_BYTES = 4 << 30
"""Of a trace in memory; a text of half a million tokens through 48 layers with 8 experts each takes 1.5 GiB."""
Progress = Callable[[int, int], None]
"""Called with the tokens that are done and the tokens in all."""


def record(
    model: Model,
    text: str | Sequence[int],
    *,
    name: str | None = None,
    window: int | None = None,
    progress: Progress | None = None,
) -> Trace:
    """Run `text`, or token ids, through the model and keep the routing of every layer.

    A text of more tokens than the model's context is cut into windows of `window` tokens (the context's length if not
    given), each run on its own. `name` is what the trace calls the model. `RequestError` for an empty text,
    `UnsupportedError` for a model without experts, `CapacityError` for a text whose trace would take more than
    `MAX_BYTES`; otherwise the errors of `Model.logits`.
    """
    about = model.describe()
    if not about.experts:
        raise UnsupportedError(
            f"the model ({about.family}) has no layer with experts, and so no routing to look at", code="no_experts"
        )
    window = _checked_window(window, about.context_length)
    ids = _ids_of(model, text)
    _check_size(about, len(ids))
    recorder = _Recorder(len(ids), progress)
    for part in windows(ids, window):
        model.observe(part, recorder)
    return Trace(
        model=name or about.family,
        fingerprint=model.fingerprint,
        n_layers=about.n_layers,
        window=window,
        tokens=np.array(ids, np.uint32),
        texts={token: model.tokenizer.label(token) for token in sorted(set(ids))},
        layers=recorder.layers(),
    )


def replay(model: Model, trace: Trace, *, any_model: bool = False) -> np.ndarray:
    """Logits f32 [T, vocab_size] of the trace's tokens with the routing that was recorded, whatever the routers say.

    With the model that the trace was recorded from these are its own logits, bit for bit. Another model is refused
    (`ArgumentError`) unless `any_model` allows every model whose layers have as many experts: so a quantised model can
    be run with the choices of the original.
    """
    if model.fingerprint != trace.fingerprint and not any_model:
        raise ArgumentError(
            f"the trace was recorded from {trace.model} ({trace.fingerprint[:12]}), and this model is another one "
            f"({model.fingerprint[:12]}); load the first, or allow any_model",
            code="trace_model",
        )
    forced = _Forced(trace)
    logits = [model.logits(part, observer=forced) for part in windows(trace.tokens.tolist(), trace.window)]
    return np.concatenate(logits)


def windows(ids: Sequence[int], window: int) -> Iterator[Sequence[int]]:
    """`ids` in runs of at most `window`."""
    return (ids[begin : begin + window] for begin in range(0, len(ids), window))


def router_entropy(logits: np.ndarray, spec: RouteSpec) -> np.ndarray:
    """The entropy in bits [T] of the router's probabilities; what they are, `LayerTrace` says."""
    z = logits.astype(np.float64)
    if spec.scoring == "softmax":
        scores = np.exp(z - z.max(axis=1, keepdims=True))
    else:
        scores = 1 / (1 + np.exp(np.minimum(-z, 700.0)))
    p = scores / scores.sum(axis=1, keepdims=True)
    return -(p * np.log2(np.where(p > 0, p, 1.0))).sum(axis=1)  # type: ignore[no-any-return]


class _Recorder:
    """A `RoutingObserver` that keeps copies and changes nothing."""

    def __init__(self, n_tokens: int, progress: Progress | None) -> None:
        self._n_tokens, self._progress = n_tokens, progress
        self._kept: dict[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
        self._n_experts: dict[int, int] = {}

    def routed(self, layer: int, logits: Array, spec: RouteSpec, routing: Routing) -> Routing:
        z = as_numpy(logits)
        ids = np.array(as_numpy(routing.ids), np.uint32)
        weights = np.array(as_numpy(routing.weights), np.float32)
        entropy = router_entropy(z, spec).astype(np.float32)
        self._kept.setdefault(layer, []).append((ids, weights, entropy))
        self._n_experts[layer] = int(z.shape[1])
        if self._progress is not None and layer == next(iter(self._kept)):
            self._progress(sum(len(ids) for ids, _, _ in self._kept[layer]), self._n_tokens)
        return routing

    def layers(self) -> tuple[LayerTrace, ...]:
        return tuple(
            LayerTrace(layer, self._n_experts[layer], *(np.concatenate(parts) for parts in zip(*runs, strict=True)))
            for layer, runs in sorted(self._kept.items())
        )


class _Forced:
    """A `RoutingObserver` that hands out the recorded routing, run after run."""

    def __init__(self, trace: Trace) -> None:
        self._layers = {layer.layer: layer for layer in trace.layers}
        self._done = dict.fromkeys(self._layers, 0)

    def routed(self, layer: int, logits: Array, spec: RouteSpec, routing: Routing) -> Routing:
        del routing  # what this pass's router says does not count
        recorded = self._layers.get(layer)
        found = (int(logits.shape[1]), spec.top_k)
        expected = None if recorded is None else (recorded.n_experts, recorded.top_k)
        if recorded is None or found != expected:
            raise ArgumentError(
                f"layer {layer} of the model has {found[0]} experts, {found[1]} for a token, and the trace has "
                f"{expected or 'no such layer'}; load the model that it was recorded from",
                code="trace_model",
            )
        begin, end = self._done[layer], self._done[layer] + int(logits.shape[0])
        self._done[layer] = end
        kind = kind_of(logits)
        ids, weights = (from_numpy(part[begin:end], kind) for part in (recorded.ids, recorded.weights))
        return Routing(ids, weights, recorded.n_experts)


def _check_size(about: Description, n_tokens: int) -> None:
    nbytes = n_tokens * sum(experts.n_layers * (8 * experts.top_k + 4) for experts in about.experts)
    if nbytes > MAX_BYTES:
        raise CapacityError(
            f"the routing of {n_tokens:,} tokens takes {nbytes / 2**30:.1f} GiB, expected at most "
            f"{MAX_BYTES / 2**30:g} GiB; take a part of the text",
            code="trace_size",
        )


def _checked_window(window: int | None, context_length: int) -> int:
    if window is None:
        return context_length
    if not 1 <= window <= context_length:
        raise RequestError(
            f"window is {window}, expected 1 to {context_length}, the model's context length", code="request_window"
        )
    return window


def _ids_of(model: Model, text: str | Sequence[int]) -> list[int]:
    ids = model.tokenizer.encode(text) if isinstance(text, str) else list(text)
    if not text or not ids:
        raise RequestError("the text is empty, expected at least one token", code="request_empty")
    return ids
