"""`Family`: what a file in `families/` has to say about its models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coterie.checkpoint.names import NameMap
from coterie.models.architecture import Architecture


@dataclass(frozen=True, slots=True)
class Family:
    """A family of models.

    model_types: the names in config.json's `model_type` that belong to it.
    architecture: a raw config.json to the decoder's fields; refuses what is absurd (`ConfigError`) or not done here
    (`UnsupportedError`).
    name_map: a raw config.json to the names that a published, unconverted checkpoint of it has, and their conversion.
    """

    name: str
    model_types: tuple[str, ...]
    architecture: Callable[[Mapping[str, Any]], Architecture]
    name_map: Callable[[Mapping[str, Any]], NameMap]
