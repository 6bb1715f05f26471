"""What a checkpoint holds, from its architecture and its files: parameters, formats, bytes read for one token."""

from dataclasses import dataclass
from fractions import Fraction
from math import prod

from coterie.arrays import dtype_name
from coterie.formats import Packed
from coterie.models.architecture import Architecture
from coterie.models.weights import Slot, Tensors, slots, stored


@dataclass(frozen=True, slots=True)
class WeightDescription:
    """One weight. `path` is the module's whole path; layer None stands outside of the layers.

    format: "affine 4 bits, group 64", "mxfp4", ..., or the dtype of what is not quantised. nbytes counts codes, scales
    and biases. nbytes_per_token: what is read of it for one token; n_active_parameters: how much of it computes one.
    """

    path: str
    layer: int | None
    shape: tuple[int, ...]
    format: str
    n_parameters: int
    n_active_parameters: int
    nbytes: int
    nbytes_per_token: int


@dataclass(frozen=True, slots=True)
class ExpertsDescription:
    """The routed experts of `n_layers` equal layers: n_experts each, top_k for a token, `width` hidden units."""

    n_experts: int
    top_k: int
    width: int
    n_layers: int


@dataclass(frozen=True, slots=True)
class Description:
    """A model in figures. For one token top_k experts are read, one row of an embedding, and all of everything else.

    n_active_parameters and nbytes_per_token count weights only, not the cache of keys and values. A tied embedding is
    also the head, so all of it is read. windows: per layer the sliding window in tokens, None for full attention.
    """

    family: str
    n_layers: int
    hidden_size: int
    vocab_size: int
    context_length: int
    windows: tuple[int | None, ...]
    experts: tuple[ExpertsDescription, ...]
    n_parameters: int
    n_active_parameters: int
    nbytes: int
    nbytes_per_token: int
    weights: tuple[WeightDescription, ...]


def describe(architecture: Architecture, checkpoint: Tensors) -> Description:
    """The description of a checkpoint; touches no byte of its weights. `CheckpointError` if one is missing."""
    weights = tuple(_weight(slot, architecture, checkpoint) for slot in slots(architecture, checkpoint.tensors))
    return Description(
        family=architecture.family,
        n_layers=len(architecture.layers),
        hidden_size=architecture.hidden_size,
        vocab_size=architecture.vocab_size,
        context_length=architecture.context_length,
        windows=tuple(layer.attention.window for layer in architecture.layers),
        experts=_experts(architecture),
        n_parameters=sum(weight.n_parameters for weight in weights),
        n_active_parameters=sum(weight.n_active_parameters for weight in weights),
        nbytes=sum(weight.nbytes for weight in weights),
        nbytes_per_token=sum(weight.nbytes_per_token for weight in weights),
        weights=weights,
    )


def _experts(architecture: Architecture) -> tuple[ExpertsDescription, ...]:
    kinds = [
        (layer.moe.n_experts, layer.moe.router.top_k, layer.moe.width) for layer in architecture.layers if layer.moe
    ]
    return tuple(ExpertsDescription(*kind, n_layers=kinds.count(kind)) for kind in dict.fromkeys(kinds))


def _weight(slot: Slot, architecture: Architecture, checkpoint: Tensors) -> WeightDescription:
    value = stored(slot, checkpoint)
    share = _share_of_a_token(slot, architecture)
    n_parameters = prod(slot.shape)
    return WeightDescription(
        path=slot.path,
        layer=slot.layer,
        shape=slot.shape,
        format=str(value.format) if isinstance(value, Packed) else dtype_name(value),
        n_parameters=n_parameters,
        n_active_parameters=int(n_parameters * share),
        nbytes=value.nbytes,
        nbytes_per_token=int(value.nbytes * share),
    )


def _share_of_a_token(slot: Slot, architecture: Architecture) -> Fraction:
    """How much of a weight one token reads."""
    is_head = architecture.head is None and slot.path == architecture.prefix + architecture.embedding
    if slot.kind == "embedding" and not is_head:
        return Fraction(1, slot.shape[0])
    moe = None if slot.layer is None else architecture.layers[slot.layer].moe
    if slot.kind in ("experts", "expert biases") and moe is not None:
        return Fraction(moe.router.top_k, moe.n_experts)
    return Fraction(1)
