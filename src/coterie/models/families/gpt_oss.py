"""gpt-oss: sliding and full attention in turn with sinks, biases everywhere, YaRN, experts with a clamped SwiGLU.

It was published with experts in mxfp4 (bytes of two codes, gate and up rows in turn) and the rest in bfloat16;
transformers writes unquantised experts transposed. `name_map` knows both, and MLX's own names.
"""

from collections.abc import Mapping
from typing import Any

from coterie.checkpoint import Fields, LayerFormat, NameMap, Rename, Split
from coterie.models.architecture import Architecture, Attention, AttentionModules, Layer, Moe, Router
from coterie.models.common import (
    MAX_EXPERTS,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_SIZE,
    check_heads,
    norm_eps_of,
    size,
    top_k_of,
)
from coterie.models.family import Family
from coterie.models.rope_config import rope_of

_FULL, _SLIDING = "full_attention", "sliding_attention"


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The decoder of a `gpt_oss` config, in either dialect."""
    fields = Fields(config)
    fields.must_be("hidden_act", "silu", reason="the family's experts have one activation, a clamped SwiGLU")
    fields.must_be("swiglu_limit", 7, 7.0, reason="the clamped SwiGLU is computed with this limit")
    fields.must_be("swiglu_alpha", 1.702, reason="the clamped SwiGLU is computed with this slope")
    read = Architecture(
        family=FAMILY.name,
        hidden_size=size(fields, "hidden_size"),
        vocab_size=size(fields, "vocab_size"),
        layers=_layers(fields),
        norm_eps=norm_eps_of(fields),
        activation="swiglu_clamped",
        context_length=size(fields, "max_position_embeddings"),
        prefix="model.",
        head=None if fields.boolean("tie_word_embeddings", default=False) else "lm_head",
    )
    fields.finish()
    return read


def _layers(fields: Fields) -> tuple[Layer, ...]:
    n_layers = size(fields, "num_hidden_layers", high=MAX_LAYERS)
    in_turn = tuple(_FULL if index % 2 else _SLIDING for index in range(n_layers))
    kinds = fields.choices("layer_types", options=(_FULL, _SLIDING), length=n_layers, default=in_turn)
    experts = _experts(fields)
    by_kind = {kind: Layer(_attention(fields, kind), mlp=None, moe=experts) for kind in (_SLIDING, _FULL)}
    return tuple(by_kind[kind] for kind in kinds)


def _attention(fields: Fields, kind: str) -> Attention:
    n_heads = size(fields, "num_attention_heads", high=MAX_HEADS)
    n_kv_heads = size(fields, "num_key_value_heads", high=MAX_HEADS)
    head_dim = size(fields, "head_dim", high=MAX_HEADS)
    check_heads(fields, n_heads, n_kv_heads, head_dim)
    if "rope_scaling" not in fields and "rope_parameters" not in fields:
        # transformers takes YaRN for an absent object, mlx-lm none.
        raise fields.error("rope_scaling", "the rotary embedding's scaling", code="config_missing")
    _check_original_length(fields)
    biased = fields.boolean("attention_bias", default=True)
    window = size(fields, "sliding_window")
    return Attention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        rope=rope_of(fields, head_dim),
        scale=head_dim**-0.5,
        window=window if kind == _SLIDING else None,
        input_bias=biased,
        output_bias=biased,
        modules=AttentionModules(query_norm=None, key_norm=None, sinks="self_attn.sinks"),
    )


def _check_original_length(fields: Fields) -> None:
    """The published config says the length before YaRN a second time."""
    length = fields.integer("initial_context_length", high=MAX_SIZE, default=None)
    scaling = fields.values.get("rope_parameters") or fields.values.get("rope_scaling")
    inner = scaling.get("original_max_position_embeddings") if isinstance(scaling, dict) else None
    if length is not None and inner is not None and length != inner:
        raise fields.error("initial_context_length", "the same as original_max_position_embeddings in rope_scaling")


def _experts(fields: Fields) -> Moe:
    n_experts = size(fields, "num_local_experts", "num_experts", high=MAX_EXPERTS)
    top_k = top_k_of(fields, n_experts, "num_experts_per_tok", "experts_per_token")
    return Moe(
        n_experts=n_experts,
        width=size(fields, "intermediate_size"),
        # A softmax over the chosen experts alone.
        router=Router(top_k=top_k, module="mlp.router", renormalize=True, bias=True),
        before="post_attention_layernorm",
        gate="mlp.experts.gate_proj",
        up="mlp.experts.up_proj",
        down="mlp.experts.down_proj",
        bias=True,
    )


_EXPERTS = r"(model\.layers\.\d+\.mlp\.experts)"


def name_map(config: Mapping[str, Any]) -> NameMap:
    """Published names to MLX's: gate and up rows, which stand in turn, apart; bytes of mxfp4 codes as MLX's words."""
    del config

    def gate_and_up(suffix: str) -> tuple[str, str]:
        return (rf"\1.gate_proj.{suffix}", rf"\1.up_proj.{suffix}")

    return NameMap(
        drops=(r".*\.rotary_emb\..*",),
        renames=(
            Rename(rf"{_EXPERTS}\.down_proj_blocks", r"\1.down_proj.weight", layout="mxfp4 blocks"),
            Rename(rf"{_EXPERTS}\.down_proj_scales", r"\1.down_proj.scales"),
            Rename(rf"{_EXPERTS}\.down_proj_bias", r"\1.down_proj.bias"),
            Rename(rf"{_EXPERTS}\.down_proj", r"\1.down_proj.weight", layout="transposed"),
        ),
        splits=(
            Split(rf"{_EXPERTS}\.gate_up_proj_blocks", gate_and_up("weight"), layout="mxfp4 blocks", in_turn=True),
            Split(rf"{_EXPERTS}\.gate_up_proj_scales", gate_and_up("scales"), in_turn=True),
            Split(rf"{_EXPERTS}\.gate_up_proj_bias", gate_and_up("bias"), axis=-1, in_turn=True),
            Split(rf"{_EXPERTS}\.gate_up_proj\.weight", gate_and_up("weight"), in_turn=True),
            Split(rf"{_EXPERTS}\.gate_up_proj", gate_and_up("weight"), layout="transposed", in_turn=True),
        ),
        overrides=(LayerFormat(r".*\.mlp\.router", bits=8, group_size=64),),
    )


FAMILY = Family("gpt_oss", ("gpt_oss",), architecture, name_map)
