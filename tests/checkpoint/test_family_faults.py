"""Absurd configs of whole families: every one is refused by an error that names the key, before a weight is touched."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coterie.checkpoint import open_checkpoint, write_checkpoint
from coterie.errors import CheckpointError, ConfigError, CoterieError, UnsupportedError
from coterie.models.families import family_of
from coterie.models.weights import read_weights, slots

COMMON: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 32, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 128, "num_experts": 4, "torch_dtype": "float32", "use_cache": True,
}  # fmt: skip
QWEN: dict[str, Any] = {
    **COMMON, "model_type": "qwen3_moe", "num_experts_per_tok": 2, "norm_topk_prob": True, "decoder_sparse_step": 1,
    "mlp_only_layers": [1], "rope_theta": 1e6, "rope_scaling": None, "tie_word_embeddings": False, "hidden_act": "silu",
    "attention_bias": False, "max_window_layers": 2, "use_sliding_window": False, "sliding_window": None,
}  # fmt: skip
GEMMA: dict[str, Any] = {
    **COMMON, "model_type": "gemma4_text", "top_k_experts": 2, "enable_moe_block": True, "global_head_dim": 32,
    "num_global_key_value_heads": 1, "attention_k_eq_v": True, "sliding_window": 8, "tie_word_embeddings": True,
    "layer_types": ["sliding_attention", "full_attention"], "final_logit_softcapping": 30.0,
    "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "use_double_wide_mlp": False,
    "hidden_activation": "gelu_pytorch_tanh", "vocab_size_per_layer_input": 32, "attention_bias": False,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
    },
}  # fmt: skip
BASES = {"qwen3_moe": QWEN, "gemma4_text": GEMMA}

NO_INTEGERS: tuple[Any, ...] = (0, -1, 10**9, 2**62, 8.0, "8", True, [8], {"a": 8})
SIZES = (
    "hidden_size", "intermediate_size", "moe_intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "num_experts",
)  # fmt: skip
BOTH: list[tuple[str, Any]] = [
    *[(key, value) for key in SIZES for value in NO_INTEGERS],
    *[(key, None) for key in ("hidden_size", "num_hidden_layers", "vocab_size", "num_experts", "num_attention_heads")],
    ("num_experts", 65_536),
    ("num_attention_heads", 3),
    ("num_key_value_heads", 3),
    ("head_dim", 15),
    *[("rms_norm_eps", value) for value in (0, -1e-6, 2.0, "1e-6", True)],
    *[("tie_word_embeddings", value) for value in (0, 1, "true")],
    ("attention_bias", True),
    ("unheard_of", 1),
    ("hiden_size", 64),
    ("shared_expert_intermediate_size", 64),
    ("attn_logit_softcapping", 50.0),
    ("swiglu_limit", 7.0),
]
YARN: dict[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3: dict[str, Any] = {
    **YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0
}  # fmt: skip
BAD_SCALINGS: list[Any] = [
    "yarn", [], 4.0,
    {"type": "dynamic", "factor": 2.0},
    {"rope_type": "su", "factor": 2.0},
    {"rope_type": "default", "factor": 2.0},
    {"rope_type": "linear"},
    *[{"rope_type": "linear", "factor": value} for value in (0, 0.5, -2.0, "2", True, float("inf"), 1e9)],
    {"type": "yarn", "factor": 4.0},
    *[{**YARN, "original_max_position_embeddings": value} for value in (0, -1, 64.0, "64", True, 2**40)],
    *[{**YARN, "beta_fast": value} for value in (0, -1.0, 0.5, "32")],
    *[{**YARN, "truncate": value} for value in (0, 1, "false")],
    *[{**YARN, "attention_factor": value} for value in (0, -1.0, "1", float("nan"))],
    *[{**YARN, key: value} for key in ("mscale", "mscale_all_dim") for value in (-1.0, "1", True)],
    {**YARN, "unheard_of": 1},
    {**LLAMA3, "low_freq_factor": 4.0},
    {**LLAMA3, "high_freq_factor": 0},
]  # fmt: skip
OWN: dict[str, list[tuple[str, Any]]] = {
    "qwen3_moe": [
        *[("num_experts_per_tok", value) for value in (*NO_INTEGERS, None, 5, 65)],
        *[("rope_theta", value) for value in (0, -1.0, "10000", True, None, 1e300)],
        *[("rope_scaling", value) for value in BAD_SCALINGS],
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e4}),
        *[("decoder_sparse_step", value) for value in (0, -1, 1.0, "1", True)],
        *[("mlp_only_layers", value) for value in ([2], [-1], [0.0], ["0"], [True], "0", [0, 1, 0])],
        *[("norm_topk_prob", value) for value in (1, "true", None)],
        *[("hidden_act", value) for value in ("gelu9", 5, ["silu"])],
        ("use_sliding_window", True),
        ("num_local_experts", 8),
    ],
    "gemma4_text": [
        *[("top_k_experts", value) for value in (*NO_INTEGERS, None, 5, 65)],
        *[("sliding_window", value) for value in (0, -1, 8.0, "8", True, None)],
        *[("global_head_dim", value) for value in (0, -1, 32.0, "32", True, 31)],
        *[("num_global_key_value_heads", value) for value in (0, -1, 1.0, "1", True, 3)],
        ("layer_types", ["sliding_attention"]),
        ("layer_types", ["sliding_attention", "chunked_attention"]),
        ("layer_types", "full_attention"),
        ("layer_types", None),
        ("rope_parameters", {"full_attention": {"rope_theta": 0}, "sliding_attention": {"rope_theta": 1e4}}),
        ("rope_parameters", {"full_attention": {"rope_theta": "x"}, "sliding_attention": {"rope_theta": 1e4}}),
        *[("final_logit_softcapping", value) for value in (0, -30.0, "30", True)],
        *[("attention_k_eq_v", value) for value in (1, "true")],
        *[("enable_moe_block", value) for value in (1, "true")],
        *[("hidden_size_per_layer_input", value) for value in (-1, 10**9, 256.0, "256", True, None)],
        *[("num_kv_shared_layers", value) for value in (-1, 1, 2, 1.0, "1", True, None)],
        ("per_layer_config", {"9": {"head_dim": 32}}),
        ("use_bidirectional_attention", "all"),
    ],
}
ROWS = [(family, key, value) for family in BASES for key, value in [*BOTH, *OWN[family]]]


@pytest.mark.parametrize(("family", "key", "value"), ROWS)
def test_refused_by_its_key(family: str, key: str, value: Any) -> None:
    config = copy.deepcopy(BASES[family])
    config[key] = value
    with pytest.raises(CoterieError) as caught:
        family_of(config).architecture(config)
    assert isinstance(caught.value, ConfigError | UnsupportedError)
    # Heads that do not divide, and a number of experts below top_k, are named from either side.
    related = {"num_key_value_heads": "num_attention_heads", "num_global_key_value_heads": "num_attention_heads"}
    related |= {"global_head_dim": "head_dim", "rope_parameters": "rope_theta", "rope_scaling": "rope_"}
    assert key in str(caught.value) or related.get(key, key) in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("family", BASES)
def test_the_bases_are_good(family: str) -> None:
    config = copy.deepcopy(BASES[family])
    assert len(family_of(config).architecture(config).layers) == 2


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma4_vision", "qwen3_moe2"])
def test_other_families_are_named(model_type: str) -> None:
    with pytest.raises(UnsupportedError, match=model_type):
        family_of({**QWEN, "model_type": model_type})


def tensors_of(family: str) -> dict[str, np.ndarray]:
    """Every tensor that the family's base config asks for."""
    config = copy.deepcopy(BASES[family])
    return {slot.tensor: np.ones(slot.shape, np.float32) for slot in slots(family_of(config).architecture(config))}


