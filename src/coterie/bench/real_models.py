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

_MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32_000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "max_position_embeddings": 32_768,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}

_OLMOE: dict[str, Any] = {
    "model_type": "olmoe",
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 50_304,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}

_GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss",
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "sliding_window": 128,
    "vocab_size": 201_088,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150_000.0,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
    "swiglu_limit": 7.0,
    "attention_bias": True,
    "max_position_embeddings": 131_072,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
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
        RealModel("mixtral-8x7b", "Mixtral-8x7B", _MIXTRAL, n_layers=32),
        RealModel("olmoe-1b-7b", "OLMoE-1B-7B", _OLMOE, n_layers=16),
        RealModel("gpt-oss-20b", "gpt-oss-20b", _GPT_OSS, n_layers=24, period=2),
    )
}
