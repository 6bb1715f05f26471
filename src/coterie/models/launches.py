"""What a layer does between its matrices, in pieces that a back end may have in one launch.

A back end that has a verb of the same name and arguments is asked; for others the piece is put together from the verbs
of `Backend`. Where launches cost as much as the work in them, as on a GPU, a layer of a decoding step is these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from coterie.arrays import Array
from coterie.models.backend import Backend, Weight
from coterie.models.observer import RoutingObserver
from coterie.moe import Experts
from coterie.ops import RouteSpec

Branch = tuple[Array, Array | None]
"""What a branch of a layer gives, [T, H], and the weight of the norm behind it; None where there is no norm."""


def add_norms(
    backend: Backend,
    h: Array,
    branches: Sequence[Branch],
    after: Array | None,
    scalar: Array | None,
    befores: Sequence[Array],
    eps: float,
) -> tuple[Array, list[Array]]:
    """The residual stream h [T, H] with one or two branches added, and its norms that are read next.

        h' = (h + after( sum of norm(branch) )) * scalar,    [before(h') for each of at most three]

    `after` of None is no norm, `scalar` [1] of None is 1.
    """
    own = getattr(backend, "add_norms", None)
    if own is not None:
        return own(h, branches, after, scalar, befores, eps)  # type: ignore[no-any-return]
    normed = [y if weight is None else backend.rms_norm(y, weight, eps) for y, weight in branches]
    total = sum(normed[1:], start=normed[0])
    h = h + (total if after is None else backend.rms_norm(total, after, eps))
    if scalar is not None:
        h = h * scalar
    return h, [backend.rms_norm(h, weight, eps) for weight in befores]


def mlp(backend: Backend, x: Array, gate: Weight, up: Weight, down: Weight, activation: str) -> Array:
    """down(activation(gate(x)) * up(x)) of x [T, H]: f32 [T, H]."""
    own = getattr(backend, "mlp", None)
    if own is not None:
        return own(x, gate, up, down, activation)
    gate_x, up_x = backend.linears(x, (gate, up), (None, None))
    return backend.linear(backend.glu(gate_x, up_x, activation), down)


@dataclass(frozen=True, slots=True)
class RoutedExperts:
    """An experts branch ready to run: the router's matrix and bias, how to route, and the experts."""

    router: Weight
    bias: Array | None
    spec: RouteSpec
    experts: Experts


def routed_experts(
    backend: Backend, x: Array, seen: Array, routed: RoutedExperts, layer: int, observer: RoutingObserver | None
) -> Array:
    """The weighted sum of the outputs for x [T, H] of the experts that the router chooses by `seen` [T, H]: f32 [T, H].

    An observer sees the routing and may change it; then a back end's verb of its own is not asked.
    """
    return around_experts(backend, None, x, seen, routed, layer, observer)[1]


def around_experts(
    backend: Backend, other: Callable[[], Array] | None, x: Array, seen: Array, routed: RoutedExperts, layer: int,
    observer: RoutingObserver | None,
) -> tuple[Array | None, Array]:  # fmt: skip
    """What the `other` branch returns, if there is one, and `routed_experts`.

    Experts are chosen before the other branch runs, and run behind it: a back end that has `moe_behind`, which is `moe`
    with a routing that is known by then, may fetch their weights meanwhile.
    """
    own: Any = getattr(backend, "routed_experts", None)
    if own is not None and observer is None:
        made = None if other is None else other()
        return made, own(x, seen, routed.router, routed.bias, routed.spec, routed.experts)
    # An error here does not only shift a result, it may choose another expert.
    logits = backend.linears(seen, (routed.router,), (routed.bias,), exact=True)[0]
    routing = backend.route(logits, routed.spec)
    if observer is not None:
        routing = observer.routed(layer, logits, routed.spec, routing)
    if other is None:
        return None, backend.moe(x, routing, routed.experts)
    made = other()
    return made, getattr(backend, "moe_behind", backend.moe)(x, routing, routed.experts)
