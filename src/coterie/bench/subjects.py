"""Where a subject comes from: a checkpoint on disk, or a real model's dimensions with random weights."""

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from coterie import bundled
from coterie.bench.random_model import RandomCheckpoint, weight_bytes
from coterie.bench.real_models import RealModel
from coterie.bench.subject import Subject
from coterie.checkpoint import local_folder, open_checkpoint
from coterie.errors import CapacityError
from coterie.formats import Format
from coterie.models.decoder import Decoder
from coterie.models.description import describe
from coterie.models.families import family_of
from coterie.models.weights import read_weights
from coterie.ops import dispatch
from coterie.runtime.memory import available_memory, physical_memory

_SHARE = 0.7
"""Of the memory that is available, what the weights of everybody together may take."""


def from_disk(path_or_repo: str | Path | None) -> Subject:
    """The model in a folder, or with an id of the hub, or for None the bundled one; errors as in `coterie.load`."""
    folder = bundled.path() if path_or_repo is None else local_folder(path_or_repo)
    with open_checkpoint(folder) as checkpoint:
        family = family_of(checkpoint.config)
        architecture = family.architecture(checkpoint.config)
        weights = read_weights(architecture, checkpoint, family.name_map(checkpoint.config).drops)
        decoder = Decoder(architecture, weights, dispatch.decoder("cpu"))
        return Subject(folder.name, decoder, describe(architecture, checkpoint), checkpoint=folder)


def from_shape(model: RealModel, n_layers: int, fmt: Format, format_name: str) -> Subject:
    """Random weights at a model's dimensions."""
    config = model.config_with(n_layers)
    family = family_of(config)
    architecture = family.architecture(config)
    checkpoint = RandomCheckpoint(architecture, family, config, fmt)
    weights = read_weights(architecture, checkpoint)
    decoder = Decoder(architecture, weights, dispatch.decoder("cpu"))
    title = f"{model.title}, {n_layers} of {model.n_layers} layers, random {format_name} weights"
    return Subject(title, decoder, describe(architecture, checkpoint))


@dataclass(frozen=True, slots=True)
class Room:
    """How many layers of a model are measured: the bytes that all their holders need, and those that are available."""

    n_layers: int
    needed: int
    available: int


def layers_that_fit(
    model: RealModel, fmt: Format, n_holders: int, wanted: int | None, available: int | None = None
) -> Room:
    """As many layers as `n_holders` copies of the weights leave memory for; whole periods, where one fits.

    `wanted` layers are taken instead, if they fit. `CapacityError` where they, or a single layer, do not.
    """
    known = available_memory() if available is None else available
    free = int(min(physical_memory(), 1 << 60)) if known is None else known

    def needed(n_layers: int) -> int:
        config = model.config_with(n_layers)
        family = family_of(config)
        return n_holders * weight_bytes(family.architecture(config), family, config, fmt)

    fitting = bisect_right(range(1, model.n_layers + 1), _SHARE * free, key=needed)
    n_layers = wanted or max(1, fitting - fitting % model.period if fitting >= model.period else fitting)
    if n_layers > fitting:
        raise CapacityError(
            f"{n_layers} layers of {model.title} need {needed(n_layers) / 2**30:.1f} GiB for {n_holders} copies of the "
            f"weights, and {free / 2**30:.1f} GiB are available, of which {_SHARE:.0%} may be taken: {fitting} layers "
            "fit; ask for fewer layers, or for no peers",
            code="bench_memory",
        )
    return Room(n_layers, needed(n_layers), free)
