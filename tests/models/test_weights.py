"""Weights: every one found with its shape, every tensor accounted for, matrices left as they are stored."""

from typing import Any

import numpy as np
import pytest

from coterie.checkpoint import Checkpoint, open_checkpoint
from coterie.errors import CheckpointError
from coterie.formats import Packed
from coterie.models.architecture import Architecture
from coterie.models.families import family_of
from coterie.models.weights import PLAIN_KINDS, read_weights, slots
from models import tiny


class Altered:
    """A checkpoint with tensors taken away, added or replaced."""

    def __init__(self, checkpoint: Checkpoint, without: str = "", **added: np.ndarray) -> None:
        self._checkpoint = checkpoint
        self._added = added
        self.tensors: dict[str, Any] = {name: value for name, value in checkpoint.tensors.items() if name != without}
        self.tensors.update(added)

    def packed(self, path: str, in_dims: int) -> Any:
        """As the checkpoint has it, unless it was replaced."""
        return (
            self._added.get(f"{path}.weight", None)
            if f"{path}.weight" in self._added
            else self._checkpoint.packed(path, in_dims)
        )


def opened(name: str, form: str = "4 bits g64") -> tuple[Checkpoint, Architecture]:
    checkpoint = open_checkpoint(tiny.checkpoint(name, form), scan=False)
    return checkpoint, family_of(checkpoint.config).architecture(checkpoint.config)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_every_weight_has_the_shape_of_its_slot(name: str) -> None:
    checkpoint, architecture = opened(name)
    weights = read_weights(architecture, checkpoint)
    name_map = family_of(checkpoint.config).name_map(checkpoint.config)
    assert list(weights) == [slot.path for slot in slots(architecture)]
    for slot in slots(architecture):
        weight = weights[slot.path]
        assert tuple(weight.shape) == slot.shape
        if slot.kind in PLAIN_KINDS:
            assert weight.dtype == np.float32
        elif name_map.may_quantize(slot.path):
            assert isinstance(weight, Packed)


def test_packed_weights_stay_in_the_mapped_file() -> None:
    checkpoint, architecture = opened("qwen3_moe")
    weights = read_weights(architecture, checkpoint)
    packed = weights["model.layers.0.mlp.switch_mlp.down_proj"]
    assert not packed.codes.flags.owndata
    assert not packed.codes.flags.writeable


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4", "gemma4_per_layer", "deepseek_v2", "deepseek_v3"])
def test_every_missing_weight_is_named(name: str) -> None:
    checkpoint, architecture = opened(name)
    for slot in slots(architecture):
        with pytest.raises(CheckpointError) as refused:
            read_weights(architecture, Altered(checkpoint, without=slot.tensor))
        assert refused.value.code == "missing_tensor"
        assert slot.tensor in str(refused.value)


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4", "gemma4_per_layer", "deepseek_v2", "deepseek_v3"])
def test_every_weight_of_another_shape_is_named(name: str) -> None:
    checkpoint, architecture = opened(name)
    for slot in slots(architecture):
        wrong = np.zeros((slot.shape[0] + 1, *slot.shape[1:]), np.float32)
        with pytest.raises(CheckpointError) as refused:
            read_weights(architecture, Altered(checkpoint, **{slot.tensor: wrong}))
        assert refused.value.code == "tensor_shape"
        assert slot.tensor in str(refused.value)


def test_a_tensor_that_nothing_uses_is_refused_unless_the_family_leaves_it_out() -> None:
    checkpoint, architecture = opened("gemma4")
    drops = family_of(checkpoint.config).name_map(checkpoint.config).drops
    extra = np.zeros(3, np.float32)
    tower = Altered(checkpoint, **{"vision_tower.encoder.weight": extra})
    assert read_weights(architecture, tower, drops).keys() == read_weights(architecture, checkpoint).keys()
    for name in ("language_model.lm_head.weight", "language_model.model.layers.0.mlp.gate_proj.bias", "stray"):
        with pytest.raises(CheckpointError) as refused:
            read_weights(architecture, Altered(checkpoint, **{name: extra}), drops)
        assert refused.value.code == "unused_tensors"
        assert name in str(refused.value)
