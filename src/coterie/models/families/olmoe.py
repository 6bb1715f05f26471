"""OLMoE: norms over all queries and over all keys of a token, limits on both and on values, experts in every layer."""

from collections.abc import Mapping
from typing import Any

from coterie.checkpoint import Fields, NameMap
from coterie.models.architecture import Architecture, Attention, Layer, Moe, Router
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
    """The decoder of an `olmoe` config, in either dialect."""
    fields = Fields(config)
    refuse_if_set(fields, "mlp_bias", "biases in the experts")
    layer = Layer(_attention(fields), mlp=None, moe=_experts(fields))
    read = Architecture(
        family=FAMILY.name,
        hidden_size=size(fields, "hidden_size"),
        vocab_size=size(fields, "vocab_size"),
        layers=(layer,) * size(fields, "num_hidden_layers", high=MAX_LAYERS),
        norm_eps=norm_eps_of(fields),
        activation=activation_of(fields, "hidden_act", "silu"),
        context_length=size(fields, "max_position_embeddings"),
        prefix="model.",
        # mlx-lm takes an absent key for true; the embedding of this family was never tied.
        head=None if fields.boolean("tie_word_embeddings", default=False) else "lm_head",
    )
    fields.finish()
    return read


def _attention(fields: Fields) -> Attention:
    n_heads, n_kv_heads, head_dim = heads_of(fields, kv_heads_optional=True)
    biased = fields.boolean("attention_bias", default=False)
    return Attention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        rope=rope_of(fields, head_dim),
        scale=head_dim**-0.5,
        norm_span="projection",
        clip=fields.number("clip_qkv", low=0.0, high=1e6, above=True, default=None),
        input_bias=biased,
        output_bias=biased,
    )


def _experts(fields: Fields) -> Moe:
    n_experts = _n_experts(fields)
    top_k = top_k_of(fields, n_experts)
    return Moe(
        n_experts=n_experts,
        width=size(fields, "intermediate_size"),
        router=Router(top_k=top_k, module="mlp.gate", renormalize=fields.boolean("norm_topk_prob", default=False)),
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
    )


FAMILY = Family("olmoe", ("olmoe",), architecture, name_map)
