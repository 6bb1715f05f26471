"""The expert path as the decoder calls it: the CPU back end's own verbs."""

from typing import Any

import numpy as np

from coterie.backends import cpu
from coterie.ops import RouteSpec, Routing


def glu(gate: np.ndarray, up: np.ndarray, activation: str) -> np.ndarray:
    return cpu.glu(gate, up, activation)


def route(logits: np.ndarray, spec: RouteSpec) -> Routing:
    ids, weights = cpu.route(logits, spec)
    return Routing(ids, weights, logits.shape[-1])


def moe(x: np.ndarray, routing: Routing, experts: Any) -> np.ndarray:
    return cpu.moe(x, routing, experts.native)


def to_numpy(x: np.ndarray) -> np.ndarray:
    return x
