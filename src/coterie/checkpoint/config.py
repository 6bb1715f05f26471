"""config.json: read strictly, with nothing in it executed, and the parts on which the two dialects differ.

transformers 5 writes `rope_parameters` (flat, or one object for each kind of layer), `per_layer_config`,
`num_local_experts` and `dtype`; published checkpoints of the 4.x era and MLX's own have `rope_theta` with
`rope_scaling`, one key for each exception, `num_experts` and `torch_dtype`. Renamed keys are read with
`Fields.integer("num_experts", "num_local_experts")`; the reshaped ones with the functions below.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.checkpoint.fields import Fields
from coterie.checkpoint.files import show
from coterie.checkpoint.folder import has_member, member
from coterie.checkpoint.quantization import rules
from coterie.checkpoint.strict_json import read_object
from coterie.errors import ConfigError, UnsupportedError

CONFIG = "config.json"
MAX_CONFIG = 4_000_000
CODE_KEYS = ("model_file", "auto_map", "custom_pipelines")
"""Keys that name code of the checkpoint's own; none of it is ever run."""
_MODEL_TYPE = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class Rope:
    """One rotary embedding: its kind ("default", "proportional", "yarn", ...), its base, its kind's own parameters."""

    kind: str
    base: float
    partial_rotary_factor: float
    parameters: Fields


def read_config(folder: Path, *, published: bool = False) -> dict[str, Any]:
    """The validated object of `folder`/config.json, untouched. `ConfigError` for anything absurd in its frame.

    Checked here: JSON (sizes, duplicates, numbers), `model_type`, keys that name code, and the quantisation. A family
    checks its own keys with `Fields`. published: as in `quantization.rules`.
    """
    path = member(folder, CONFIG)
    if not has_member(folder, CONFIG):
        raise ConfigError(
            f"{path}: the file is not there, expected beside the weights; fetch the whole checkpoint",
            code="config_missing_file",
        )
    config = read_object(path, MAX_CONFIG, ConfigError, prefix="config")
    where = str(path)
    nested = config.get("text_config")
    if nested is not None and not isinstance(nested, dict):
        raise ConfigError(f"{where}: found text_config = {show(nested)}, expected an object", code="config_type")
    for section, prefix in ((config, ""), (nested or {}, "text_config.")):
        _refuse_code(section, f"{where}: {prefix}")
    _check_model_type(config, f"{where}: ", required=True)
    _check_model_type(nested or {}, f"{where}: text_config.", required=False)
    rules(config, where, published=published)
    if (
        "quantization" not in config
        and "quantization_config" not in config
        and has_member(folder, "hf_quant_config.json")
    ):
        raise UnsupportedError(
            f"{folder / 'hf_quant_config.json'}: found a ModelOpt quantisation, expected MLX's; take a checkpoint in "
            "MLX's format, or convert the unquantised original with `coterie convert`",
            code="quant_method",
        )
    return config


def declared_dtype(config: dict[str, Any]) -> str | None:
    """The dtype that the weights were published in: "float32", "float16", "bfloat16", or None where nothing is said."""
    nested = config.get("text_config") or {}
    for section in (config, nested):
        fields = Fields(section)
        value = fields.choice("torch_dtype", "dtype", options=("float32", "float16", "bfloat16"), default=None)
        if value is not None:
            return value
    return None


def rope(fields: Fields, layer_type: str | None = None, *, default_base: float | None = None) -> Rope:
    """The rotary embedding, of one kind of layer where the config tells them apart, from either dialect.

    `default_base` stands where the config gives none; without it that is an error.
    """
    section = fields.section("rope_parameters")
    if section is not None and layer_type is not None and layer_type in section:
        section = section.section(layer_type)
    old = fields.section("rope_scaling")
    source = section if section is not None else old if old is not None else Fields({}, fields.where)
    kind = source.choice("rope_type", "type", options=_ROPE_KINDS, default="default")
    holder = source if source.values.get("rope_theta") is not None else fields
    _agree(fields, source, old if section is not None else None, layer_type)
    base = holder.number("rope_theta", low=1.0, high=1e12, above=True, default=default_base)
    fields.ignore("rope_theta")
    if base is None:
        raise fields.error("rope_theta", "the base of the rotary embedding", code="config_missing")
    return Rope(kind, base, _partial(fields, source, layer_type), source)


_ROPE_KINDS = ("default", "proportional", "linear", "dynamic", "yarn", "longrope", "llama3")


def _partial(fields: Fields, source: Fields, layer_type: str | None) -> float:
    """The share of a head that turns; published configs have it outside of the scaling's object."""
    inner = source.number("partial_rotary_factor", low=0.0, high=1.0, above=True, default=None)
    if layer_type is not None:
        return 1.0 if inner is None else inner
    outer = fields.number("partial_rotary_factor", low=0.0, high=1.0, above=True, default=None)
    if inner is not None and outer is not None and inner != outer:
        raise fields.error("partial_rotary_factor", f"the same as in rope_parameters ({inner:g})")
    found = outer if inner is None else inner
    return 1.0 if found is None else found


def _agree(fields: Fields, source: Fields, old: Fields | None, layer_type: str | None) -> None:
    """Where both dialects stand in one file they must say the same; per kind of layer there is no old spelling."""
    outer, inner = fields.values.get("rope_theta"), source.values.get("rope_theta")
    if layer_type is None and outer is not None and inner is not None and outer != inner:
        raise fields.error("rope_theta", f"the same as in rope_parameters ({show(inner)})")
    if old is not None and _without_base(old) != (_without_base(source) if layer_type is None else {}):
        raise fields.error("rope_scaling", "the same as in rope_parameters, or null")


def _without_base(rope: Fields) -> dict[str, Any]:
    elsewhere = ("rope_theta", "partial_rotary_factor")
    values = {
        "rope_type" if key == "type" else key: value for key, value in rope.values.items() if key not in elsewhere
    }
    return {key: value for key, value in values.items() if (key, value) != ("rope_type", "default")}


def per_layer(fields: Fields, n_layers: int) -> list[Fields]:
    """For each layer the keys that `per_layer_config` sets for it alone; an empty `Fields` where it sets none."""
    section = fields.section("per_layer_config")
    where = f"{fields.where}: per_layer_config"
    layers = [Fields({}, f"{where}: {i}") for i in range(n_layers)]
    for key, value in section.values.items() if section is not None else ():
        index = int(key) if key.isascii() and key.isdecimal() and len(key) < 10 else n_layers
        if index >= n_layers or str(index) != key or not isinstance(value, dict):
            raise ConfigError(
                f"{where}: found {show(key)}: {show(value)}, expected a layer's number from 0 to {n_layers - 1} and "
                "an object",
                code="config_range",
            )
        layers[index] = Fields(value, f"{where}: {key}")
    return layers


def _refuse_code(section: dict[str, Any], prefix: str) -> None:
    for key in CODE_KEYS:
        if section.get(key) is not None:
            raise ConfigError(
                f"{prefix}{key} is {show(section[key])}; nothing of a checkpoint is ever executed, expected a model "
                "that needs no code of its own; remove the key if the model is of a family that Coterie has",
                code="custom_code",
            )


def _check_model_type(section: dict[str, Any], prefix: str, *, required: bool) -> None:
    value = section.get("model_type")
    if value is None and not required:
        return
    if not isinstance(value, str) or not _MODEL_TYPE.fullmatch(value):
        raise ConfigError(
            f"{prefix}model_type is {show(value)}, expected a name of small letters, digits and underscores",
            code="model_type",
        )
