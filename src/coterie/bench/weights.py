"""Random layers and calls: codes drawn directly, scales as they are in trained models, so that set-up takes seconds.

A uniform code has a known spread; scales are chosen so that weights have a standard deviation near 1 / sqrt(K), and
activations keep their size through the layer as they do in a model.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from coterie.arrays import bfloat16
from coterie.bench.shapes import Shape
from coterie.formats import Format, Packed
from coterie.moe import Experts
from coterie.ops.routing import Routing

_TABLE = 4096
"""Different scales in a matrix."""
SCALE_RANGE = (0.6, 1.4)
"""Magnitudes of random scales of an affine format, in steps."""
_E2M1_RMS = 2.93
"""Root mean square of the sixteen E2M1 values."""
N_CHECKED = 2
"""Tokens of a call whose results are compared with float64."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a layer: x f32 [T, H], its routing, and how many different experts that touches."""

    x: np.ndarray
    routing: Routing
    n_touched: int

    @property
    def n_tokens(self) -> int:
        """T."""
        return len(self.x)


def generator(*seed: int) -> np.random.Generator:
    """A fast generator; the same seed gives the same numbers."""
    return np.random.Generator(np.random.SFC64(seed))


def random_bytes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """uint8 of the given shape, every bit random; the product of the shape is a multiple of 8."""
    words = rng.integers(0, np.iinfo(np.uint64).max, math.prod(shape) // 8, np.uint64, endpoint=True)
    return words.view(np.uint8).reshape(shape)


def affine_step(bits: int, n_inputs: int, spread: float | None = None) -> float:
    """The scale that gives weights of uniform codes of `bits` bits a standard deviation of `spread`: 1 / sqrt(n_inputs)
    if not given.
    """
    return (1 / math.sqrt(n_inputs) if spread is None else spread) / math.sqrt((4.0**bits - 1) / 12)


def e8m0_scale(n_inputs: int, spread: float | None = None) -> int:
    """The E8M0 byte whose power of two comes nearest to that, for uniform E2M1 codes."""
    return 127 + round(math.log2((1 / math.sqrt(n_inputs) if spread is None else spread) / _E2M1_RMS))


def affine_scale(
    rng: np.random.Generator, bits: int, n_inputs: int, size: int, spread: float | None = None
) -> np.ndarray:
    """f32 [size] scales of random magnitude and sign, near `affine_step`."""
    magnitude = rng.uniform(*SCALE_RANGE, size).astype(np.float32) * np.float32(affine_step(bits, n_inputs, spread))
    return np.asarray(magnitude * rng.choice(np.array([-1, 1], np.float32), size))


def random_packed(
    rng: np.random.Generator,
    n_experts: int,
    n_rows: int,
    n_inputs: int,
    fmt: Format,
    *,
    spread: float | None = None,
    whole_offsets: bool = False,
) -> Packed:
    """A random stack [E, N, K] with bf16 scales and biases (affine) or E8M0 scales.

    whole_offsets: the bias of an affine group is -2^(bits - 1) scales exactly, the zero of signed codes; otherwise the
    middle of all codes.
    """
    codes = random_bytes(rng, n_experts, n_rows, 4 * fmt.words(n_inputs)).view(np.uint32)
    choice = rng.integers(0, _TABLE, (n_experts, n_rows, fmt.n_groups(n_inputs)), np.uint16)
    if fmt.mode == "affine":
        table = affine_scale(rng, fmt.bits, n_inputs, _TABLE, spread).astype(bfloat16)
        middle = 1 << (fmt.bits - 1) if whole_offsets else ((1 << fmt.bits) - 1) / 2
        offsets = (-table.astype(np.float32) * middle).astype(bfloat16)
        return Packed(codes, table[choice], offsets[choice], fmt.bits, fmt.group_size, fmt.mode)
    table = (e8m0_scale(n_inputs, spread) + rng.integers(-1, 2, _TABLE)).astype(np.uint8)
    return Packed(codes, table[choice], None, fmt.bits, fmt.group_size, fmt.mode)


def random_layer(shape: Shape, fmt: Format, layer: int) -> Experts:
    """One layer of the shape; the same number gives the same layer."""
    rng = generator(layer, shape.hidden, shape.intermediate, fmt.bits)
    inner, outer = shape.intermediate, shape.hidden
    gate, up = (random_packed(rng, shape.n_experts, inner, outer, fmt) for _ in range(2))
    return Experts(gate, up, random_packed(rng, shape.n_experts, outer, inner, fmt), shape.activation)


def weight_bytes(shape: Shape, bits_a_weight: float) -> int:
    """Bytes of one expert: its three matrices at so many bits a weight, scales and biases included."""
    return int(3 * shape.hidden * shape.intermediate * bits_a_weight / 8)


def bits_a_weight(fmt: Format) -> float:
    """Bits of storage for each weight: the code, and the group's scale and bias spread over the group."""
    return fmt.bits + (32 if fmt.mode == "affine" else 8) / fmt.group_size


def n_layers(layer_bytes: int, budget: int, cache: int, most: int = 4) -> int:
    """Layers to rotate over: as many as the budget holds, no more than exceed the cache many times over."""
    return max(1, min(most, budget // layer_bytes, max(1, -(-64 * cache // layer_bytes))))


def checked_tokens(shape: Shape) -> Call:
    """The tokens whose results are compared with float64; they stand in the first call of every length."""
    return next(calls(shape, N_CHECKED, 7))


def calls(shape: Shape, n_tokens: int, seed: int, checked: Call | None = None) -> Iterator[Call]:
    """Endless calls with random activations and random routing.

    With few tokens no call takes an expert that the call before took, so that no cache holds its weights. `checked`
    gives the first call its first and last tokens.
    """
    rng = generator(seed, n_tokens, shape.hidden)
    before = np.zeros(0, np.int64)
    while True:
        scores = rng.random((n_tokens, shape.n_experts))
        if len(before) + shape.top_k <= shape.n_experts and n_tokens == 1:
            scores[:, before] = -1
        ids = np.argpartition(-scores, shape.top_k - 1, -1)[:, : shape.top_k].astype(np.uint32)
        weights = rng.dirichlet(np.full(shape.top_k, 4.0), n_tokens).astype(np.float32)
        x = rng.standard_normal((n_tokens, shape.hidden), np.float32)
        if checked is not None:
            for place, token in checked_places(n_tokens):
                x[place], ids[place], weights[place] = (
                    checked.x[token],
                    checked.routing.ids[token],
                    checked.routing.weights[token],
                )
            checked = None
        before = np.unique(ids)
        yield Call(x, Routing(ids, weights, shape.n_experts), len(before))


def checked_places(n_tokens: int) -> list[tuple[int, int]]:
    """(place in a call of `n_tokens`, checked token) of the tokens that are compared."""
    return [(0, 0)] if n_tokens == 1 else [(0, 0), (n_tokens - 1, 1)]
