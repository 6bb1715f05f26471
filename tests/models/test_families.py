"""Configs: both dialects read alike, and everything absurd or not done refused by name."""

import copy
import math
from typing import Any

import pytest

from coterie.checkpoint.names import plan
from coterie.errors import ConfigError, CoterieError, UnsupportedError
from coterie.models.architecture import Architecture, LatentAttention, Router
from coterie.models.families import FAMILIES, family_of
from coterie.models.weights import slots
from models import tiny


def config_of(name: str, **changed: Any) -> dict[str, Any]:
    """The published config of a tiny model with fields changed; `...` takes one away. Nested fields are the text's."""
    config = tiny.published_dialect(tiny.transformers_config(tiny.MODELS[name]).to_dict())
    section = config.get("text_config", config)
    section.update(copy.deepcopy(changed))
    for key in [key for key, value in section.items() if value is ...]:
        del section[key]
    if "vocab_size" in changed and section is not config:
        del config["vocab_size"]
    return config


def read(config: dict[str, Any]) -> Architecture:
    return family_of(config).architecture(config)


def test_the_fields_of_gemma4() -> None:
    read_ = read(config_of("gemma4"))
    sliding, full = read_.layers[0], read_.layers[1]
    assert (sliding.attention.head_dim, sliding.attention.n_kv_heads, sliding.attention.window) == (32, 2, tiny.WINDOW)
    assert (full.attention.head_dim, full.attention.n_kv_heads, full.attention.window) == (64, 1, None)
    assert sliding.attention.modules.value == "self_attn.v_proj"
    assert full.attention.modules.value is None
    assert sum(frequency > 0 for frequency in full.attention.rope.frequencies) == 8
    assert len(full.attention.rope.frequencies) == 32
    assert read_.embedding_scale == 128**0.5
    assert read_.logit_cap == 30.0
    assert read_.activation == "gelu_tanh"
    assert read_.head is None


def test_the_fields_of_gemma4_with_per_layer_embeddings() -> None:
    read_ = read(config_of("gemma4_per_layer"))
    assert [layer.attention.shares for layer in read_.layers] == [None, None, None, 2, 1, 1]
    assert [layer.attention.window for layer in read_.layers][3:] == [tiny.WINDOW, None, None]
    assert [layer.mlp.width for layer in read_.layers] == [192] * 3 + [384] * 3  # type: ignore[union-attr]
    inputs = read_.layer_inputs
    assert inputs is not None
    assert (inputs.width, inputs.vocab_size, inputs.embedding_scale) == (64, tiny.VOCABULARY, 8.0)
    # The norm behind them takes a common factor away again, so logits would not tell.
    assert (inputs.projection_scale, inputs.scale) == (128**-0.5, 2**-0.5)
    narrow = read(config_of("gemma4_per_layer_experts"))
    assert {layer.mlp.width for layer in narrow.layers} == {192}  # type: ignore[union-attr]


def test_keys_and_values_that_published_checkpoints_hold_for_nothing_are_left_out() -> None:
    config = config_of("gemma4_per_layer")
    stem = "model.language_model.layers.{}.self_attn.{}.weight"
    names = [stem.format(layer, part) for layer in (2, 3, 5) for part in ("q_proj", "k_proj", "v_proj", "k_norm")]
    found = {target.name for target in plan(names, family_of(config).name_map(config))}
    kept = {*names[:4], stem.format(3, "q_proj"), stem.format(5, "q_proj")}
    assert found == {name.replace("model.language_model", "language_model.model") for name in kept}


def test_the_fields_of_deepseek() -> None:
    v2, v3 = read(config_of("deepseek_v2")), read(config_of("deepseek_v3_groups"))
    attention = v2.layers[0].attention
    assert isinstance(attention, LatentAttention)
    assert (attention.rank, attention.query_rank, attention.plain_dim, attention.turned_dim) == (128, None, 32, 16)
    assert attention.cached == (1, 128, 16)
    magnitude = 0.1 * 0.707 * math.log(40) + 1
    assert attention.scale == pytest.approx(48**-0.5 * magnitude**2)
    assert attention.rope.amplitude == pytest.approx((0.1 * math.log(40) + 1) / magnitude)
    assert attention.rope.interleaved
    assert [(layer.moe is None, layer.mlp and layer.mlp.width) for layer in v2.layers] == [
        (True, 256),
        (False, 2 * 64),
        (False, 2 * 64),
    ]
    assert v2.layers[1].moe.router == Router(3, "mlp.gate", renormalize=False, scaling_factor=1.5)  # type: ignore[union-attr]
    assert all(layer.moe is not None for layer in v3.layers)
    router = v3.layers[0].moe.router  # type: ignore[union-attr]
    assert (router.scoring, router.n_groups, router.top_groups, router.group_score) == ("sigmoid", 4, 2, "top2")
    assert v3.layers[0].attention.scale == 80**-0.5
    halves = read(config_of("deepseek_v3", rope_interleave=False))
    assert not halves.layers[0].attention.rope.interleaved
    alternating = read(config_of("deepseek_v3", moe_layer_freq=2, n_shared_experts=0))
    assert [(layer.moe is None, layer.mlp is None) for layer in alternating.layers] == [
        (True, False),
        (True, False),
        (False, True),
    ]


