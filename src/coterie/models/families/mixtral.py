"""Mixtral: a norm before every branch, experts in every layer, and a sliding window where the config has one."""

from collections.abc import Mapping
from typing import Any

from coterie.checkpoint import Fields, NameMap, Rename, Stack
from coterie.models.architecture import Architecture, Attention, AttentionModules, Layer, Moe, Router
from coterie.models.common import (
    MAX_EXPERTS,
    MAX_LAYERS,
    MAX_SIZE,
    activation_of,
    heads_of,
    norm_eps_of,
    size,
    top_k_of,
)
from coterie.models.family import Family
from coterie.models.rope_config import rope_of


def architecture(config: Mapping[str, Any]) -> Architecture:
    """The decoder of a `mixtral` config, in either dialect."""
    fields = Fields(config)
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
        head=None if fields.boolean("tie_word_embeddings", default=False) else "lm_head",
    )
    fields.finish()
    return read


def _attention(fields: Fields) -> Attention:
    n_heads, n_kv_heads, head_dim = heads_of(fields)
    return Attention(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        rope=rope_of(fields, head_dim),
        scale=head_dim**-0.5,
        window=fields.integer("sliding_window", high=MAX_SIZE, default=None),
        modules=AttentionModules(query_norm=None, key_norm=None),
    )


def _experts(fields: Fields) -> Moe:
    n_experts = _n_experts(fields)
    top_k = top_k_of(fields, n_experts)
    return Moe(
        n_experts=n_experts,
        width=size(fields, "intermediate_size"),
        router=Router(top_k=top_k, module="block_sparse_moe.gate"),
        before="post_attention_layernorm",
        gate="block_sparse_moe.switch_mlp.gate_proj",
        up="block_sparse_moe.switch_mlp.up_proj",
        down="block_sparse_moe.switch_mlp.down_proj",
    )


def _n_experts(fields: Fields) -> int:
    return size(fields, "num_local_experts", "num_experts", high=MAX_EXPERTS)


def name_map(config: Mapping[str, Any]) -> NameMap:
    """Published names to MLX's: w1, w2 and w3 are gate, down and up; the experts' matrices of a layer are stacked."""
    expert = r"(model\.layers\.\d+\.block_sparse_moe)\.experts\.(?P<index>\d+)"
    parts = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    return NameMap(
        drops=(r".*\.rotary_emb\..*",),
        renames=tuple(
            Rename(rf"{expert}\.{old}\.weight", rf"\1.experts.\g<index>.{new}.weight") for old, new in parts.items()
        ),
        stacks=(
            Stack(
                rf"{expert}\.(gate|up|down)_proj\.weight", r"\1.switch_mlp.\3_proj.weight", _n_experts(Fields(config))
            ),
        ),
    )


FAMILY = Family("mixtral", ("mixtral",), architecture, name_map)
