"""The families that Coterie runs, by `model_type`."""

from collections.abc import Mapping
from typing import Any

from coterie.errors import ConfigError, UnsupportedError
from coterie.models.families import deepseek, gemma4, glm4_moe, gpt_oss, mixtral, olmoe, qwen3_moe
from coterie.models.family import Family

_FAMILIES: tuple[Family, ...] = (
    deepseek.FAMILY_V2,
    deepseek.FAMILY_V3,
    gemma4.FAMILY,
    glm4_moe.FAMILY,
    gpt_oss.FAMILY,
    mixtral.FAMILY,
    olmoe.FAMILY,
    qwen3_moe.FAMILY,
)
FAMILIES: dict[str, Family] = {model_type: family for family in _FAMILIES for model_type in family.model_types}
"""Every model_type that has a family."""


def family_of(config: Mapping[str, Any]) -> Family:
    """The family that a raw config.json asks for; `UnsupportedError` lists the known ones for any other model_type."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise ConfigError(
            f"config.json: model_type is {model_type!r}, expected the name of a model family", code="config_field"
        )
    if model_type not in FAMILIES:
        raise UnsupportedError(
            f"config.json: model_type is {model_type[:60]!r}; Coterie runs {', '.join(sorted(FAMILIES))}",
            code="unsupported_model_type",
        )
    return FAMILIES[model_type]
