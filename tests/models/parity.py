"""How far the decoder's logits are from those of the original implementations, on the tiny models.

The bound of 1e-5 on the relative L2 error leaves room for f32 implementations that sum in different orders (each is
about 1e-6 from the others), and none for a wrong formula: a dropped norm, a window off by one or a swapped expert shows
at 1e-3 or more. Activations of 16 bits may add what they add to a few layers: 2e-4.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from coterie.arrays import as_numpy
from coterie.checkpoint import open_checkpoint
from coterie.models.decoder import Decoder
from coterie.models.families import family_of
from coterie.models.observer import RoutingObserver
from coterie.models.weights import read_weights
from coterie.ops import RouteSpec, Routing, dispatch
from coterie.runtime.cache import KeyValueCache
from models import references, tiny
from models.plain_backend import PlainBackend


@dataclass(frozen=True)
class Mode:
    """A way of computing: a back end with the options of its decoder, and how far its logits may be. flips: the share
    of rows whose experts may be others than those of the exact run, where activations are rounded.
    """

    backend: str
    bound: float
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    flips: float = 0.0


EXACT = Mode("cpu", 1e-5, {"precision": "exact"})
DEFAULT = Mode("cpu", 2e-4, flips=0.01)
MODES = {"CPU, exact": EXACT, "CPU, default": DEFAULT}
MLX = Mode("mlx", 1e-5)
CUDA = Mode("cuda", 2.5e-5, {"precision": "exact"})
"""Activations of two bf16 numbers keep 16 of f32's 24 digits: 2^-17 / sqrt(3) = 4.4e-6 a rounding. A layer rounds what
four matrices read, the tiny models have up to 6, and what layers add is independent: sqrt(25) times that, 2.2e-5.
"""
CUDA_DEFAULT = Mode("cuda", 5e-2, flips=0.1)
"""bf16 keeps 8 bits of every activation; over the few layers of a tiny model that adds up to some hundredths."""
PAGE_MODES = {**MODES, "MLX": MLX, "CUDA, exact": CUDA, "CUDA, default": CUDA_DEFAULT}
"""The modes of docs/parity.md."""
PLAIN = Mode("plain", 1e-5)
"""float64, slow, sharing no kernel with a back end."""

IDS = tiny.token_ids()
WAYS = {
    "whole": [tiny.LENGTH],
    "prompt and single steps": [tiny.LENGTH - 6] + [1] * 6,
    "single steps": [1] * tiny.LENGTH,
    "chunks": [13, 13, 13, 9],
    "chunks and steps in turn": [20, 1, 1, 17, 1, 8],
}
"""How many tokens come in each pass."""

COMPARED = ("whole", "prompt and single steps", "chunks")
"""The ways of every model in every format."""


@functools.cache
def decoder(folder: Path, mode: Mode = EXACT) -> Decoder:
    """The decoder of a checkpoint."""
    checkpoint = open_checkpoint(folder)
    family = family_of(checkpoint.config)
    architecture = family.architecture(checkpoint.config)
    weights = read_weights(architecture, checkpoint, family.name_map(checkpoint.config).drops)
    if mode is PLAIN:
        return Decoder(architecture, weights, PlainBackend())
    backend = dispatch.decoder(mode.backend, **mode.options)
    return Decoder(architecture, backend.adopt(weights), backend)


def logits(made: Decoder, way: str, observer: RoutingObserver | None = None) -> np.ndarray:
    """Logits [T, V] of `IDS`, passed in one of the `WAYS`."""
    chunks = WAYS[way]
    cache = KeyValueCache(made.architecture, chunk=max(chunks), limit=sum(chunks))
    ends = np.cumsum(chunks)
    return np.concatenate(
        [made.logits(made.hidden(IDS[end - n : end], cache, observer)) for n, end in zip(chunks, ends, strict=True)]
    )


class Choices:
    """Remembers the experts of every token, and gives them again.

    Where two experts are nearly tied, activations of 16 bits may choose the other one, which says nothing about the
    arithmetic: those few rows get the choice of the exact run.
    """

    def __init__(self) -> None:
        self.made: list[Routing] = []
        self.again: list[Routing] | None = None
        self.differing = self.rows = 0

    def routed(self, layer: int, logits: Any, spec: RouteSpec, routing: Routing) -> Routing:  # noqa: ARG002
        if self.again is None:
            self.made.append(Routing(routing.ids.copy(), routing.weights.copy(), routing.n_experts))
            return routing
        first, ids, weights = self.again.pop(0), as_numpy(routing.ids), as_numpy(routing.weights)
        other = (np.sort(first.ids, -1) != np.sort(ids, -1)).any(-1, keepdims=True)
        self.differing, self.rows = self.differing + int(other.sum()), self.rows + len(other)
        ids, weights = np.where(other, first.ids, ids), np.where(other, first.weights, weights)
        return Routing(_like(ids, routing.ids), _like(weights, routing.weights), routing.n_experts)


def _like(values: np.ndarray, other: Any) -> Any:
    """The values as an array of another's kind, or a tensor on its device."""
    if isinstance(other, np.ndarray):
        return values
    import torch

    wide = values.astype(np.int64) if values.dtype.kind == "u" else values
    return torch.from_numpy(wide).to(device=other.device, dtype=other.dtype)


def settled_logits(name: str, form: str, mode: Mode, way: str) -> np.ndarray:
    """Logits of a mode that rounds, with the choices of experts settled; at most its share of rows may need it."""
    choices = Choices()
    logits(decoder(tiny.checkpoint(name, form), EXACT), way, choices)
    choices.again = choices.made
    found = logits(decoder(tiny.checkpoint(name, form), mode), way, choices)
    assert choices.differing <= max(1, int(mode.flips * choices.rows))
    return found


@functools.cache
def transformers_logits(name: str, form: str, dtype: str = "float32") -> np.ndarray:
    """What transformers says about a tiny model in a format."""
    return references.transformers_logits(tiny.MODELS[name], tiny.checkpoint(name, form, dtype), IDS)


@functools.cache
def mlx_logits(name: str, form: str) -> np.ndarray:
    """What mlx-lm says about a tiny model in a format."""
    return references.mlx_logits(tiny.checkpoint(name, form), IDS)


REFERENCES = {"transformers": transformers_logits, "mlx-lm": mlx_logits}


def references_for(mode: Mode) -> list[str]:
    """Whom the page compares a mode with; one is enough for all but the CPU."""
    return list(REFERENCES) if mode.backend == "cpu" else ["transformers"]


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The L2 norm of the difference over that of what is expected."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def worst_error(name: str, form: str, reference: str, mode: Mode) -> float:
    """The largest relative error of the compared ways."""
    expected = REFERENCES[reference](name, form)
    if mode.flips:
        return max(relative_error(settled_logits(name, form, mode, way), expected) for way in COMPARED)
    made = decoder(tiny.checkpoint(name, form), mode)
    return max(relative_error(logits(made, way), expected) for way in COMPARED)
