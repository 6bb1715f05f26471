"""Which modules of a model get which matrices of a checkpoint: decided before loading, from names and shapes alone."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from coterie.checkpoint import Checkpoint
from coterie.errors import CheckpointError
from coterie.integrations.transformers import routers
from coterie.integrations.transformers.experts import activation_of
from coterie.integrations.transformers.modules import (
    PackedEmbedding,
    PackedExperts,
    PackedLatentUp,
    PackedLinear,
    PackedMatrix,
)
from coterie.integrations.transformers.names import Rename, in_transformers


class Swap:
    """A model on the meta device, and the checkpoint that will fill it."""

    def __init__(self, model: Any, checkpoint: Checkpoint, renames: tuple[Rename, ...], dtype: Any) -> None:
        """`dtype`: in which what is not quantised will be held."""
        self.model, self.checkpoint, self.dtype = model, checkpoint, dtype
        self.stored = {in_transformers(name, renames): name for name in checkpoint.names}

    def run(self) -> None:
        """Swap every module whose matrix is packed; then each tensor of the file must have a place, and be needed."""
        for path, module in list(self.model.named_modules()):
            if "down_proj" in module._parameters:
                self._put(path, self._experts(path, module))
            elif f"{path}.embed_q.weight" in self.stored:
                self._put(path, self._latent_up(path, module))
            elif f"{path}.scales" in self.stored and module._parameters.get("weight") is not None:
                self._matrix(path, module)
        self._tie()
        self._check()

    def _put(self, path: str, module: nn.Module) -> None:
        parent, _, name = path.rpartition(".")
        setattr(self.model.get_submodule(parent), name, module)

    def _read(self, path: str, shape: tuple[int, ...]) -> Any:
        """The matrix at a path of transformers, its format and its shape checked."""
        weight = self.stored.get(f"{path}.weight")
        if weight is None:
            raise CheckpointError(
                f"{self.checkpoint.path}: {path} has no matrix, expected shape {list(shape)}; the checkpoint "
                "is incomplete, or it is not in MLX's layout: `coterie convert` makes that from the original",
                code="missing_tensor",
            )
        stored = self.checkpoint.packed(weight.removesuffix(".weight"), shape[-1])
        if tuple(stored.shape) != shape:
            raise CheckpointError(
                f"{self.checkpoint.path}: tensor {weight} has shape {list(stored.shape)}, config.json implies "
                f"{list(shape)}; config.json and the weights do not belong together",
                code="tensor_shape",
            )
        return stored

    def _matrix(self, path: str, module: Any) -> None:
        stored = self._read(path, tuple(module.weight.shape))
        if isinstance(module, nn.Linear):
            self._put(path, PackedLinear(module, stored, self.dtype))
        elif isinstance(module, nn.Embedding):
            self._put(path, PackedEmbedding(module, stored, self.dtype))
        else:
            routers.pack(module, stored, self.dtype)

    def _experts(self, path: str, module: Any) -> PackedExperts:
        n_experts, hidden, width = module.down_proj.shape
        if module.is_transposed:
            hidden, width = width, hidden
        rows = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}

        def projection(name: str) -> PackedMatrix:
            bias = (n_experts, rows[name][0]) if module.has_bias else None
            return PackedMatrix(self._read(f"{path}.{name}", (n_experts, *rows[name])), self.dtype, bias)

        gate, up, down = map(projection, rows)
        return PackedExperts(gate, up, down, activation_of(module))

    def _latent_up(self, path: str, module: Any) -> PackedLatentUp:
        attention = self.model.get_submodule(path.rpartition(".")[0])
        heads, rank = attention.num_heads, module.in_features
        keys = self._read(f"{path}.embed_q", (heads, rank, attention.qk_nope_head_dim))
        values = self._read(f"{path}.unembed_out", (heads, attention.v_head_dim, rank))
        return PackedLatentUp(PackedMatrix(keys, self.dtype), PackedMatrix(values, self.dtype))

    def _tie(self) -> None:
        """A head that shares the embedding's matrix shares its scales and biases too."""
        tied: dict[str, str] = self.model.all_tied_weights_keys
        for target, source in list(tied.items()):
            embedding = self.model.get_submodule(source.rpartition(".")[0])
            path = target.rpartition(".")[0]
            if not isinstance(embedding, PackedEmbedding) or target in self.stored:
                continue
            head = self.model.get_submodule(path)
            original = self.stored[source].removesuffix(".weight")
            self._put(path, PackedLinear(head, self.checkpoint.packed(original, head.in_features), self.dtype))
            for part in ("scales", "biases"):
                if embedding._parameters[part] is not None:
                    tied[f"{path}.{part}"] = f"{source.removesuffix('.weight')}.{part}"
            # What is tied again later, and left out when the model is saved, is read from here.
            self.model._tied_weights_keys = {**self.model._tied_weights_keys, **tied}

    def _check(self) -> None:
        wanted: Mapping[str, Any] = self.model.state_dict()
        tied = self.model.all_tied_weights_keys
        missing = sorted(name for name in wanted if name not in self.stored and name not in tied)
        if missing:
            raise CheckpointError(
                f"{self.checkpoint.path}: {len(missing)} tensors of {type(self.model).__name__} are missing, such as "
                f"{', '.join(missing[:3])}; the checkpoint is incomplete or its config belongs to another model",
                code="missing_tensor",
            )
        unused = sorted(self.stored[name] for name in self.stored.keys() - wanted.keys())
        if unused:
            raise CheckpointError(
                f"{self.checkpoint.path}: {len(unused)} tensors that {type(self.model).__name__} does not use, such as "
                f"{', '.join(unused[:3])}; its config.json and its weights do not belong together",
                code="unused_tensors",
            )


def freeze(model: Any) -> None:
    """Packed parts get no gradient: loading makes parameters of floats that want one."""
    for module in model.modules():
        if isinstance(module, PackedMatrix):
            for parameter in module._parameters.values():
                if parameter is not None:
                    parameter.requires_grad_(False)


def drop_absent_towers(model: Any, checkpoint: Checkpoint) -> None:
    """Vision and audio of a model whose checkpoint has the text decoder alone, as mlx-lm writes it, are taken out."""
    inner = model.model
    for name in ("vision_tower", "embed_vision", "audio_tower", "embed_audio"):
        if getattr(inner, name, None) is not None and not any(f"{name}." in stored for stored in checkpoint.names):
            setattr(inner, name, None)
