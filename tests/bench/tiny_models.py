"""Real models' configs with small numbers."""

from dataclasses import replace
from typing import Any

from coterie.bench.real_models import REAL_MODELS, RealModel

_SMALL = {
    "hidden_size": 256,
    "moe_intermediate_size": 64,
    "vocab_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 8,
    "num_local_experts": 8,
    "top_k_experts": 4,
    "num_experts_per_tok": 4,
    "intermediate_size": 128,
    "global_head_dim": 128,
    "num_global_key_value_heads": 1,
    "sliding_window": 16,
    "max_position_embeddings": 512,
}


def _small(fields: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {**fields, **{name: value for name, value in _SMALL.items() if name in fields}, **others}


def tiny(name: str, **others: Any) -> RealModel:
    """The model with that name, small; `others` replace fields of its text decoder."""
    model = REAL_MODELS[name]
    if "text_config" in model.config:
        return replace(
            model, config={**model.config, "text_config": _small(model.config["text_config"], **others)}, period=2
        )
    return replace(model, config=_small(dict(model.config), **others))


TINY = {name: tiny(name) for name in REAL_MODELS}
