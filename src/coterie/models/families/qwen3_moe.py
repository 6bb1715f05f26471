"""Qwen3-MoE: a norm before every branch, norms on queries and keys, layers that are either dense or experts."""

from collections.abc import Mapping
from typing import Any

from coterie.checkpoint import Fields, LayerFormat, NameMap
from coterie.models.architecture import Architecture, Attention, Layer, Mlp, Moe, Router
from coterie.models.common import (
    MAX_EXPERTS,
    MAX_LAYERS,
    activation_of,
    heads_of,
    norm_eps_of,
    refuse_if_set,
    size,
    stacked_experts,
    top_k_of,
)
from coterie.models.family import Family
from coterie.models.rope_config import rope_of


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The decoder of a `qwen3_moe` config, in either dialect."""
    fields = Fields(config)
    refuse_if_set(fields, "attention_bias", "biases in the attention")
    refuse_if_set(fields, "use_sliding_window", "a sliding window")
    fields.ignore("sliding_window", "layer_types")
    attention = _attention(fields)
    read = Architecture(
        family=FAMILY.name,
        hidden_size=size(fields, "hidden_size"),
        vocab_size=size(fields, "vocab_size"),
        layers=tuple(_layer(fields, attention, routed=routed) for routed in _routed_layers(fields)),
        norm_eps=norm_eps_of(fields),
        activation=activation_of(fields, "hidden_act", "silu"),
        context_length=size(fields, "max_position_embeddings"),
        prefix="model.",
        head=None if fields.boolean("tie_word_embeddings", default=False) else "lm_head",
    )
    # A model without a dense layer has no use for the width of one.
    fields.ignore("intermediate_size")
    fields.finish()
    return read


def _routed_layers(fields: Fields) -> list[bool]:
    """Whether each layer has experts: every `decoder_sparse_step`th one that is not among `mlp_only_layers`."""
    n_layers = size(fields, "num_hidden_layers", high=MAX_LAYERS)
    step = fields.integer("decoder_sparse_step", default=1)
    dense = fields.integers("mlp_only_layers", low=0, high=n_layers - 1, max_length=n_layers, default=())
    return [index not in dense and (index + 1) % step == 0 for index in range(n_layers)]


def _layer(fields: Fields, attention: Attention, *, routed: bool) -> Layer:
    if routed:
        return Layer(attention, mlp=None, moe=_experts(fields))
    return Layer(attention, mlp=Mlp(size(fields, "intermediate_size"), before="post_attention_layernorm"), moe=None)


def _attention(fields: Fields) -> Attention:
    n_heads, n_kv_heads, head_dim = heads_of(fields)
    return Attention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        rope=rope_of(fields, head_dim),
        scale=head_dim**-0.5,
    )


def _experts(fields: Fields) -> Moe:
    n_experts = _n_experts(fields)
    top_k = top_k_of(fields, n_experts)
    return Moe(
        n_experts=n_experts,
        width=size(fields, "moe_intermediate_size"),
        router=Router(top_k=top_k, module="mlp.gate", renormalize=fields.boolean("norm_topk_prob")),
        before="post_attention_layernorm",
        gate="mlp.switch_mlp.gate_proj",
        up="mlp.switch_mlp.up_proj",
        down="mlp.switch_mlp.down_proj",
    )


def _n_experts(fields: Fields) -> int:
    return size(fields, "num_experts", "num_local_experts", high=MAX_EXPERTS)


def name_map(config: Mapping[str, Any]) -> NameMap:
    """Published names to MLX's: the experts' matrices of a layer stacked."""
    return NameMap(
        drops=(r".*\.rotary_emb\..*",),
        stacks=(stacked_experts(_n_experts(Fields(config))),),
        overrides=(LayerFormat(r".*\.mlp\.gate", bits=8, group_size=64),),
    )


FAMILY = Family("qwen3_moe", ("qwen3_moe",), architecture, name_map)
