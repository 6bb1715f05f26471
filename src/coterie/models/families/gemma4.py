"""Gemma 4: sliding and full attention in turn, norms on both sides of every branch, experts beside a dense branch.

The small models (E2B, E4B) give each layer an embedding of its own, and their last layers read the keys and values of
the last layer before them that attends in the same way.

Two dialects of the config say the same about full layers: the keys `global_head_dim` and `num_global_key_value_heads`,
or `per_layer_config` with an entry for each such layer. Where readers disagree on a default the key has to be there.
"""

from collections.abc import Mapping
from typing import Any

from coterie.checkpoint import Fields, LayerFormat, NameMap, Rename, Split, per_layer
from coterie.errors import ConfigError, UnsupportedError
from coterie.models.architecture import (
    Architecture,
    Attention,
    AttentionModules,
    Layer,
    LayerInputs,
    Mlp,
    Moe,
    Rope,
    Router,
)
from coterie.models.common import (
    MAX_EXPERTS,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_SIZE,
    activation_of,
    check_heads,
    norm_eps_of,
    refuse_if_set,
    size,
    top_k_of,
)
from coterie.models.family import Family
from coterie.models.rope import default_rope, proportional_rope
from coterie.models.rope_config import rope_of

_FULL, _SLIDING = "full_attention", "sliding_attention"


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The decoder of a config with a `text_config` (vision and audio are left out), or of a bare text one."""
    nested, fields = _is_nested(config), _text_fields(config)
    _refuse_unsupported(fields)
    hidden = size(fields, "hidden_size")
    tied = fields.boolean("tie_word_embeddings", default=Fields(config).boolean("tie_word_embeddings", default=True))
    read = Architecture(
        family=FAMILY.name,
        hidden_size=hidden,
        vocab_size=_vocab_size(fields, config),
        layers=_layers(fields),
        norm_eps=norm_eps_of(fields),
        activation=activation_of(fields, "hidden_activation", "gelu_pytorch_tanh"),
        context_length=size(fields, "max_position_embeddings"),
        prefix="language_model.model." if nested else "model.",
        head=None if tied else ("language_model.lm_head" if nested else "lm_head"),
        embedding_scale=hidden**0.5,
        logit_cap=_logit_cap(fields),
        layer_inputs=_layer_inputs(fields),
    )
    fields.finish()
    return read


_UNIFIED = {"hidden_size_per_layer_input": 0, "enable_moe_block": False}
"""What the configs of the unified variant leave out, because it has neither."""


def _is_nested(config: Mapping[str, Any]) -> bool:
    return not config["model_type"].endswith("_text")


def _text_fields(config: Mapping[str, Any]) -> Fields:
    text = Fields(config).section("text_config") if _is_nested(config) else Fields(config)
    if text is None:
        raise Fields(config).error("text_config", "the object that describes the text decoder", code="config_missing")
    if not config["model_type"].startswith("gemma4_unified"):
        return text
    for key, value in _UNIFIED.items():
        text.must_be(key, value, reason="the unified variant has neither experts nor per-layer embeddings")
    return Fields({**text.values, **_UNIFIED}, text.where)


def _refuse_unsupported(fields: Fields) -> None:
    refuse_if_set(fields, "attention_bias", "biases in the attention")
    if fields.choice("use_bidirectional_attention", options=("all", "vision"), default=None) == "all":
        raise UnsupportedError(
            f'{fields.where}: found use_bidirectional_attention = "all"; Coterie runs causal decoders only',
            code="unsupported_use_bidirectional_attention",
        )
    fields.ignore("sliding_window_pattern")  # layer_types says more


def _vocab_size(fields: Fields, config: Mapping[str, Any]) -> int:
    outer = Fields(config).integer("vocab_size", high=MAX_SIZE, default=None)
    vocab_size = fields.integer("vocab_size", high=MAX_SIZE, default=outer)
    if vocab_size is None or outer not in (None, vocab_size):
        raise fields.error("vocab_size", "the vocabulary's size, the same as at the top level if it is given there")
    return vocab_size


def _logit_cap(fields: Fields) -> float | None:
    """The cap, or None where the file says null. Readers take 30 or none for an absent key, so it has to be there."""
    if "final_logit_softcapping" not in fields and "final_logit_softcapping" not in fields.values:
        raise fields.error("final_logit_softcapping", "a number, or null for none", code="config_missing")
    return fields.number("final_logit_softcapping", low=0.0, high=1e6, above=True, default=None)


def _layer_inputs(fields: Fields) -> LayerInputs | None:
    """Per-layer embeddings, where they have a width. Readers disagree on the default, so the key has to be there."""
    width = fields.integer("hidden_size_per_layer_input", low=0, high=MAX_SIZE)
    fields.ignore("vocab_size_per_layer_input")
    if not width:
        return None
    vocab_size = size(fields, "vocab_size_per_layer_input")
    if vocab_size < fields.integer("vocab_size", high=MAX_SIZE, default=0):
        raise fields.error("vocab_size_per_layer_input", "at least vocab_size: every token has a row")
    return LayerInputs(
        width=width,
        vocab_size=vocab_size,
        embedding_scale=width**0.5,
        projection_scale=size(fields, "hidden_size") ** -0.5,
        scale=2**-0.5,
    )


def _layers(fields: Fields) -> tuple[Layer, ...]:
    """All layers; the last one is full whatever `layer_types` says, as the family was defined."""
    n_layers = size(fields, "num_hidden_layers", high=MAX_LAYERS)
    kinds = (*fields.choices("layer_types", options=(_FULL, _SLIDING), length=n_layers)[:-1], _FULL)
    own = per_layer(fields, n_layers)
    shares = _shared(fields, kinds)
    return tuple(_layer(fields, own[index], kinds[index], shares[index]) for index in range(n_layers))


def _shared(fields: Fields, kinds: tuple[str, ...]) -> list[int | None]:
    """For each layer the one whose keys and values it reads, or None: the last of its kind that has its own."""
    n_own = len(kinds) - _n_shared(fields, len(kinds))
    last = {kind: index for index, kind in enumerate(kinds[:n_own])}
    lacking = next((kind for kind in kinds[n_own:] if kind not in last), None)
    if lacking is not None:
        raise fields.error("num_kv_shared_layers", f"a layer before the shared ones that is {lacking} too")
    return [None if index < n_own else last[kind] for index, kind in enumerate(kinds)]


def _n_shared(fields: Fields, n_layers: int) -> int:
    """Layers at the end without keys and values. Readers disagree on the default, so the key has to be there."""
    return fields.integer("num_kv_shared_layers", low=0, high=n_layers - 1)


def _layer(fields: Fields, own: Fields, kind: str, shares: int | None) -> Layer:
    fields.ignore("use_double_wide_mlp")
    is_wide = shares is not None and fields.boolean("use_double_wide_mlp")
    has_experts = fields.boolean("enable_moe_block")
    if not has_experts:
        fields.ignore("num_experts", "top_k_experts", "moe_intermediate_size")
    return Layer(
        attention=_attention(fields, own, kind, shares),
        mlp=Mlp(
            width=size(fields, "intermediate_size") * (2 if is_wide else 1),
            before="pre_feedforward_layernorm",
            after="post_feedforward_layernorm_1" if has_experts else None,
        ),
        moe=_experts(fields) if has_experts else None,
        after_branches="post_feedforward_layernorm",
        scalar="layer_scalar",
    )


def _attention(fields: Fields, own: Fields, kind: str, shares: int | None) -> Attention:
    full = kind == _FULL
    keys_are_values = fields.boolean("attention_k_eq_v") and full
    n_heads = size(fields, "num_attention_heads", high=MAX_HEADS)
    n_kv_heads, head_dim = _key_value_heads(fields, own, full=full)
    check_heads(fields, n_heads, n_kv_heads, head_dim)
    return Attention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        rope=_rope(fields, kind, head_dim),
        scale=1.0,
        window=None if full else size(fields, "sliding_window"),
        normalize_values=True,
        shares=shares,
        modules=AttentionModules(
            value=None if keys_are_values else "self_attn.v_proj",
            after="post_attention_layernorm",
        ),
    )


def _key_value_heads(fields: Fields, own: Fields, *, full: bool) -> tuple[int, int]:
    """(key-value heads, head_dim) of a layer, from whichever dialect the config is written in."""
    fields.ignore("sliding_window")
    n_kv_heads, head_dim = size(fields, "num_key_value_heads", high=MAX_HEADS), size(fields, "head_dim", high=MAX_HEADS)
    global_dim = fields.integer("global_head_dim", high=MAX_HEADS, default=None)
    global_kv_heads = fields.integer("num_global_key_value_heads", high=MAX_HEADS, default=None)
    listed = "per_layer_config" in fields
    own_dim = own.integer("head_dim", high=MAX_HEADS, default=head_dim)
    own_kv_heads = own.integer("num_key_value_heads", high=MAX_HEADS, default=n_kv_heads)
    own.finish()
    if not full:
        return own_kv_heads, own_dim
    if not listed and global_dim is None:
        raise fields.error("global_head_dim", "this key, or per_layer_config", code="config_missing")
    if global_kv_heads is None or not fields.boolean("attention_k_eq_v"):
        # The family reads num_global_key_value_heads only where keys are values.
        global_kv_heads = own_kv_heads
    if listed and (own_dim, own_kv_heads) != (global_dim or own_dim, global_kv_heads):
        raise ConfigError(
            f"{own.where}: found head_dim {own_dim} and {own_kv_heads} key-value heads, expected {global_dim} and "
            f"{global_kv_heads}, as global_head_dim and num_global_key_value_heads say; keep the true ones",
            code="config_contradiction",
        )
    return global_kv_heads, global_dim or own_dim


def _rope(fields: Fields, kind: str, head_dim: int) -> Rope:
    if "rope_parameters" in fields:
        return rope_of(fields, head_dim, kind, kinds=("default", "proportional"))
    return proportional_rope(1e6, head_dim, 0.25) if kind == _FULL else default_rope(1e4, head_dim)


def _experts(fields: Fields) -> Moe:
    n_experts = size(fields, "num_experts", high=MAX_EXPERTS)
    top_k = top_k_of(fields, n_experts, "top_k_experts")
    return Moe(
        n_experts=n_experts,
        width=size(fields, "moe_intermediate_size"),
        router=Router(
            top_k=top_k,
            module="router.proj",
            norm="router.scale",
            norm_scale=size(fields, "hidden_size") ** -0.5,
            per_expert_scale="router.per_expert_scale",
        ),
        before="pre_feedforward_layernorm_2",
        gate="experts.switch_glu.gate_proj",
        up="experts.switch_glu.up_proj",
        down="experts.switch_glu.down_proj",
        after="post_feedforward_layernorm_2",
    )


_LEFT_OUT = (
    r"(model\.)?(vision_tower|multi_modal_projector|audio_tower|embed_audio|embed_vision|vision_embedder)\..*",
    r".*\.rotary_emb\..*",
    r".*\.(input_max|input_min|output_max|output_min)",
)


def name_map(config: Mapping[str, Any]) -> NameMap:
    """Published names to MLX's: the text decoder below `language_model.model`, experts' gate and up rows apart."""
    nested = _is_nested(config)
    renames: tuple[Rename, ...] = (Rename(r"(model\..*\.experts)\.down_proj", r"\1.switch_glu.down_proj.weight"),)
    if nested:
        renames = (
            Rename(
                r"model\.language_model\.(.*\.experts)\.down_proj",
                r"language_model.model.\1.switch_glu.down_proj.weight",
            ),
            Rename(r"model\.language_model\.(.*)", r"language_model.model.\1"),
            Rename(r"lm_head\.(.*)", r"language_model.lm_head.\1"),
        )
    return NameMap(
        drops=(*_LEFT_OUT, *_unused_projections(_text_fields(config))),
        renames=renames,
        splits=(
            Split(
                r"(.*\.experts)\.gate_up_proj",
                (r"\1.switch_glu.gate_proj.weight", r"\1.switch_glu.up_proj.weight"),
            ),
        ),
        overrides=(LayerFormat(r".*\.router\.proj", bits=8, group_size=64),),
    )


def _unused_projections(fields: Fields) -> tuple[str, ...]:
    """Published checkpoints also hold keys and values of the layers that do not make their own; nothing reads them."""
    n_layers = size(fields, "num_hidden_layers", high=MAX_LAYERS)
    shared = range(n_layers - _n_shared(fields, n_layers), n_layers)
    indices = "|".join(map(str, shared))
    return (rf".*\.layers\.({indices})\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\..*",) if shared else ()


FAMILY = Family("gemma4", ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), architecture, name_map)
