"""Absurd configs and weights of mixtral, olmoe, gpt_oss and glm4_moe: refused by the key's or the tensor's name."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.test_family_faults import BAD_SCALINGS, COMMON, NO_INTEGERS, YARN
from coterie.checkpoint import open_checkpoint, write_checkpoint
from coterie.errors import CheckpointError, ConfigError, CoterieError, UnsupportedError
from coterie.models.families import family_of
from coterie.models.weights import read_weights, slots

_SHARED: dict[str, Any] = {
    **{key: value for key, value in COMMON.items() if key not in ("num_experts", "moe_intermediate_size")},
    "num_experts_per_tok": 2, "hidden_act": "silu", "tie_word_embeddings": False,
}  # fmt: skip
BASES: dict[str, dict[str, Any]] = {
    "mixtral": {
        **_SHARED, "model_type": "mixtral", "num_local_experts": 4, "rope_theta": 1e6, "sliding_window": None,
        "router_jitter_noise": 0.0,
    },
    "olmoe": {
        **_SHARED, "model_type": "olmoe", "num_experts": 4, "rope_theta": 1e4, "norm_topk_prob": False,
        "clip_qkv": None, "attention_bias": False,
    },
    "gpt_oss": {
        **_SHARED, "model_type": "gpt_oss", "num_local_experts": 4, "experts_per_token": 2, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"], "attention_bias": True, "swiglu_limit": 7.0,
        "rope_theta": 150_000, "initial_context_length": 64, "rope_scaling": {**YARN, "truncate": False},
    },
    "glm4_moe": {
        **_SHARED, "model_type": "glm4_moe", "n_routed_experts": 4, "moe_intermediate_size": 32, "n_shared_experts": 1,
        "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "norm_topk_prob": True, "use_qk_norm": True,
        "routed_scaling_factor": 2.5, "attention_bias": True, "partial_rotary_factor": 0.5, "rope_theta": 1e6,
        "rope_scaling": None, "num_nextn_predict_layers": 1,
    },
}  # fmt: skip

SIZES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings", "num_experts_per_tok",
)  # fmt: skip
ALL: list[tuple[str, Any]] = [
    *[(key, value) for key in SIZES for value in NO_INTEGERS],
    *[(key, None) for key in ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads")],
    ("num_experts_per_tok", 5),
    ("num_attention_heads", 3),
    ("num_key_value_heads", 3),
    ("head_dim", 15),
    *[("rms_norm_eps", value) for value in (0, -1e-6, 2.0, "1e-6", True, None)],
    *[("tie_word_embeddings", value) for value in (0, 1, "true")],
    *[("rope_theta", value) for value in (0, -1.0, "10000", True, None, 1e300)],
    *[("rope_scaling", value) for value in BAD_SCALINGS],
    ("unheard_of", 1),
    ("hiden_size", 64),
    ("attn_logit_softcapping", 50.0),
]
_BOOLEANS = (0, 1, "true", [True])
_SCALES = (0, -1.0, "1", True, float("nan"))
OWN: dict[str, list[tuple[str, Any]]] = {
    "mixtral": [
        *[("num_local_experts", value) for value in (*NO_INTEGERS, None, 65_536)],
        ("num_experts", 8),
        *[("sliding_window", value) for value in (0, -1, 8.0, "8", True)],
        ("hidden_act", "mish"),
        ("attention_bias", True),
        ("swiglu_limit", 7.0),
        ("partial_rotary_factor", 0.5),
    ],
    "olmoe": [
        *[("num_experts", value) for value in (*NO_INTEGERS, None, 65_536)],
        *[("clip_qkv", value) for value in _SCALES],
        *[(key, value) for key in ("norm_topk_prob", "attention_bias") for value in _BOOLEANS],
        ("mlp_bias", True),
        ("hidden_act", "mish"),
        ("sliding_window", 8),
    ],
    "gpt_oss": [
        *[("num_local_experts", value) for value in (*NO_INTEGERS, None, 65_536)],
        ("experts_per_token", 4),
        *[("sliding_window", value) for value in (0, -1, 8.0, "8", True, None)],
        *[("attention_bias", value) for value in _BOOLEANS],
        *[("swiglu_limit", value) for value in (0, 8.0, "7", True)],
        *[("swiglu_alpha", value) for value in (1.7, 2, "1.702")],
        ("hidden_act", "gelu"),
        *[("initial_context_length", value) for value in (32, 0, "64")],
        ("rope_scaling", None),
        *[("layer_types", value) for value in (["full_attention"], ["full_attention", "x"], "full_attention", [1])],
    ],
    "glm4_moe": [
        *[("n_routed_experts", value) for value in (*NO_INTEGERS, None, 65_536)],
        *[(key, value) for key in ("moe_intermediate_size", "n_shared_experts", "n_group", "topk_group")
          for value in (*NO_INTEGERS, None)],
        *[("first_k_dense_replace", value) for value in (-1, 3, 1.0, "1", True, None)],
        *[(key, value) for key in ("norm_topk_prob", "use_qk_norm", "attention_bias") for value in (*_BOOLEANS, None)],
        *[("routed_scaling_factor", value) for value in (*_SCALES, None)],
        *[("partial_rotary_factor", value) for value in (*_SCALES, 1.5, 0.05, 0.2, None)],
        ("n_group", 3),
        ("n_group", 4),
        ("topk_group", 3),
        ("scoring_func", "softmax"),
        ("topk_method", "greedy"),
        ("hidden_act", "mish"),
        ("rope_interleave", True),
    ],
}  # fmt: skip
ROWS = [(family, key, value) for family in BASES for key, value in [*ALL, *OWN[family]]]

RELATED = {
    "num_key_value_heads": "num_attention_heads",
    "num_attention_heads": "head_dim",
    "rope_scaling": "rope_",
    "experts_per_token": "num_experts_per_tok",
    "num_experts": "num_local_experts",
    "num_experts_per_tok": "topk_group",
}
"""Keys of which one side of a contradiction may be named instead."""


@pytest.mark.parametrize(("family", "key", "value"), ROWS)
def test_refused_by_its_key(family: str, key: str, value: Any) -> None:
    config = {**copy.deepcopy(BASES[family]), key: value}
    with pytest.raises(CoterieError) as caught:
        family_of(config).architecture(config)
    assert isinstance(caught.value, ConfigError | UnsupportedError)
    assert key in str(caught.value) or RELATED.get(key, key) in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("family", BASES)
def test_the_bases_are_good(family: str) -> None:
    assert len(family_of(BASES[family]).architecture(BASES[family]).layers) == 2


def tensors_of(family: str) -> dict[str, np.ndarray]:
    """Every tensor that the family's base config asks for."""
    architecture = family_of(BASES[family]).architecture(BASES[family])
    return {slot.tensor: np.ones(slot.shape, np.float32) for slot in slots(architecture)}


