"""Whole decoders with random weights, made on the device; what makes their numbers is said in
`coterie.bench.random_model`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from coterie import bundled
from coterie.backends.cuda.device import within_memory
from coterie.bench.cuda.layers import Maker
from coterie.bench.random_model import format_of, level_of, spread_of, vector_values
from coterie.bench.real_models import RealModel
from coterie.bench.weights import generator
from coterie.checkpoint import local_folder, open_checkpoint
from coterie.formats import Format, Packed
from coterie.models.architecture import Architecture
from coterie.models.decoder import Decoder
from coterie.models.description import Description, describe
from coterie.models.families import family_of
from coterie.models.family import Family
from coterie.models.weights import PLAIN_KINDS, read_weights, slots
from coterie.ops import dispatch


@dataclass(frozen=True, slots=True)
class DeviceSubject:
    """A decoder on the device; `title` names it in the report."""

    title: str
    decoder: Decoder
    description: Description


class DeviceCheckpoint:
    """What `describe` asks of a checkpoint; `weights` by path are what the decoder is made of. None was on the host."""

    def __init__(
        self, architecture: Architecture, family: Family, config: Mapping[str, Any], fmt: Format, maker: Maker
    ) -> None:
        self.weights = random_weights(architecture, family, config, fmt, maker)
        self.tensors: Mapping[str, Any] = {
            slot.tensor: weight.codes if isinstance(weight := self.weights[slot.path], Packed) else weight
            for slot in slots(architecture)
        }

    def packed(self, path: str, _in_dims: int) -> Any:
        """The matrix at a module path."""
        return self.weights[path]


@within_memory
def random_weights(
    architecture: Architecture, family: Family, config: Mapping[str, Any], fmt: Format, maker: Maker
) -> dict[str, Any]:
    """The weight of every slot by its path."""
    name_map = family.name_map(config)
    weights: dict[str, Any] = {}
    for index, slot in enumerate(slots(architecture)):
        if slot.kind in PLAIN_KINDS:
            values = vector_values(generator(index, prod(slot.shape)), slot.shape, level_of(slot, architecture))
            weights[slot.path] = torch.from_numpy(values).to(maker.place)
            continue
        chosen = format_of(slot.path, slot.shape[-1], fmt, name_map)
        weights[slot.path] = maker.matrix(slot.shape, chosen, spread_of(slot, architecture))
    return weights


def from_shape(model: RealModel, n_layers: int, fmt: Format, format_name: str) -> DeviceSubject:
    """Random weights at a model's dimensions."""
    config = model.config_with(n_layers)
    family = family_of(config)
    architecture = family.architecture(config)
    backend = dispatch.decoder("cuda")
    checkpoint = DeviceCheckpoint(architecture, family, config, fmt, Maker(backend.device))
    decoder = Decoder(architecture, checkpoint.weights, backend)
    title = f"{model.title}, {n_layers} of {model.n_layers} layers, random {format_name} weights"
    return DeviceSubject(title, decoder, describe(architecture, checkpoint))


def from_disk(path_or_repo: str | Path | None) -> DeviceSubject:
    """The model in a folder, or with an id of the hub, or for None the bundled one; errors as in `coterie.load`."""
    folder = bundled.path() if path_or_repo is None else local_folder(path_or_repo)
    with open_checkpoint(folder) as checkpoint:
        family = family_of(checkpoint.config)
        architecture = family.architecture(checkpoint.config)
        backend = dispatch.decoder("cuda")
        weights = read_weights(architecture, checkpoint, family.name_map(checkpoint.config).drops)
        decoder = Decoder(architecture, backend.adopt(weights), backend)
        return DeviceSubject(folder.name, decoder, describe(architecture, checkpoint))
