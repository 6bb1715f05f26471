"""A config that readers of both dialects understand: transformers 5's keys stay, the published ones are added.

mlx-lm and older tools read only the published keys and, where one is missing, take a default in silence.
"""

import copy
from typing import Any


def with_published_keys(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a raw config with the published spelling beside the new one; keys that are there are not touched."""
    result = copy.deepcopy(config)
    nested = result.get("text_config")
    for section in (result, nested):
        if isinstance(section, dict):
            _add_rope(section)
            _add_full_layers(section)
            _add(section, "num_experts", section.get("num_local_experts"))
            if section.get("model_type") == "gemma4_unified_text":
                # Without this key mlx-lm takes the variant for one with per-layer embeddings.
                _add(section, "hidden_size_per_layer_input", 0)
    if isinstance(nested, dict):
        _add(result, "vocab_size", nested.get("vocab_size"))
    return result


def _add(section: dict[str, Any], key: str, value: Any) -> None:
    if section.get(key) is None and value is not None:
        section[key] = value


def _add_rope(section: dict[str, Any]) -> None:
    """Flat `rope_parameters` only: with one object for each kind of layer there is no published spelling."""
    rope = section.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return
    _add(section, "rope_theta", rope["rope_theta"])
    _add(section, "partial_rotary_factor", rope.get("partial_rotary_factor"))
    rest = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if rest.get("rope_type", "default") != "default":
        _add(section, "rope_scaling", rest)
    else:
        section.setdefault("rope_scaling", None)


def _add_full_layers(section: dict[str, Any]) -> None:
    """`global_head_dim` and `num_global_key_value_heads`, where `per_layer_config` says the same of all full layers."""
    layers, kinds = section.get("per_layer_config"), section.get("layer_types")
    if not isinstance(layers, dict) or not isinstance(kinds, list) or not layers:
        return
    full = {str(i) for i, kind in enumerate(kinds) if kind == "full_attention"}
    first = next(iter(layers.values()))
    if set(layers) == full and all(layer == first for layer in layers.values()) and isinstance(first, dict):
        _add(section, "global_head_dim", first.get("head_dim", section.get("head_dim")))
        _add(section, "num_global_key_value_heads", first.get("num_key_value_heads"))
