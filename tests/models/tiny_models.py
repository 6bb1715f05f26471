"""The tiny models of every family as data: fields of their configs, small, and far from every default.

Dimensions are multiples of 128 where a group of codes must fit, and the sliding window is a third of the test's length.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

WINDOW = 16
LENGTH = 48
VOCABULARY = 512
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_QWEN: dict[str, Any] = {
    **_COMMON,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 3,
    "head_dim": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
_GEMMA: dict[str, Any] = {
    **_COMMON,
    "intermediate_size": 192,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "head_dim": 32,
    "global_head_dim": 64,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "sliding_window": WINDOW,
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 2,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "final_logit_softcapping": 30.0,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
}


_MIXTRAL: dict[str, Any] = {
    **_COMMON,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
_OLMOE: dict[str, Any] = {
    **_COMMON,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "norm_topk_prob": False,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
_GPT_OSS: dict[str, Any] = {
    **_COMMON,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "head_dim": 64,
    "num_local_experts": 8,
    "num_experts_per_tok": 4,
    "sliding_window": WINDOW,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 150_000.0,
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
}
_GLM: dict[str, Any] = {
    **_COMMON,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "head_dim": 64,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "use_qk_norm": True,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
}
_DEEPSEEK: dict[str, Any] = {
    **_COMMON,
    "intermediate_size": 256,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
    "max_position_embeddings": 2560,
    "kv_lora_rank": 128,
    "q_lora_rank": None,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 40.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 64,
    },
}
_DEEPSEEK_V3: dict[str, Any] = {
    **_DEEPSEEK,
    "kv_lora_rank": 256,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 64,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
}


@dataclass(frozen=True)
class Model:
    """One tiny model: its family in transformers, and its config's fields.

    mlx_differs: why mlx-lm computes something else than the original implementation; empty where it does not.
    in_blocks: the experts are published in mxfp4, as gpt-oss was.
    """

    model_type: str
    fields: dict[str, Any] = field(hash=False)
    mlx_differs: str = ""
    in_blocks: bool = False


MODELS: dict[str, Model] = {
    "qwen3_moe": Model("qwen3_moe", _QWEN),
    "qwen3_moe_tied": Model(
        "qwen3_moe",
        {
            **_QWEN,
            "tie_word_embeddings": True,
            "norm_topk_prob": False,
            "mlp_only_layers": [],
            "decoder_sparse_step": 2,
            "num_experts_per_tok": 3,
            "num_key_value_heads": 4,
        },
    ),
    "gemma4": Model("gemma4", _GEMMA),
    "gemma4_text": Model("gemma4_text", {**_GEMMA, "num_experts": 6, "top_k_experts": 3}),
    "gemma4_dense": Model(
        "gemma4_text",
        {**_GEMMA, "enable_moe_block": False, "attention_k_eq_v": False, "final_logit_softcapping": None},
    ),
}

_GEMMA_SMALL: dict[str, Any] = {
    **_GEMMA,
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"] * 2,
    "hidden_size_per_layer_input": 64,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 3,
    "use_double_wide_mlp": True,
}
_GEMMA_ONLY = {"hidden_size_per_layer_input", "vocab_size_per_layer_input", "enable_moe_block", "num_experts"}
_GEMMA_ONLY |= {"top_k_experts", "moe_intermediate_size"}
MODELS["gemma4_per_layer"] = Model(
    "gemma4", {**_GEMMA_SMALL, "enable_moe_block": False, "attention_k_eq_v": False, "num_key_value_heads": 1}
)
_UNIFIED = {key: value for key, value in _GEMMA_SMALL.items() if key not in _GEMMA_ONLY}
MODELS["gemma4_unified"] = Model("gemma4_unified", {**_UNIFIED, "attention_k_eq_v": True})
MODELS["gemma4_per_layer_experts"] = Model("gemma4_text", {**_GEMMA_SMALL, "use_double_wide_mlp": False})

MODELS |= {
    "mixtral": Model("mixtral", _MIXTRAL),
    "mixtral_sliding": Model(
        "mixtral",
        {**_MIXTRAL, "sliding_window": WINDOW, "tie_word_embeddings": True},
        mlx_differs="it has no sliding window in this family",
    ),
    "olmoe": Model("olmoe", _OLMOE),
    "olmoe_clipped": Model(
        "olmoe",
        {**_OLMOE, "norm_topk_prob": True, "clip_qkv": 0.75, "num_key_value_heads": 4, "attention_bias": True},
        mlx_differs="it has no clip_qkv",
    ),
    "gpt_oss": Model("gpt_oss", _GPT_OSS, mlx_differs="it rounds the ends of YaRN's ramp to whole pairs"),
    "gpt_oss_truncated": Model(
        "gpt_oss", {**_GPT_OSS, "rope_parameters": {**_GPT_OSS["rope_parameters"], "truncate": True}}
    ),
    "gpt_oss_blocks": Model(
        "gpt_oss",
        {**_GPT_OSS, "rope_parameters": {**_GPT_OSS["rope_parameters"], "truncate": True}},
        in_blocks=True,
    ),
    "glm4_moe": Model("glm4_moe", _GLM),
    "glm4_moe_groups": Model(
        "glm4_moe",
        {
            **_GLM,
            "n_group": 4,
            "topk_group": 2,
            "n_shared_experts": 1,
            "use_qk_norm": False,
            "attention_bias": False,
            "first_k_dense_replace": 0,
        },
        mlx_differs="experts outside of the best groups score 0 there, and can be chosen before negative ones",
    ),
    "deepseek_v2": Model("deepseek_v2", {**_DEEPSEEK, "topk_method": "greedy"}),
    "deepseek_v2_groups": Model(
        "deepseek_v2",
        {
            **_DEEPSEEK,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "q_lora_rank": 64,
            "n_shared_experts": 1,
            "attention_bias": True,
        },
    ),
    "deepseek_v3": Model("deepseek_v3", _DEEPSEEK_V3),
    "deepseek_v3_groups": Model(
        "deepseek_v3",
        {
            **_DEEPSEEK_V3,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": False,
            "q_lora_rank": None,
            "first_k_dense_replace": 0,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        mlx_differs="experts outside of the best groups score 0 there, and can be chosen before negative ones",
    ),
}


def transformers_config(model: Model) -> Any:
    """The config object of transformers."""
    from transformers import AutoConfig

    fields = copy.deepcopy(model.fields)
    if model.model_type not in _NESTED:
        return AutoConfig.for_model(model.model_type, **fields)
    text = AutoConfig.for_model(f"{model.model_type}_text", **fields)
    nothing = dict.fromkeys(("vision_config", "audio_config"))
    return AutoConfig.for_model(model.model_type, text_config=text, **nothing, pad_token_id=0, eos_token_id=1)


_NESTED = ("gemma4", "gemma4_unified")
"""Families whose configs hold the text decoder's in `text_config`."""


