"""Configs of well-known models, for decoders with their dimensions and random weights.

The numbers are those of the published config.json files; keys that change no shape and no kernel are left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RealModel:
    """A published model. `period`: after so many layers the kinds of layers repeat."""

    name: str
    title: str
    config: Mapping[str, Any]
    n_layers: int
    period: int = 1

    def config_with(self, n_layers: int) -> dict[str, Any]:
        """config.json of the model with so many layers."""
        if "text_config" not in self.config:
            return {**self.config, "num_hidden_layers": n_layers}
        kinds = [_FULL if (index + 1) % self.period == 0 else _SLIDING for index in range(n_layers)]
        text = {**self.config["text_config"], "num_hidden_layers": n_layers, "layer_types": kinds}
        return {**self.config, "text_config": text}


_FULL, _SLIDING = "full_attention", "sliding_attention"

_QWEN3: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 151_936,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40_960,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}

_GEMMA4: dict[str, Any] = {
    "model_type": "gemma4",
    "text_config": {
        "model_type": "gemma4_text",
        "hidden_size": 2816,
        "intermediate_size": 2112,
        "moe_intermediate_size": 704,
        "num_experts": 128,
        "top_k_experts": 8,
        "enable_moe_block": True,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "global_head_dim": 512,
        "num_global_key_value_heads": 2,
        "attention_k_eq_v": True,
        "sliding_window": 1024,
        "rms_norm_eps": 1e-6,
        "final_logit_softcapping": 30.0,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False,
        "vocab_size": 262_144,
        "max_position_embeddings": 262_144,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
}

REAL_MODELS = {
    model.name: model
    for model in (
        RealModel(
            "qwen3-30b-a3b",
            "Qwen3-30B-A3B",
            {**_QWEN3, "hidden_size": 2048, "num_attention_heads": 32, "moe_intermediate_size": 768},
            n_layers=48,
        ),
        RealModel(
            "qwen3-235b-a22b",
            "Qwen3-235B-A22B",
            {**_QWEN3, "hidden_size": 4096, "num_attention_heads": 64, "moe_intermediate_size": 1536},
            n_layers=94,
        ),
        RealModel("gemma-4-26b-a4b", "Gemma-4-26B-A4B", _GEMMA4, n_layers=30, period=6),
    )
}
