"""Who is measured: something that holds a layer's weights and computes it; this library's own modes among them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from coterie.bench import accuracy
from coterie.bench.shapes import Shape
from coterie.bench.weights import Call, bits_a_weight, checked_tokens, n_layers, random_layer, weight_bytes
from coterie.formats import Format, Packed
from coterie.moe import Experts, moe

MODES: dict[str, dict[str, Any]] = {"default": {}, "exact": {"precision": "exact"}, "int8": {"precision": "int8"}}
"""This library's own ways to compute: the name, and the arguments that `moe` is called with."""


class RefusedError(Exception):
    """A peer cannot take part; the message says why. It becomes a line of the report."""


@dataclass(eq=False)
class Case:
    """A shape in a format, and the frame for everybody who computes it.

    `budget`: bytes of weights that one entrant may hold (one layer is always allowed); `cache`: bytes that caches hold.
    """

    shape: Shape
    format_name: str
    fmt: Format
    n_threads: int
    budget: int
    cache: int
    checked: Call = field(init=False)

    def __post_init__(self) -> None:
        self.checked = checked_tokens(self.shape)

    def rotation(self, expert_bytes: int) -> int:
        """How many layers an entrant rotates over whose experts take so many bytes."""
        return n_layers(expert_bytes * self.shape.n_experts, self.budget, self.cache)

    @cached_property
    def layers(self) -> list[Experts]:
        """This library's layers; the first is also what peers that read MLX's format hold."""
        count = self.rotation(weight_bytes(self.shape, bits_a_weight(self.fmt)))
        return [random_layer(self.shape, self.fmt, layer) for layer in range(count)]

    @cached_property
    def wanted(self) -> np.ndarray:
        """The first layer's result for the checked tokens, float64."""
        return self.reference(accuracy.decode_experts(self.layers[0]))

    def reference(self, decode: accuracy.Decode) -> np.ndarray:
        """The same for other weights."""
        return accuracy.reference(self.checked, self.shape.intermediate, self.shape.activation, decode)


def projections(layer: Experts) -> list[Packed]:
    """Gate, up and down of a packed layer."""
    return [part for part in (layer.gate, layer.up, layer.down) if isinstance(part, Packed)]


class Entrant(ABC):
    """`run` is what is timed. `expert_bytes` of codes, scales and biases are counted for each expert touched.

    `most_tokens` and `most_rounds` spare those who are very slow. `note` says what a reader must know to compare.
    """

    label: str
    note: str = ""
    kind: str = "peer"
    expert_bytes: int
    n_layers: int = 1
    most_tokens: int | None = None
    most_rounds: int | None = None

    @abstractmethod
    def prepare(self, call: Call) -> Any:
        """The call as `run` takes it: conversions that are not part of the work."""

    @abstractmethod
    def run(self, layer: int, prepared: Any) -> Any:
        """Compute a layer."""

    @abstractmethod
    def output(self, result: Any) -> np.ndarray:
        """What `run` returned, as an array [T, H]."""

    @abstractmethod
    def wanted(self) -> np.ndarray | None:
        """The exact result of the checked tokens on layer 0, float64; None where that is not cheap."""


class Own(Entrant):
    """This library, in one of its modes."""

    kind = "coterie"

    def __init__(self, case: Case, mode: str) -> None:
        self.label = "coterie" if mode == "default" else f"coterie {mode}"
        self._case, self._arguments = case, MODES[mode]
        self.n_layers = len(case.layers)
        self.expert_bytes = sum(part.nbytes for part in projections(case.layers[0])) // case.shape.n_experts
        # A mode that the machine or the format does not have is refused here, not in the middle of a round.
        self.run(0, case.checked)

    def prepare(self, call: Call) -> Call:
        """The call as it is."""
        return call

    def run(self, layer: int, prepared: Call) -> Any:
        """The public function, its checks included."""
        return moe(prepared.x, prepared.routing, self._case.layers[layer], **self._arguments)

    def output(self, result: Any) -> np.ndarray:
        """The result as it is."""
        return np.asarray(result)

    def wanted(self) -> np.ndarray:
        """The reference of this library's own weights."""
        return self._case.wanted
