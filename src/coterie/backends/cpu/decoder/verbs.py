"""The expert path as the decoder calls it: the CPU back end's own verbs."""

from typing import Any

import numpy as np

from coterie.backends import cpu
from coterie.ops import Routing, RouteSpec


def glu(gate: np.ndarray, up: np.ndarray, activation: str) -> np.ndarray:
    return cpu.glu(gate, up, activation)  # type: ignore[no-any-return]


def route(logits: np.ndarray, spec: RouteSpec) -> Routing:
    return Routing(*cpu.route(logits, spec))


def moe(x: np.ndarray, routing: Routing, experts: Any) -> np.ndarray:
    return cpu.moe(x, routing, experts)  # type: ignore[no-any-return]


def to_numpy(x: np.ndarray) -> np.ndarray:
    return x