def wider_vocabulary(tensors: dict[str, np.ndarray]) -> str:
    name = "model.embed_tokens.weight"
    tensors[name] = np.ones((33, 64), np.float32)
    return name


def a_head_although_tied(tensors: dict[str, np.ndarray]) -> str:
    tensors["lm_head.weight"] = np.ones((32, 64), np.float32)
    return "lm_head.weight"


def no_head_although_untied(tensors: dict[str, np.ndarray]) -> str:
    del tensors["lm_head.weight"]
    return "lm_head.weight"


def a_bias_that_nobody_reads(tensors: dict[str, np.ndarray]) -> str:
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(64, np.float32)
    return "q_proj.bias"


def a_shared_expert(tensors: dict[str, np.ndarray]) -> str:
    tensors["model.layers.0.mlp.shared_expert.up_proj.weight"] = np.ones((32, 64), np.float32)
    return "shared_expert"


def an_expert_too_few(tensors: dict[str, np.ndarray]) -> str:
    name = next(name for name in tensors if name.endswith("gate_proj.weight") and "switch" in name)
    tensors[name] = tensors[name][:3]
    return name


def a_norm_of_another_width(tensors: dict[str, np.ndarray]) -> str:
    tensors["model.norm.weight"] = np.ones(65, np.float32)
    return "model.norm.weight"


@pytest.mark.parametrize(
    ("family", "attack"),
    [
        *[(family, attack) for family in BASES for attack in (
            wider_vocabulary, a_bias_that_nobody_reads, a_shared_expert, an_expert_too_few, a_norm_of_another_width,
        )],
        ("gemma4_text", a_head_although_tied),
        ("qwen3_moe", no_head_although_untied),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_the_config(
    family: str, attack: Callable[[dict[str, np.ndarray]], str], tmp_path: Path
) -> None:
    config, tensors = copy.deepcopy(BASES[family]), tensors_of(family)
    architecture = family_of(config).architecture(config)
    write_checkpoint(tmp_path / "good", tensors, config)
    read_weights(architecture, open_checkpoint(tmp_path / "good"))
    name = attack(tensors)
    write_checkpoint(tmp_path / "bad", tensors, config)
    with pytest.raises(CheckpointError) as caught:
        read_weights(architecture, open_checkpoint(tmp_path / "bad"))
    assert name in str(caught.value)
