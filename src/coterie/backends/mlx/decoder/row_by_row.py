"""The decoder's verbs with a promise: a row comes out with the bits that it has in a call of its own.

MLX chooses a kernel by the number of rows, so each row gets a call of its own where rows meet matrices.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from coterie.backends.mlx import decoder
from coterie.backends.mlx.decoder.matrices import biased
from coterie.formats import Packed
from coterie.ops import Routing


def __getattr__(name: str) -> Any:
    """Every other verb treats rows one by one in any case."""
    return getattr(decoder, name)


def linear(x: mx.array, weight: Packed | mx.array, *, exact: bool = False) -> mx.array:
    return decoder.join([decoder.linear(x[row : row + 1], weight, exact=exact) for row in range(len(x))])


def linears(
    x: mx.array, weights: Sequence[Packed | mx.array], biases: Sequence[mx.array | None], *, exact: bool = False
) -> list[mx.array]:
    return biased([linear(x, weight, exact=exact) for weight in weights], biases)


def moe(x: mx.array, routing: Routing, experts: Any) -> mx.array:
    parts = []
    for row in range(len(x)):
        own = Routing(routing.ids[row : row + 1], routing.weights[row : row + 1], routing.n_experts)
        parts.append(decoder.moe(x[row : row + 1], own, experts))
    return decoder.join(parts)