def test_layers_that_predict_further_tokens_are_left_out() -> None:
    for name in ("deepseek_v2", "deepseek_v3"):
        config = config_of(name, num_nextn_predict_layers=1)
        names = [f"model.layers.{index}.input_layernorm.weight" for index in (0, 2, 3, 30)]
        found = [target.name for target in plan(names, family_of(config).name_map(config))]
        assert found == names[:2]


def test_the_fields_of_qwen3_moe() -> None:
    read_ = read(config_of("qwen3_moe"))
    assert [layer.moe is not None for layer in read_.layers] == [True, False, True]
    assert [layer.mlp is not None for layer in read_.layers] == [False, True, False]
    assert read_.layers[0].attention.scale == 64**-0.5
    assert read_.head == "lm_head"
    tied = read(config_of("qwen3_moe_tied"))
    assert [layer.moe is not None for layer in tied.layers] == [False, True, False]
    assert tied.head is None
    assert not tied.layers[1].moe.router.renormalize  # type: ignore[union-attr]


def test_the_last_layer_of_gemma4_is_full_whatever_the_config_says() -> None:
    kinds = ["sliding_attention"] * 4
    assert [layer.attention.window for layer in read(config_of("gemma4", layer_types=kinds)).layers] == [
        *[tiny.WINDOW] * 3,
        None,
    ]


def test_keys_and_values_of_full_layers_have_their_own_heads_only_where_they_are_one() -> None:
    apart = read(config_of("gemma4", attention_k_eq_v=False, num_global_key_value_heads=1))
    assert [layer.attention.n_kv_heads for layer in apart.layers] == [2, 2, 2, 2]


def test_gemma4_in_the_dialect_of_per_layer_config() -> None:
    written = tiny.transformers_config(tiny.MODELS["gemma4"]).to_dict()
    assert "per_layer_config" in written["text_config"]
    assert read(written) == read(config_of("gemma4"))


@pytest.mark.parametrize("name", tiny.MODELS)
def test_rope_parameters_may_be_left_out_or_old(name: str) -> None:
    config = config_of(name)
    if "rope_theta" in config:
        scaling = config.pop("rope_scaling", None) or {"rope_type": "default"}
        new = {**config, "rope_parameters": {**scaling, "rope_theta": config.pop("rope_theta")}}
        assert read(new) == read(config_of(name))
    else:
        assert read(config_of(name, rope_parameters=...)) == read(config)


UNSUPPORTED = [
    ("gemma4", "attention_bias", True),
    ("gemma4", "use_bidirectional_attention", "all"),
    ("gemma4", "rope_parameters", {"sliding_attention": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}),
    ("qwen3_moe", "rope_scaling", {"rope_type": "longrope", "factor": 4.0}),
    ("qwen3_moe", "rope_scaling", {"type": "dynamic", "factor": 2.0}),
    ("qwen3_moe", "rope_parameters", {"rope_type": "proportional", "rope_theta": 1e6, "factor": 4.0}),
    ("qwen3_moe", "partial_rotary_factor", 0.5),
    ("qwen3_moe", "attention_bias", True),
    ("qwen3_moe", "use_sliding_window", True),
    ("deepseek_v2", "rope_scaling", {"type": "linear", "factor": 2.0}),
    ("deepseek_v2", "mlp_bias", True),
    ("deepseek_v3", "partial_rotary_factor", 0.5),
]


@pytest.mark.parametrize(("name", "key", "value"), UNSUPPORTED)
def test_what_is_not_done_is_refused_by_name(name: str, key: str, value: Any) -> None:
    with pytest.raises(UnsupportedError) as refused:
        read(config_of(name, **{key: value}))
    assert refused.value.code.startswith("unsupported_")


