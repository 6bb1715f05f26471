"""A whole decoder with random weights: a checkpoint that was never written, read as any other.

Codes are random bytes, scales keep activations at their size, and the offset of an affine group is a whole number of
steps, so that the same weights can be written for readers of other formats without rounding.
"""

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from coterie.arrays import bfloat16
from coterie.bench.weights import generator, random_packed
from coterie.checkpoint import NameMap
from coterie.formats import Format, Packed
from coterie.models.architecture import Architecture, Attention
from coterie.models.family import Family
from coterie.models.weights import PLAIN_KINDS, Slot, layer_prefix, slots

_SPREAD = 0.1


class RandomCheckpoint:
    """What `read_weights` and `describe` ask of a checkpoint, with weights in `fmt` and the family's own exceptions.

    A matrix whose rows `fmt` does not divide into groups stays bf16, as in a conversion. The same seed gives the same
    weights. Making them takes about a second for each gigabyte.
    """

    def __init__(
        self, architecture: Architecture, family: Family, config: Mapping[str, Any], fmt: Format, seed: int = 0
    ) -> None:
        tensors: dict[str, np.ndarray] = {}
        self._matrices: dict[str, Packed | np.ndarray] = {}
        name_map = family.name_map(config)
        for index, slot in enumerate(slots(architecture)):
            rng = generator(seed, index, prod(slot.shape))
            if slot.kind in PLAIN_KINDS:
                tensors[slot.tensor] = vector_values(rng, slot.shape, level_of(slot, architecture))
                continue
            chosen = format_of(slot.path, slot.shape[-1], fmt, name_map)
            matrix = random_matrix(rng, slot.shape, chosen, spread_of(slot, architecture))
            self._matrices[slot.path] = matrix
            tensors[slot.tensor] = matrix.codes if isinstance(matrix, Packed) else matrix
        self.tensors: Mapping[str, np.ndarray] = tensors

    def packed(self, path: str, _in_dims: int) -> Packed | np.ndarray:
        """The matrix at a module path."""
        return self._matrices[path]


def format_of(path: str, n_inputs: int, fmt: Format, name_map: NameMap) -> Format | None:
    """The format of a layer's matrix, as a conversion would choose it; None where it stays as it is."""
    rule = name_map.override_for(path)
    chosen = fmt if rule is None else Format.resolve(rule.mode or "affine", rule.bits, rule.group_size)
    divides = n_inputs % fmt.group_size == 0 and n_inputs % chosen.group_size == 0
    return chosen if divides and name_map.may_quantize(path) else None


def random_matrix(
    rng: np.random.Generator, shape: tuple[int, ...], fmt: Format | None, spread: float
) -> Packed | np.ndarray:
    """A random matrix or stack whose weights have a standard deviation near `spread`."""
    if fmt is None:
        values = rng.standard_normal(shape, np.float32)
        values *= spread
        return values.astype(bfloat16)
    n_experts = shape[0] if len(shape) == 3 else 1
    packed = random_packed(rng, n_experts, shape[-2], shape[-1], fmt, spread=spread, whole_offsets=True)
    if len(shape) == 3:
        return packed
    biases = None if packed.biases is None else packed.biases[0]
    return Packed(packed.codes[0], packed.scales[0], biases, fmt.bits, fmt.group_size, fmt.mode)


def spread_of(slot: Slot, architecture: Architecture) -> float:
    """The standard deviation of a matrix: what keeps activations at their size; 1 for an embedding that is no head."""
    return 1.0 if slot.kind == "embedding" and architecture.head is not None else float(slot.shape[-1] ** -0.5)


def vector_values(rng: np.random.Generator, shape: tuple[int, ...], level: float) -> np.ndarray:
    """Values around `level`; a single one is it exactly, so that depth does not change the size."""
    values = np.full(shape, level, np.float32)
    if shape != (1,):
        values += np.float32(_SPREAD * max(level, _SPREAD)) * rng.standard_normal(shape, np.float32)
    return values


def level_of(slot: Slot, architecture: Architecture) -> float:
    """1 for norms and scales, 0 for biases; with those of queries and keys, scores have a standard deviation near 1."""
    if slot.kind == "expert biases" or slot.path.endswith(".bias"):
        return 0.0
    if slot.layer is None:
        return 1.0
    attention = architecture.layers[slot.layer].attention
    if not isinstance(attention, Attention):
        return 1.0
    modules = attention.modules
    if slot.path not in [
        f"{layer_prefix(architecture, slot.layer)}{path}" for path in (modules.query_norm, modules.key_norm)
    ]:
        return 1.0
    return float((attention.scale * attention.head_dim**0.5) ** -0.5)


def weight_bytes(architecture: Architecture, family: Family, config: Mapping[str, Any], fmt: Format) -> int:
    """Bytes of the weights that `RandomCheckpoint` would make, without making them."""
    name_map = family.name_map(config)
    total = 0
    for slot in slots(architecture):
        if slot.kind in PLAIN_KINDS:
            total += 4 * prod(slot.shape)
            continue
        n_inputs = slot.shape[-1]
        kind = format_of(slot.path, n_inputs, fmt, name_map)
        per_row = 2 * n_inputs
        if kind is not None:
            per_group = 4 if kind.mode == "affine" else 1
            per_row = 4 * kind.words(n_inputs) + per_group * kind.n_groups(n_inputs)
        total += prod(slot.shape[:-1]) * per_row
    return total
