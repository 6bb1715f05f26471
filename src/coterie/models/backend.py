"""What the decoder asks of a back end: a handful of verbs on the back end's own arrays.

These are the verbs that every back end has; `coterie.models.launches` says which it may have besides. Activations are
f32 [T, ...] arrays, the tokens of one or more sequences. A weight is a `Packed` or a plain [N, K] array
(f32, f16 or bf16), used where it lies: in the mapped file. Besides the verbs the decoder only uses `+`, `*`, `reshape`
and slices of the arrays.
"""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from coterie.arrays import Array
from coterie.formats import Packed
from coterie.moe import Experts
from coterie.ops import RouteSpec, Routing

Weight = Packed | Array


class Backend(Protocol):
    """The decoder's verbs; `coterie.backends.cpu.decoder` has them for NumPy arrays, `coterie.backends.mlx.decoder` for
    MLX's.
    """

    @property
    def row_by_row(self) -> "Backend":
        """The same verbs, each row of whose results has the bits that it has in a call of its own.

        Otherwise the other rows of a call may change how a sum is ordered, and with it the last bits.
        """
        ...

    def embed(self, weight: Weight, ids: Sequence[int], scale: float = 1.0) -> Array:
        """Rows `ids` of a [V, H] matrix, times scale in f32, as f32 [T, H]; only those rows are dequantised."""
        ...

    def linear(self, x: Array, weight: Weight, *, exact: bool = False) -> Array:
        """x [T, K] times the transpose of weight [N, K]: f32 [T, N]. exact: activations are not rounded, as the back
        end may otherwise do.
        """
        ...

    def linears(
        self, x: Array, weights: Sequence[Weight], biases: Sequence[Array | None], *, exact: bool = False
    ) -> list[Array]:
        """`linear` of the same x [T, K] with several weights [N, K], plus the bias f32 [N] of each that has one: a list
        of f32 [T, N], each with the bits of `linear` and an addition.
        """
        ...

    def rms_norm(self, x: Array, weight: Array | None, eps: float) -> Array:
        """x / sqrt(mean(x^2) + eps) * weight along the last axis; a weight of None is all ones."""
        ...

    def rotary(self, x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
        """Turn the pairs (i, i + n) of x [T, heads, D], or (2i, 2i + 1) where interleaved, by the angles of cos and
        sin [T, n]; may work in place.
        """
        ...

    def attend(
        self,
        queries: Array,
        keys: Array,
        values: Array,
        start: int,
        window: int | None,
        scale: float,
        sinks: Array | None,
    ) -> Array:
        """Causal attention of one sequence's queries [T, Hq, D] at positions start ... start + T - 1: f32 [T, Hq, D].

        keys and values are [Hkv, capacity, D]; position p stands at slot p % capacity, the queries' own included.
        sinks [Hq] are scores that count in the softmax and bring no value.
        """
        ...

    def attend_latent(
        self,
        queries: Array,
        turned: Array,
        latents: Array,
        keys: Array,
        key_up: Weight,
        value_up: Weight,
        start: int,
        scale: float,
        *,
        key_transposed: bool,
    ) -> Array:
        """Causal attention over latents of one sequence, at positions start ... start + T - 1: f32 [T, H, V].

        queries [T, H, P] meet the keys that `key_up` makes of latents [1, capacity, R], turned [T, H, D] the keys
        [1, capacity, D] that all heads share; position p stands at slot p. key_up is [H, P, R], or [H, R, P] where
        key_transposed; value_up [H, V, R].
        """
        ...

    def join(self, parts: Sequence[Array]) -> Array:
        """The rows of `parts` one below the other, in one array."""
        ...

    def clip(self, x: Array, limit: float) -> Array:
        """x between -limit and limit; may work in place."""
        ...

    def glu(self, gate: Array, up: Array, activation: str) -> Array:
        """activation(gate) * up."""
        ...

    def route(self, logits: Array, spec: RouteSpec) -> Routing:
        """Experts and weights [T, k] of router logits [T, E]."""
        ...

    def moe(self, x: Array, routing: Routing, experts: Experts) -> Array:
        """The routed experts' weighted sum for x [T, H]: f32 [T, H]."""
        ...

    def softcap(self, x: Array, cap: float) -> Array:
        """cap * tanh(x / cap); may work in place."""
        ...

    def to_numpy(self, x: Array) -> Any:
        """The values as a NumPy array on the host."""
        ...


@dataclass(frozen=True, slots=True)
class StoreTraits:
    """What a back end makes stores of, if it makes them itself.

    chunk: tokens of a prompt that are best passed together, None for no wish; itemsize: bytes of a number; room: bytes
    that stores may take, None for the machine's memory.
    """

    chunk: int | None = None
    itemsize: int = 4
    room: Callable[[], float] | None = None


MakeStore = Callable[[tuple[int, int, int], Array], Array]
"""make(shape, old): a store [Hkv, capacity, D] of the back end's own that begins with the slots of old [Hkv, n, D]."""


class LayerCache(Protocol):
    """Keys and values of one layer, in the layout that `Backend.attend` reads."""

    def extend(self, keys: Array, values: Array) -> tuple[Array, Array]:
        """Append [T, Hkv, D] keys and values; returns the whole stores, [Hkv, capacity, D] each."""
        ...

    @property
    def stores(self) -> tuple[Array, Array]:
        """Keys and values as `extend` returned them."""
        ...


class Cache(Protocol):
    """The caches of all layers of one sequence."""

    length: int

    def reserve(self, n_tokens: int, make: MakeStore | None = None, layers: Container[int] | None = None) -> bool:
        """Count so many more positions in these layers, all if None, which the back end itself writes into the
        `stores`, made by it where need be, or by NumPy without `make`; whether any of them was.
        """
        ...

    @property
    def layers(self) -> Sequence[LayerCache]:
        """One for each layer; a layer that shares another's keys and values has the other's."""
        ...
