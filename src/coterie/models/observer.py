"""What may look on while a decoder routes; without one the decoder does nothing more than before."""

from typing import Protocol

from coterie.arrays import Array
from coterie.ops import RouteSpec, Routing


class RoutingObserver(Protocol):
    """Sees the routing of each layer with experts, and may put another in its place."""

    def routed(self, layer: int, logits: Array, spec: RouteSpec, routing: Routing) -> Routing:
        """Called once a layer and pass, after routing: router logits f32 [T, E], how they were used, and the result.

        The rows are the tokens of the pass in order. What is returned is what the experts are given: `routing` itself
        from one who only looks. All arrays are the back end's own; they must be copied to be kept, and not be changed.
        """
        ...