_EXPERTS_KEY = {
    "qwen3_moe": "num_experts",
    "olmoe": "num_experts",
    "glm4_moe": "n_routed_experts",
    "deepseek_v2": "n_routed_experts",
    "deepseek_v3": "n_routed_experts",
}
"""What published configs call the number of experts, where transformers 5 says num_local_experts."""


def published_dialect(config: dict[str, Any]) -> dict[str, Any]:
    """A config of transformers 5 with the keys that published checkpoints have and that mlx-lm reads."""
    old = copy.deepcopy(config)
    if "text_config" in old:
        old["text_config"] = published_dialect(old["text_config"])
        # mlx-lm takes the size of the vocabulary from the top level.
        old["vocab_size"] = old["text_config"]["vocab_size"]
    if old["model_type"] == "gemma4_unified_text":
        # Without this key mlx-lm takes a model with per-layer embeddings.
        old["hidden_size_per_layer_input"] = 0
    rope = old.get("rope_parameters") or {}
    if "rope_theta" in rope:
        del old["rope_parameters"]
        old["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            old["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    key = _EXPERTS_KEY.get(old["model_type"])
    if key is not None and key not in old:
        old[key] = old.pop("num_local_experts", None) or old.pop("num_experts")
    per_layer = old.pop("per_layer_config", None)
    if per_layer is not None:
        own = next(iter(per_layer.values()))
        old["global_head_dim"] = own["head_dim"]
        old["num_global_key_value_heads"] = own.get("num_key_value_heads")
    return old