MISSING = [
    ("mixtral", "model.layers.1.block_sparse_moe.switch_mlp.down_proj.weight"),
    ("mixtral", "lm_head.weight"),
    ("olmoe", "model.layers.0.self_attn.q_norm.weight"),
    ("gpt_oss", "model.layers.0.self_attn.sinks"),
    ("gpt_oss", "model.layers.0.self_attn.o_proj.bias"),
    ("gpt_oss", "model.layers.1.mlp.router.bias"),
    ("gpt_oss", "model.layers.1.mlp.experts.down_proj.bias"),
    ("glm4_moe", "model.layers.0.mlp.gate_proj.weight"),
    ("glm4_moe", "model.layers.1.mlp.gate.e_score_correction_bias"),
    ("glm4_moe", "model.layers.1.mlp.shared_experts.up_proj.weight"),
    ("glm4_moe", "model.layers.1.self_attn.v_proj.bias"),
]
STRAY = [
    ("mixtral", "model.layers.0.block_sparse_moe.experts.0.w1.weight"),
    ("mixtral", "model.layers.0.self_attn.q_proj.bias"),
    ("olmoe", "model.layers.0.mlp.shared_expert.up_proj.weight"),
    ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj_bias"),
    ("gpt_oss", "model.layers.0.self_attn.q_norm.weight"),
    ("glm4_moe", "model.layers.1.self_attn.o_proj.bias"),
    ("glm4_moe", "model.layers.0.mlp.gate.weight"),
    ("glm4_moe", "model.layers.3.eh_proj.weight"),
]


def read_back(family: str, tensors: dict[str, np.ndarray], folder: Path) -> None:
    """Written, opened, and read as the base config says."""
    write_checkpoint(folder, tensors, BASES[family])
    drops = family_of(BASES[family]).name_map(BASES[family]).drops
    with open_checkpoint(folder) as checkpoint:
        read_weights(family_of(BASES[family]).architecture(BASES[family]), checkpoint, drops)


@pytest.mark.parametrize(("family", "name"), MISSING)
def test_a_missing_tensor_is_named(family: str, name: str, tmp_path: Path) -> None:
    tensors = tensors_of(family)
    read_back(family, tensors, tmp_path / "good")
    del tensors[name]
    with pytest.raises(CheckpointError) as caught:
        read_back(family, tensors, tmp_path / "bad")
    assert (caught.value.code, name in str(caught.value)) == ("missing_tensor", True)


@pytest.mark.parametrize(("family", "name"), STRAY)
def test_a_stray_tensor_is_named(family: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_back(family, {**tensors_of(family), name: np.ones((4, 64), np.float32)}, tmp_path / "bad")
    assert (caught.value.code, name in str(caught.value)) == ("unused_tensors", True)


def test_a_layer_that_predicts_further_tokens_is_left_out(tmp_path: Path) -> None:
    further = {"model.layers.2.eh_proj.weight": np.ones((64, 128), np.float32)}
    read_back("glm4_moe", {**tensors_of("glm4_moe"), **further}, tmp_path / "good")


@pytest.mark.parametrize("name", ["mlp.router.bias", "mlp.experts.down_proj.bias", "self_attn.sinks"])
def test_a_bias_of_another_width_is_named(name: str, tmp_path: Path) -> None:
    tensors = tensors_of("gpt_oss")
    tensors[f"model.layers.0.{name}"] = np.ones((5, 7), np.float32)
    with pytest.raises(CheckpointError) as caught:
        read_back("gpt_oss", tensors, tmp_path / "bad")
    assert (caught.value.code, name in str(caught.value)) == ("tensor_shape", True)