@pytest.mark.parametrize("key", ["hidden_size_per_layer_input", "num_kv_shared_layers", "final_logit_softcapping"])
def test_keys_on_whose_default_readers_disagree_have_to_be_there(key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(config_of("gemma4", **{key: ...}))
    assert refused.value.code == "config_missing"
    assert key in str(refused.value)


_SIZES = [-1, 0, 10**9, 2**70, 1.0, "8", True, float("nan"), [], {}]
ABSURD: list[tuple[str, str, Any]] = [
    *(("gemma4", key, value) for key in ("hidden_size", "num_hidden_layers", "num_experts") for value in _SIZES),
    *(("qwen3_moe", key, value) for key in ("vocab_size", "num_attention_heads", "head_dim") for value in _SIZES),
    ("gemma4", "top_k_experts", 9),
    ("gemma4", "top_k_experts", 0),
    ("qwen3_moe", "num_experts_per_tok", 9),
    ("qwen3_moe", "num_experts", 65_536),
    ("qwen3_moe", "num_attention_heads", 3),
    ("qwen3_moe", "num_key_value_heads", 3),
    ("qwen3_moe", "head_dim", 63),
    ("gemma4", "global_head_dim", 31),
    ("qwen3_moe", "rope_theta", 0),
    ("qwen3_moe", "rope_theta", "1e6"),
    ("qwen3_moe", "rope_theta", float("nan")),
    ("qwen3_moe", "rope_theta", ...),
    ("qwen3_moe", "rms_norm_eps", 0),
    ("qwen3_moe", "rms_norm_eps", -1e-6),
    ("qwen3_moe", "hidden_act", "mish"),
    ("qwen3_moe", "mlp_only_layers", [3]),
    ("qwen3_moe", "mlp_only_layers", [True]),
    ("qwen3_moe", "decoder_sparse_step", 0),
    ("qwen3_moe", "norm_topk_prob", ...),
    ("qwen3_moe", "norm_topk_prob", 1),
    ("qwen3_moe", "num_local_experts", 4),
    ("qwen3_moe", "a_key_from_nowhere", 3),
    ("gemma4", "layer_types", ["full_attention"] * 3),
    ("gemma4", "layer_types", ["full_attention"] * 3 + ["linear_attention"]),
    ("gemma4", "layer_types", ...),
    ("gemma4", "sliding_window", ...),
    ("gemma4", "sliding_window", 0),
    ("gemma4", "attention_k_eq_v", "yes"),
    ("gemma4", "enable_moe_block", ...),
    ("gemma4", "final_logit_softcapping", 0),
    ("gemma4", "final_logit_softcapping", "30"),
    ("gemma4", "global_head_dim", ...),
    ("gemma4", "per_layer_config", {"1": {"head_dim": 32}, "3": {"head_dim": 32}}),
    ("gemma4", "per_layer_config", {"1": {"intermediate_size": 5}}),
    ("gemma4", "per_layer_config", {"9": {"head_dim": 64}}),
    ("gemma4", "per_layer_config", [1]),
    ("gemma4", "rope_parameters", {"sliding_attention": {"rope_theta": 1e4, "partial_rotary_factor": 2.0}}),
    ("gemma4", "a_key_from_nowhere", 3),
    *(("gemma4", "hidden_size_per_layer_input", value) for value in (-1, 10**9, 64.0, "64", True)),
    *(("gemma4_per_layer", "vocab_size_per_layer_input", value) for value in (0, tiny.VOCABULARY - 1, 5e2, "512", ...)),
    *(("gemma4", "num_kv_shared_layers", value) for value in (-1, 3, 4, 2**70, 1.0, "1", True)),
    ("gemma4_per_layer", "num_kv_shared_layers", 5),
    ("gemma4_unified", "hidden_size_per_layer_input", 64),
    ("gemma4_unified", "enable_moe_block", True),
    ("gemma4_per_layer", "use_double_wide_mlp", 1),
    ("gemma4_per_layer", "use_double_wide_mlp", ...),
    *(
        ("deepseek_v3", key, value)
        for key in ("kv_lora_rank", "qk_nope_head_dim", "v_head_dim", "n_routed_experts")
        for value in _SIZES
    ),
    ("deepseek_v3", "q_lora_rank", 0),
    ("deepseek_v3", "qk_rope_head_dim", 15),
    ("deepseek_v3", "head_dim", 80),
    ("deepseek_v3", "qk_head_dim", 64),
    ("deepseek_v3", "num_key_value_heads", 2),
    ("deepseek_v3", "num_experts_per_tok", 9),
    ("deepseek_v3", "n_group", 3),
    ("deepseek_v3", "n_group", 8),
    ("deepseek_v3", "n_group", ...),
    ("deepseek_v3_groups", "topk_group", 5),
    ("deepseek_v3_groups", "topk_group", 1),
    ("deepseek_v3", "routed_scaling_factor", 0),
    ("deepseek_v3", "routed_scaling_factor", ...),
    ("deepseek_v3", "scoring_func", "softmax"),
    ("deepseek_v3", "topk_method", "greedy"),
    ("deepseek_v3", "rope_interleave", 1),
    ("deepseek_v3", "first_k_dense_replace", 4),
    ("deepseek_v3", "first_k_dense_replace", ...),
    ("deepseek_v3", "moe_layer_freq", 0),
    ("deepseek_v3", "n_shared_experts", -1),
    ("deepseek_v2", "scoring_func", "sigmoid"),
    ("deepseek_v2", "norm_topk_prob", True),
    ("deepseek_v2", "topk_method", "noaux_tc"),
    ("deepseek_v2", "topk_method", "group_limited_greedy"),
    ("deepseek_v2_groups", "topk_group", 5),
    *(
        (
            "deepseek_v2",
            "rope_scaling",
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, **wrong},
        )
        for wrong in ({"mscale": 1.0}, {"mscale_all_dim": 1.0}, {"mscale": "1"}, {"factor": 0.5}, {"mscale": -1.0})
    ),
]


