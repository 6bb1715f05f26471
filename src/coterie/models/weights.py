"""From an architecture and a checkpoint to weights: every one found with its shape, every tensor accounted for."""

import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from coterie.errors import CheckpointError
from coterie.models.architecture import Architecture, Attention, LatentAttention, Layer, LayerInputs, Mlp, Moe

Kind = Literal["matrix", "embedding", "experts", "norm", "vector", "expert biases", "heads"]
"""matrix, embedding, experts, heads and norm: tensor "<path>.weight"; vector and expert biases: tensor "<path>"."""

PLAIN_KINDS: tuple[Kind, ...] = ("norm", "vector", "expert biases")
"""What is never quantised, and held in f32."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One weight that the architecture needs. `path` is the module's path; layer None stands outside of the layers."""

    path: str
    shape: tuple[int, ...]
    kind: Kind
    layer: int | None = None

    @property
    def tensor(self) -> str:
        """The name of the stored tensor."""
        return self.path if self.kind in ("vector", "expert biases") else f"{self.path}.weight"


class Tensors(Protocol):
    """What is asked of a checkpoint."""

    tensors: Mapping[str, np.ndarray]

    def packed(self, path: str, in_dims: int) -> Any:
        """The matrix at a module path: `Packed`, or a plain array where it is not quantised."""
        ...


def slots(architecture: Architecture, names: Container[str] = ()) -> Iterator[Slot]:
    """Every weight of the architecture, in the order in which a forward pass meets them.

    `names` are those of a checkpoint's tensors: where a weight may be stored in two ways they say in which one it is.
    """
    prefix, hidden = architecture.prefix, architecture.hidden_size
    yield Slot(prefix + architecture.embedding, (architecture.vocab_size, hidden), "embedding")
    inputs, n_layers = architecture.layer_inputs, len(architecture.layers)
    if inputs is not None:
        yield Slot(prefix + inputs.embedding, (inputs.vocab_size, n_layers * inputs.width), "embedding")
        yield Slot(prefix + inputs.projection, (n_layers * inputs.width, hidden), "matrix")
        yield Slot(prefix + inputs.norm, (inputs.width,), "norm")
    for index, layer in enumerate(architecture.layers):
        place = layer_prefix(architecture, index)
        attention = layer.attention
        if isinstance(attention, LatentAttention):
            joined = _is_joined(attention, place, names)
            entries = list(_latent_slots(attention, hidden, joined=joined))
        else:
            entries = list(_attention_slots(attention, hidden))
        entries += [*_branch_slots(layer, hidden), *([] if inputs is None else _input_slots(inputs, hidden))]
        # Branches may share a norm, and with it its slot.
        for path, shape, kind in dict.fromkeys(entries):
            yield Slot(place + path, shape, kind, index)
    yield Slot(prefix + architecture.final_norm, (hidden,), "norm")
    if architecture.head is not None:
        yield Slot(architecture.head, (architecture.vocab_size, hidden), "matrix")


def layer_prefix(architecture: Architecture, index: int) -> str:
    """What stands before the module paths of layer `index`."""
    return f"{architecture.prefix}layers.{index}."


def bias_of(module: str) -> str:
    """The path of a linear module's bias."""
    return f"{module}.bias"


_Entry = tuple[str, tuple[int, ...], Kind]


def _branch_slots(layer: Layer, hidden: int) -> Iterator[_Entry]:
    if layer.mlp is not None:
        yield from _mlp_slots(layer.mlp, hidden)
    if layer.moe is not None:
        yield from _moe_slots(layer.moe, hidden)
    yield from _norms(hidden, layer.after_branches)
    if layer.scalar is not None:
        yield layer.scalar, (1,), "vector"


def _attention_slots(attention: Attention, hidden: int) -> Iterator[_Entry]:
    modules = attention.modules
    queries, keys = attention.n_heads * attention.head_dim, attention.n_kv_heads * attention.head_dim
    yield from _norms(hidden, modules.before)
    per_head = attention.norm_span == "head"
    projections = [(modules.query, queries)]
    if attention.shares is None:
        projections += [(modules.key, keys)] if modules.value is None else [(modules.key, keys), (modules.value, keys)]
        yield from _norms(attention.head_dim if per_head else keys, modules.key_norm)
    for path, size in projections:
        yield path, (size, hidden), "matrix"
        if attention.input_bias:
            yield bias_of(path), (size,), "vector"
    yield from _norms(attention.head_dim if per_head else queries, modules.query_norm)
    yield modules.output, (hidden, queries), "matrix"
    if attention.output_bias:
        yield bias_of(modules.output), (hidden,), "vector"
    if modules.sinks is not None:
        yield modules.sinks, (attention.n_heads,), "vector"
    yield from _norms(hidden, modules.after)


def _is_joined(attention: LatentAttention, place: str, names: Container[str]) -> bool:
    modules = attention.modules
    if attention.joined:
        return f"{place}{modules.up}.weight" in names or f"{place}{modules.key_up}.weight" not in names
    return f"{place}{modules.up}.weight" in names and f"{place}{modules.key_up}.weight" not in names


