"""The expert path as the decoder calls it: the back end's own verbs."""

from typing import Any

import mlx.core as mx
import numpy as np

from coterie.arrays import as_numpy
from coterie.backends import mlx
from coterie.ops import RouteSpec, Routing


def glu(gate: mx.array, up: mx.array, activation: str) -> mx.array:
    return mlx.glu(gate, up, activation)


def route(logits: mx.array, spec: RouteSpec) -> Routing:
    ids, weights = mlx.route(logits, spec)
    return Routing(ids, weights, logits.shape[-1])


def moe(x: mx.array, routing: Routing, experts: Any) -> mx.array:
    return mlx.moe(x, routing, experts)


def to_numpy(x: mx.array) -> np.ndarray:
    return as_numpy(x)