@pytest.mark.parametrize(("name", "key", "value"), ABSURD)
def test_what_is_absurd_is_refused_by_name(name: str, key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        read(config_of(name, **{key: value}))
    assert len(str(refused.value)) < 500
    related = {"num_key_value_heads", "num_local_experts", "global_head_dim", "n_routed_experts", "qk_nope_head_dim"}
    related |= {"topk_group", "topk_method"}
    assert key in str(refused.value) or key in related


def test_a_vocabulary_of_two_sizes_is_refused() -> None:
    config = config_of("gemma4")
    config["vocab_size"] = 513
    with pytest.raises(ConfigError):
        read(config)


@pytest.mark.parametrize("model_type", ["llama", "Gemma4", "gemma4/../x", "", "gemma4_vision"])
def test_an_unknown_family_is_refused_with_the_known_ones(model_type: str) -> None:
    with pytest.raises(UnsupportedError) as refused:
        family_of({"model_type": model_type})
    for known in FAMILIES:
        assert known in str(refused.value)


@pytest.mark.parametrize("config", [{}, {"model_type": None}, {"model_type": 5}, {"model_type": ["gemma4"]}])
def test_no_model_type_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        family_of(config)


def test_a_gemma4_config_without_a_text_decoder_is_refused() -> None:
    with pytest.raises(CoterieError):
        read({"model_type": "gemma4", "vision_config": {}})


@pytest.mark.parametrize("name", tiny.MODELS)
def test_published_names_become_the_names_that_the_decoder_reads(name: str) -> None:
    from safetensors import safe_open

    config = config_of(name)
    family = family_of(config)
    with safe_open(tiny.source(name) / "model.safetensors", "np") as tensors:
        published = [*tensors.keys(), "model.layers.0.self_attn.rotary_emb.inv_freq"]
    if family.name == "gemma4":
        published.append("model.vision_tower.patch.weight")
    if family.name == "glm4_moe":
        published.append("model.layers.3.eh_proj.weight")
    targets = {target.name for target in plan(published, family.name_map(config))}
    found = {name for name in targets if not name.endswith(".scales")}
    expected = {slot.tensor for slot in slots(family.architecture(config))}
    assert found == expected
    # Names that are MLX's already pass unchanged.
    assert {target.name for target in plan(expected, family.name_map(config))} == expected


def test_routers_are_quantised_in_8_bits() -> None:
    for name, path in (
        ("gemma4", "language_model.model.layers.3.router.proj"),
        ("qwen3_moe", "model.layers.0.mlp.gate"),
    ):
        config = config_of(name)
        entry = family_of(config).name_map(config).override_for(path)
        assert entry is not None
        assert entry.entry() == {"bits": 8, "group_size": 64}