def _latent_slots(attention: LatentAttention, hidden: int, *, joined: bool) -> Iterator[_Entry]:
    modules, rank = attention.modules, attention.rank
    n_heads, plain, value = attention.n_heads, attention.plain_dim, attention.value_dim
    queries = n_heads * (plain + attention.turned_dim)
    yield from _norms(hidden, modules.before)
    into_latents = [(modules.down, rank + attention.turned_dim)]
    if attention.query_rank is None:
        yield modules.query, (queries, hidden), "matrix"
    else:
        into_latents.append((modules.query_down, attention.query_rank))
        yield from _norms(attention.query_rank, modules.query_norm)
        yield modules.query_up, (queries, attention.query_rank), "matrix"
    for path, size in into_latents:
        yield path, (size, hidden), "matrix"
        if attention.bias:
            yield bias_of(path), (size,), "vector"
    yield from _norms(rank, modules.norm)
    if joined:
        yield modules.up, (n_heads * (plain + value), rank), "matrix"
    else:
        yield modules.key_up, (n_heads, rank, plain), "heads"
        yield modules.value_up, (n_heads, value, rank), "heads"
    yield modules.output, (hidden, n_heads * value), "matrix"
    if attention.output_bias:
        yield bias_of(modules.output), (hidden,), "vector"
    yield from _norms(hidden, modules.after)


def _mlp_slots(mlp: Mlp, hidden: int) -> Iterator[_Entry]:
    yield from _norms(hidden, mlp.before, mlp.after)
    yield mlp.gate, (mlp.width, hidden), "matrix"
    yield mlp.up, (mlp.width, hidden), "matrix"
    yield mlp.down, (hidden, mlp.width), "matrix"


def _moe_slots(moe: Moe, hidden: int) -> Iterator[_Entry]:
    router = moe.router
    yield router.module, (moe.n_experts, hidden), "matrix"
    if router.norm is not None:
        yield router.norm, (hidden,), "vector"
    bias = bias_of(router.module) if router.bias else None
    for path in (router.per_expert_scale, router.selection_bias, bias):
        if path is not None:
            yield path, (moe.n_experts,), "vector"
    yield from _norms(hidden, moe.before, moe.after)
    yield moe.gate, (moe.n_experts, moe.width, hidden), "experts"
    yield moe.up, (moe.n_experts, moe.width, hidden), "experts"
    yield moe.down, (moe.n_experts, hidden, moe.width), "experts"
    if moe.bias:
        yield bias_of(moe.gate), (moe.n_experts, moe.width), "expert biases"
        yield bias_of(moe.up), (moe.n_experts, moe.width), "expert biases"
        yield bias_of(moe.down), (moe.n_experts, hidden), "expert biases"


def _input_slots(inputs: LayerInputs, hidden: int) -> Iterator[_Entry]:
    yield inputs.gate, (inputs.width, hidden), "matrix"
    yield inputs.output, (hidden, inputs.width), "matrix"
    yield from _norms(hidden, inputs.after)


def _norms(size: int, *paths: str | None) -> Iterator[_Entry]:
    return ((path, (size,), "norm") for path in paths if path is not None)


def read_weights(architecture: Architecture, checkpoint: Tensors, droppable: Iterable[str] = ()) -> dict[str, Any]:
    """The weight of every slot by its path: matrices as the checkpoint holds them, norms and vectors as f32 arrays.

    `droppable` are patterns of whole names of tensors that are no part of the decoder (a vision tower).
    `CheckpointError` for a weight that is missing or has another shape, and for a tensor that nothing uses: the model
    would not be the one that was trained.
    """
    weights: dict[str, Any] = {}
    used: set[str] = set()
    for slot in slots(architecture, checkpoint.tensors):
        value = stored(slot, checkpoint)
        is_plain = slot.kind in PLAIN_KINDS
        weights[slot.path] = np.ascontiguousarray(value, dtype=np.float32) if is_plain else value
        used.update((slot.tensor, f"{slot.path}.scales", f"{slot.path}.biases"))
    unused = sorted(name for name in set(checkpoint.tensors) - used if not _matches_any(name, droppable))
    if unused:
        raise CheckpointError(
            f"the checkpoint has {len(unused)} tensors that {architecture.family} does not use, such as "
            f"{', '.join(unused[:3])}; its config.json and its weights do not belong together",
            code="unused_tensors",
        )
    return weights


def _matches_any(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def stored(slot: Slot, checkpoint: Tensors) -> Any:
    """The weight as the checkpoint holds it, not read yet; `CheckpointError` if it is missing or of another shape."""
    _check_present(slot, checkpoint)
    if slot.kind in PLAIN_KINDS:
        value = checkpoint.tensors[slot.tensor]
    else:
        value = checkpoint.packed(slot.path, slot.shape[-1])
    _check_shape(slot, value.shape)
    return value


def _check_present(slot: Slot, checkpoint: Tensors) -> None:
    if slot.tensor not in checkpoint.tensors:
        raise CheckpointError(
            f"the tensor {slot.tensor} is missing, expected shape {list(slot.shape)}; the checkpoint is incomplete, or "
            "it is not in MLX's layout: `coterie convert` makes that from the original",
            code="missing_tensor",
        )


def _check_shape(slot: Slot, found: tuple[int, ...]) -> None:
    if tuple(found) != slot.shape:
        raise CheckpointError(
            f"the tensor {slot.tensor} has shape {list(found)}, config.json implies {list(slot.shape)}; "
            "config.json and the weights do not belong together",
            code="tensor_shape",
        )
